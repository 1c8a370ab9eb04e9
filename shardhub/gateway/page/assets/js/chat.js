// The chat: the displayed conversation and the answer in progress.
import { answerTo } from "./api.js";
import { $, say } from "./dom.js";
import { keep } from "./conversations.js";
import { AnswerView, userMessage } from "./messages.js";
import { sampling } from "./settings.js";

export class Chat {
  conversation;
  #stopping = null;
  #view = null;
  #context = null;
  #follows = true;

  /**
   * @param changed Called when the conversation was changed and saved.
   * @param failed Called with errors that do not concern one answer.
   * @param model Returns the name of the model that is to answer.
   * @param areSeveral Returns whether the user can choose among several.
   */
  constructor({ changed, failed, model, areSeveral }) {
    this.model = model;
    this.areSeveral = areSeveral;
    this.changed = changed;
    this.failed = failed;
    const scroll = $("scroll");
    scroll.addEventListener("scroll", () => {
      this.#follows = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
      $("to-end").hidden = this.#follows;
    });
    $("to-end").addEventListener("click", () => this.#toEnd(true));
  }

  get isAnswering() {
    return this.#stopping !== null;
  }

  /** Number of positions of the chain's context. */
  set context(value) {
    this.#context = value;
    this.#meter();
  }

  /** Display a conversation. */
  show(conversation) {
    this.stop();
    this.conversation = conversation;
    const views = conversation.messages.map((message, index) => {
      if (message.role === "user") return userMessage(message, { onEdit: (text) => this.#edit(index, text) });
      const view = this.#viewOf(message, index);
      view.end();
      return view.root;
    });
    $("messages").replaceChildren(...views);
    $("welcome").hidden = conversation.messages.length > 0;
    this.#meter();
    this.#toEnd(true);
  }

  /** Send the user's message. */
  send(text) {
    this.stop();
    this.conversation.messages.push({ role: "user", content: text });
    this.#ask();
  }

  /** Regenerate an answer. Later messages are dropped. */
  again(index = this.conversation.messages.findLastIndex((m) => m.role === "assistant")) {
    if (index < 1) return;
    this.stop();
    this.conversation.messages.length = index;
    this.#ask();
  }

  /** Let the last answer go on, which ended at the most tokens allowed. */
  goOn() {
    const message = this.conversation.messages.at(-1);
    this.stop();
    delete message.finish;
    delete message.error;
    this.#ask(message);
  }

  /** Stop the answer in progress. The text so far is kept. */
  stop() {
    this.#stopping?.abort();
  }

  #edit(index, text) {
    this.stop();
    this.conversation.messages.length = index;
    this.send(text);
  }

  /** Tell the answer in progress whether the chain can continue. */
  hold(isHeld) {
    if (this.isAnswering) this.#view.hold(isHeld);
  }

  #viewOf(message, index) {
    return new AnswerView(message, {
      onAgain: () => this.again(index),
      onGoOn: () => this.goOn(),
      canGoOn: () => message === this.conversation.messages.at(-1) && this.#used() < (this.#context ?? Infinity),
    });
  }

  /**
   * Ask for an answer to the conversation.
   *
   * @param continued The last answer, if it is to go on; a new one is begun without it.
   */
  async #ask(continued = null) {
    const { conversation } = this;
    const message = continued ?? { role: "assistant", content: "", reasoning: "" };
    const asked = conversation.messages.filter((m) => m.role === "user" || m.content).map(({ role, content }) => ({ role, content }));
    if (conversation.system.trim()) asked.unshift({ role: "system", content: conversation.system });
    if (!continued) conversation.messages.push(message);
    const how = continued ? { continue_final_message: true, add_generation_prompt: false } : {};
    const model = this.model();
    if (this.areSeveral()) message.model = model;
    this.#keep(conversation);
    this.show(conversation);
    const index = conversation.messages.length - 1;
    const view = this.#viewOf(message, index);
    $("messages").lastElementChild.replaceWith(view.root);
    const stopping = new AbortController();
    this.#stopping = stopping;
    this.#view = view;
    this.#busy(true);
    this.#toEnd(true);
    if (continued) view.grow(() => this.#toEnd());
    const numBefore = continued?.stats?.numTokens ?? 0;
    const started = performance.now();
    const times = { first: null, last: null };
    let numParts = 0;
    let usage = null;
    // Estimated tokens of the prompt until they are counted: the previous count, and four characters per token.
    let numPrompt = this.#used() + Math.ceil(asked.at(-1).content.length / 4);
    try {
      for await (const part of answerTo({ ...(model ? { model } : {}), messages: asked, ...sampling(), ...how }, stopping.signal)) {
        if (part.progress) {
          view.progress(...part.progress);
          numPrompt = part.progress[1];
        }
        if (part.finish) message.finish = part.finish;
        if (part.usage) usage = part.usage;
        if (part.text === undefined && part.reasoning === undefined) continue;
        message.content += part.text ?? "";
        message.reasoning += part.reasoning ?? "";
        times.last = performance.now();
        times.first ??= times.last;
        numParts += 1;
        view.grow(() => this.#toEnd());
      }
    } catch (error) {
      if (stopping.signal.aborted) message.finish = "stopped";
      else {
        message.error = error.retryAfter ? `${error.message} Try again in ${error.retryAfter} s.` : error.message;
        this.failed(error);
      }
    }
    message.stats = statsOf(times, started, usage, numParts, numPrompt);
    message.stats.numTokens += numBefore;
    view.end();
    this.#keep(conversation);
    if (this.#stopping === stopping) {
      this.#stopping = null;
      this.#busy(false);
      this.#meter();
      this.#toEnd();
      say($("status"), message.error ? "The answer failed." : message.finish === "stopped" ? "Stopped." : `The answer is complete, ${message.stats.numTokens} tokens.`);
    }
  }

  #keep(conversation) {
    conversation.changed = Date.now();
    if (!keep(conversation)) this.failed(new Error("This browser has no room to keep the conversation. Export it, or delete others."));
    this.changed();
  }

  #busy(isBusy) {
    $("messages").setAttribute("aria-busy", String(isBusy));
    const hadFocus = document.activeElement === (isBusy ? $("send") : $("stop"));
    $("send").hidden = isBusy;
    $("stop").hidden = !isBusy;
    if (hadFocus) $("input").focus();
    if (isBusy) say($("status"), "Answering.");
  }

