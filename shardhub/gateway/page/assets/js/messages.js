// Displays messages as elements.
import { copy, make, withCode } from "./dom.js";
import { render } from "./markdown.js";
import { duration, short } from "./units.js";

const MIN_GAP_MS = 40;

function textButton(text, label, onclick) {
  return make("button", { class: "text-button", type: "button", "aria-label": label, onclick }, text);
}

/** A user message, shown as plain text. */
export function userMessage(message, { onEdit }) {
  const bubble = make("div", { class: "bubble" }, message.content);
  const root = make("article", { class: "message user", "aria-label": "You" }, bubble);
  const tools = make("div", { class: "tools" });
  tools.append(textButton("Edit", "Edit this message", () => root.replaceWith(editor(message, root, onEdit))));
  root.append(tools);
  return root;
}

function editor(message, shown, onEdit) {
  const field = make("textarea", { "aria-label": "Edit the message" });
  field.value = message.content;
  const cancel = () => {
    form.replaceWith(shown);
    shown.querySelector("button").focus();
  };
  const send = () => field.value.trim() && onEdit(field.value);
  const form = make(
    "div",
    { class: "message user" },
    make(
      "div",
      { class: "edit" },
      field,
      make("div", {}, make("button", { class: "button", type: "button", onclick: cancel }, "Cancel"), make("button", { class: "button primary", type: "button", onclick: send }, "Send")),
    ),
  );
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      cancel();
    } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  });
  requestAnimationFrame(() => field.focus());
  return form;
}

/** An answer, which grows until it ends. */
export class AnswerView {
  #drawnAt = 0;
  #cost = 0;
  #pending = 0;

  /**
   * @param onAgain Called when the answer is to be made again.
   * @param onGoOn Called when it is to go on after the most tokens allowed.
   * @param canGoOn Returns whether it can.
   */
  constructor(message, { onAgain, onGoOn, canGoOn }) {
    this.message = message;
    this.onGoOn = onGoOn;
    this.canGoOn = canGoOn;
    this.text = make("div", { class: "text" });
    this.wait = make("p", { class: "thinking-now" }, "Reading the prompt");
    this.reasoning = make("details", { class: "reasoning", hidden: true }, make("summary", {}, "Reasoning"), make("div", { class: "text" }));
    this.foot = make("div", { class: "tools" });
    this.held = make("p", { class: "thinking-now held", role: "status", hidden: true }, "A node is lost. The answer goes on when another takes its place.");
    this.root = make("article", { class: "message assistant", "aria-label": "Answer" }, this.reasoning, this.wait, this.text, this.held, this.foot);
    this.onAgain = onAgain;
  }

  /** Show the progress of the prompt. */
  progress(done, total) {
    this.wait.textContent = total > 1 ? `Reading the prompt, ${Math.round((100 * done) / total)} %` : "Reading the prompt";
  }

  /** Show or hide the note that the answer waits for a node. */
  hold(isHeld) {
    this.held.hidden = !isHeld;
  }

  /** Show the text so far, as often as is cheap. */
  grow(drawn = () => {}) {
    if (this.#pending) return;
    const wait = Math.max(0, this.#drawnAt + Math.max(MIN_GAP_MS, 4 * this.#cost) - performance.now());
    this.#pending = setTimeout(() => {
      this.#pending = 0;
      this.#draw();
      drawn();
    }, wait);
  }

  #draw() {
    const started = performance.now();
    const { content, reasoning } = this.message;
    this.wait.hidden = Boolean(content || reasoning);
    this.text.replaceChildren(render(content));
    this.reasoning.hidden = !reasoning;
    if (reasoning) this.reasoning.lastElementChild.replaceChildren(render(reasoning));
    this.#drawnAt = performance.now();
    this.#cost = this.#drawnAt - started;
  }

  /** Show the answer in its final form. */
  end() {
    clearTimeout(this.#pending);
    this.#pending = 0;
    this.#draw();
    this.wait.hidden = true;
    this.held.hidden = true;
    const { message } = this;
    const parts = [];
    if (message.error) parts.push(make("p", { class: "failure", role: "alert" }, ...withCode(message.error)));
    else if (message.finish === "stopped") parts.push(make("p", { class: "note" }, "Stopped."));
    else if (message.finish === "length") parts.push(make("p", { class: "note" }, "It ended at the most tokens allowed. Continue it, or allow more in the settings."));
    else if (!message.content && !message.reasoning) parts.push(make("p", { class: "note" }, "The model said nothing."));
    this.foot.before(...parts);
    const copyButton = textButton("Copy", "Copy the answer", async () => {
      await copy(message.content);
      copyButton.textContent = "Copied";
      setTimeout(() => (copyButton.textContent = "Copy"), 1500);
    });
    this.foot.replaceChildren(
      ...[
        message.finish === "length" && message.content && this.canGoOn() ? textButton("Continue", "Continue the answer", this.onGoOn) : null,
        message.content ? copyButton : null,
        textButton(message.error ? "Try again" : "Again", "Answer again", this.onAgain),
        stats(message.stats, message.model),
      ].filter(Boolean),
    );
  }
}

function stats(counted, model) {
  if (!counted?.numTokens) return null;
  const parts = [`${counted.isCounted ? "" : "about "}${counted.numTokens} ${counted.numTokens === 1 ? "token" : "tokens"}`];
  if (counted.tokensPerS) parts.unshift(`${short(counted.tokensPerS)} tokens/s`);
  if (Number.isFinite(counted.firstMs)) parts.push(`first after ${duration(counted.firstMs)}`);
  if (model) parts.unshift(model);
  return make("span", { class: "stats" }, parts.join(" · "));
}
