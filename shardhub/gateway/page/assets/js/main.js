// Assembles the page.
import { call } from "./api.js";
import { ChainView } from "./chain.js";
import { Chat } from "./chat.js";
import * as conversations from "./conversations.js";
import { $, icon, make, say, withCode } from "./dom.js";
import { Feed } from "./feed.js";
import { Models } from "./models.js";
import { Plots } from "./plots.js";
import { Readings } from "./readings.js";
import * as settings from "./settings.js";
import { closeSide, openSide, setUpSides } from "./sides.js";

const chainView = new ChainView();
const readings = new Readings();
const plots = new Plots();
const models = new Models({
  changed: () => {
    banner(null);
    feed.again();
    learn();
    $("input").focus();
  },
  lost: (before, now) => {
    banner(`${before} is no longer served here. ${now} answers from now on.`);
    feed.again();
    learn();
  },
});
const chat = new Chat({ changed: list, failed, model: () => models.chosen, areSeveral: () => models.areSeveral });

const dialog = settings.setUp({
  conversation: () => chat.conversation,
  changed: () => chat.conversation.messages.length && conversations.keep(chat.conversation),
  keyChanged: () => {
    banner(null);
    feed.again();
    learn();
  },
});

const feed = new Feed({
  model: () => models.chosen,
  onState(state) {
    models.show(state.models);
    if (state.model !== models.chosen) return; // of the model that was chosen before
    const places = readings.read(state);
    chainView.show(state, places);
    plots.add(state, places);
    chat.hold(state.problem !== null);
    named(state.context);
    const num = new Set(state.stages.flatMap((stage) => stage.stages)).size;
    const text = `${state.model} runs here in ${num} ${num === 1 ? "stage" : "stages"}, one after the other. Each token of an answer passes through all of them; watch the chain while you ask.`;
    say($("welcome-text"), text);
  },
  onMode: (mode) => chainView.mode(mode),
});

function named(context) {
  document.title = models.chosen ? `${models.chosen} – shardhub` : "shardhub";
  chat.context = context;
}

async function learn() {
  try {
    const { data } = await (await call("/v1/models")).json();
    models.show(data.map(({ id }) => ({ name: id })));
    const chosen = data.find(({ id }) => id === models.chosen);
    if (chosen) named(chosen.max_model_len);
  } catch (error) {
    failed(error);
  }
}

/** Show an error of the whole page. If a key is missing, ask for it. */
function failed(error) {
  if (error.status === 401) {
    banner("This gateway asks for an API key.", "Give the key", () => dialog.open($("key")));
    dialog.open($("key"));
  } else if (!error.status && !error.code) banner(error.message);
}

function banner(text, action = null, onclick = null) {
  $("banner").hidden = text === null;
  $("banner").replaceChildren(...withCode(text ?? ""), action ? make("button", { class: "button", type: "button", onclick }, action) : "");
}

function list() {
  const items = conversations.all().map((one) => {
    const isCurrent = one.id === chat.conversation.id;
    const name = conversations.title(one);
    const pick = make("button", { class: "pick", type: "button", "aria-current": isCurrent ? "true" : null, title: name }, name);
    pick.addEventListener("click", () => {
      closeSide();
      if (one.id !== chat.conversation.id) show(one);
      $("input").focus();
    });
    const drop = make("button", { class: "icon-button drop", type: "button", "aria-label": `Delete: ${name}`, title: "Delete" }, icon("M5 5l10 10", "M15 5L5 15"));
    drop.addEventListener("click", () => remove(one));
    return make("li", { class: "conversation", "data-current": String(isCurrent) }, pick, drop);
  });
  $("conversations").replaceChildren(...items);
  const isEmpty = chat.conversation.messages.length === 0;
  $("export-json").disabled = isEmpty;
  $("export-markdown").disabled = isEmpty;
}

function show(conversation) {
  chat.show(conversation);
  list();
}

function begin() {
  closeSide();
  show(conversations.blank());
  $("input").focus();
}

let undoing = 0;
function remove(conversation) {
  conversations.drop(conversation);
  if (conversation.id === chat.conversation.id) begin();
  else list();
  say($("toast-text"), "Conversation deleted");
  $("toast").hidden = false;
  clearTimeout(undoing);
  undoing = setTimeout(() => ($("toast").hidden = true), 8000);
  $("toast-undo").onclick = () => {
    conversations.keep(conversation);
    $("toast").hidden = true;
    show(conversation);
  };
}

const input = $("input");
function fit() {
  input.style.height = "auto";
  input.style.height = `${Math.min(220, input.scrollHeight + 2)}px`;
  $("send").disabled = !input.value.trim();
}

function send() {
  const text = input.value.trim();
  if (!text || chat.isAnswering) return;
  input.value = "";
  fit();
  banner(null);
  chat.send(text);
}

input.addEventListener("input", fit);
input.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("stop").addEventListener("click", () => chat.stop());
$("new").addEventListener("click", begin);
$("export-json").addEventListener("click", () => conversations.exportJson(chat.conversation, models.chosen));
$("export-markdown").addEventListener("click", () => conversations.exportMarkdown(chat.conversation, models.chosen));
$("open-settings").addEventListener("click", () => dialog.open());
$("open-help").addEventListener("click", () => $("help").showModal());
for (const idea of document.querySelectorAll(".idea")) {
  idea.addEventListener("click", () => {
    chat.send(idea.textContent);
    input.focus();
  });
}

addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  const isTyping = ["TEXTAREA", "INPUT"].includes(event.target.tagName);
  // By position, not by letter: with Alt, some keyboards produce symbols.
  const shortcuts = { KeyN: begin, KeyR: () => chat.again(), KeyS: () => dialog.open(), KeyC: () => openSide($("chain"), $("open-chain")) };
  if (event.key === "Escape") {
    if (!closeSide()) chat.stop();
  } else if (event.altKey && !event.ctrlKey && !event.metaKey && shortcuts[event.code]) {
    event.preventDefault();
    shortcuts[event.code]();
  } else if (!isTyping && !event.ctrlKey && !event.metaKey && event.key === "/") {
    event.preventDefault();
    input.focus();
  } else if (!isTyping && event.key === "?") $("help").showModal();
});

setUpSides();
show(conversations.all()[0] ?? conversations.blank());
conversations.onOtherTab(list);
fit();
learn();
feed.start();
if (matchMedia("(hover: hover)").matches) input.focus();