  #toEnd(force = false) {
    if (!force && !this.#follows) return;
    this.#follows = true;
    $("scroll").scrollTop = $("scroll").scrollHeight;
    $("to-end").hidden = true;
  }

  /** Number of positions that the conversation takes, as last counted. */
  #used() {
    return this.conversation?.messages.findLast((m) => m.stats?.numContext)?.stats.numContext ?? 0;
  }

  #meter() {
    const used = this.#used();
    $("context").hidden = !this.#context || !used;
    if (!this.#context) return;
    const share = Math.min(100, (100 * used) / this.#context);
    say($("context-text"), `${used.toLocaleString("en")} of ${this.#context.toLocaleString("en")} tokens of context`);
    $("context").dataset.full = String(share > 90);
    $("context-fill").style.width = `${share}%`;
    $("context-meter").setAttribute("aria-valuenow", String(Math.round(share)));
    $("context-meter").setAttribute("aria-valuetext", $("context-text").textContent);
  }
}

function statsOf(times, started, usage, numParts, numPrompt) {
  const numTokens = usage?.completion_tokens ?? numParts;
  const took = times.first === null ? 0 : times.last - times.first;
  return {
    numTokens,
    isCounted: usage !== null,
    firstMs: times.first === null ? null : times.first - started,
    tokensPerS: took > 0 && numTokens > 1 ? ((numTokens - 1) * 1000) / took : null,
    numContext: usage?.total_tokens ?? (numParts ? numPrompt + numParts : null),
  };
}
