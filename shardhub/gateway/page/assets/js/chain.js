// The view of the chain: its stages in order, the links between them, and events.
import { $, icon, make, say } from "./dom.js";
import { nameOf } from "./readings.js";
import { bytes, clock, short } from "./units.js";

const WORDS = { ready: "Ready", lost: "Lost", quiet: "No news", unknown: "Connecting" };
const MODES = { connecting: "Connecting", live: "Live", polling: "Live, by asking", silent: "No news from the gateway", locked: "Needs an API key" };
const KINDS = { lost: "Lost", back: "Back", recovered: "Recovered", "gave-up": "Gave up" };
const MAX_EVENTS = 30;
const ICONS = {
  ready: () => icon("M4 10.5l4 4 8-9"),
  lost: () => icon("M10 3l8 14H2z", "M10 8v4", "M10 14.6v.01"),
  quiet: () => icon("M10 10V5.5", "M10 10l3 2", "M10 2.5a7.5 7.5 0 1 0 .01 0"),
};

export class ChainView {
  #cards = new Map();
  #shape = "";
  #seen = new Set();
  #mode = "connecting";

  /** Show a state that Readings has processed. */
  show(state, places) {
    const shape = places.map((place) => `${place.id}@${place.nodes.map((node) => node.at).join()}`).join(";");
    if (shape !== this.#shape) {
      this.#shape = shape;
      this.#build(places);
    }
    $("chain").dataset.busy = String(state.requests.decoding > 0);
    places.forEach((place, index) => {
      for (const node of place.nodes) this.#update(this.#cards.get(`${place.id}@${node.at}`), node);
      const hop = $(`hop-${index}`);
      if (hop) say(hop, hopText(place, places[index + 1]));
    });
    const problem = $("problem");
    const inexact = state.inexact ? `This chain is inexact; against the whole model: ${state.inexact}` : "";
    const text = [state.problem, inexact].filter(Boolean).join(" ");
    problem.hidden = !text;
    say(problem, text.replaceAll("`", ""));
    const lost = places.filter((place) => place.health === "lost").map((place) => place.name);
    this.#health = lost.length || state.problem ? "lost" : places.some((place) => place.nodes.some((n) => n.health === "lost")) ? "quiet" : "ready";
    this.#sum = lost.length ? `: ${lost.join(", ")} lost` : this.#health === "ready" ? ": ready" : ": a node is lost";
    this.#dot();
    this.#showMachines(state.machines);
    this.happened(state.events ?? []);
  }

  /** Show each machine with what it serves, of all models. */
  #showMachines(machines) {
    const text = JSON.stringify(machines);
    if (text === this.#machines) return;
    this.#machines = text;
    $("machines").replaceChildren(
      ...machines.map(({ name, serves }) =>
        make("li", {}, make("b", {}, name), ...serves.map((served) => make("span", {}, `${served.model}: ${nameOf(served.stages).toLowerCase()}, ${layersOf(served.layers)}`))),
      ),
    );
  }

  #machines = "";
  #health = "unknown";
  #sum = ": connecting";

  /** Show whether the displayed state is current. */
  mode(mode) {
    this.#mode = mode;
    $("live").dataset.state = mode;
    say($("live"), MODES[mode]);
    this.#dot();
  }

  #dot() {
    const silent = this.#mode === "silent" || this.#mode === "locked";
    document.querySelector("#open-chain .dot").dataset.health = silent ? "quiet" : this.#health;
    say($("chain-word"), silent ? ": no news" : this.#sum);
  }

  happened(events) {
    for (const event of events) {
      const id = `${event.number}@${event.time}`;
      if (this.#seen.has(id)) continue;
      this.#seen.add(id);
      const when = make("time", { datetime: new Date(event.time * 1000).toISOString() }, clock(event.time));
      const what = make("span", {}, make("b", { "data-kind": event.kind }, KINDS[event.kind] ?? event.kind), ` ${event.text}`);
      $("events").prepend(make("li", {}, when, what));
      while ($("events").childElementCount > MAX_EVENTS) $("events").lastElementChild.remove();
    }
    $("no-events").hidden = $("events").childElementCount > 0;
  }

  #build(places) {
    this.#cards.clear();
    const items = [];
    places.forEach((place, index) => {
      const item = make("li", {});
      for (const node of place.nodes) {
        const card = cardOf(place, node);
        this.#cards.set(`${place.id}@${node.at}`, card);
        item.append(card.root);
      }
      if (places[index + 1]?.chain === place.chain) item.append(make("p", { class: "hop", id: `hop-${index}` }));
      items.push(item);
    });
    $("stages").replaceChildren(...items);
  }

  #update(card, node) {
    card.root.dataset.health = node.health;
    if (card.health.dataset.health !== node.health) {
      card.health.dataset.health = node.health;
      card.health.replaceChildren(ICONS[node.health](), WORDS[node.health]);
    }
    say(card.about, node.health === "lost" ? (node.error ?? "It does not answer.") : node.about);
    card.about.title = node.health === "lost" ? "" : node.about;
    const isLost = node.health === "lost";
    say(card.speed, node.stepMs === null ? "–" : short(node.stepMs));
    card.memory.hidden = isLost;
    card.figures.hidden = isLost;
    const total = node.budgetBytes ?? node.weightBytes;
    const share = (size) => `${Math.min(100, (100 * size) / Math.max(1, total))}%`;
    card.weights.style.width = share(node.weightBytes);
    card.cache.style.width = share(node.cacheBytes);
    const text = `${bytes(node.weightBytes)} weights, ${bytes(node.cacheBytes)} cache`;
    say(card.size, node.budgetBytes ? `${bytes(node.weightBytes + node.cacheBytes)} of ${bytes(node.budgetBytes)}` : bytes(node.weightBytes));
    card.memory.setAttribute("aria-label", `Memory: ${text}`);
    card.memory.setAttribute("aria-valuenow", Math.min(100, Math.round((100 * (node.weightBytes + node.cacheBytes)) / Math.max(1, total))));
    card.size.title = text;
  }
}

function cardOf(place, node) {
  const layers = layersOf(place.layers);
  const card = {
    health: make("span", { class: "health" }),
    about: make("p", { class: "node-about" }),
    speed: make("b", {}, "–"),
    size: make("span", {}),
    weights: make("span", { class: "weights" }),
    cache: make("span", { class: "cache" }),
  };
  card.figures = make("div", { class: "figures" }, make("span", {}, card.speed, " ms a token"), card.size);
  card.memory = make("div", { class: "memory", role: "meter", "aria-valuemin": "0", "aria-valuemax": "100", "aria-valuenow": "0" }, card.weights, card.cache);
  card.root = make(
    "div",
    { class: "stage" },
    make("div", { class: "stage-top" }, make("span", { class: "name" }, place.name), make("span", { class: "layers" }, layers), card.health),
    make("p", { class: "node" }, node.machine),
    card.about,
    card.figures,
    card.memory,
  );
  return card;
}

const layersOf = ([start, stop]) => (stop - start === 1 ? `layer ${start}` : `layers ${start}–${stop - 1}`);

function hopText(place) {
  const parts = [];
  if (place.sentBytes !== null) parts.push(`${bytes(place.sentBytes)} a token`);
  if (place.roundTripMs !== null) parts.push(`${short(place.roundTripMs)} ms there and back`);
  return parts.join(", ") || "hidden states go on";
}
