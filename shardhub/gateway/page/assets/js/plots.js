// Two plots of the last two minutes.
import { $, make } from "./dom.js";
import { short } from "./units.js";

const { uPlot } = globalThis;
const WINDOW_S = 120;
const HEIGHT = 112;
// Stages share one colour and differ in their dashes, which the legend shows.
const DASHES = [[], [6, 4], [2, 3], [10, 4, 2, 4], [12, 5], [1, 4]];

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export class Plots {
  #times = [];
  #speeds = [];
  #stages = new Map();
  #names = [];
  #plots = [];

  constructor() {
    addEventListener("themechange", () => this.#build());
    new ResizeObserver(() => this.#resize()).observe($("speed-plot"));
  }

  /** Add a state. */
  add(state, places) {
    const now = state.time;
    if (now <= (this.#times.at(-1) ?? 0)) return;
    const first = this.#times.findIndex((time) => time > now - WINDOW_S - 2);
    const cut = first < 0 ? this.#times.length : first;
    const rows = [this.#times, this.#speeds, ...this.#stages.values()];
    for (const row of rows) row.splice(0, cut);
    const num = this.#times.length;
    this.#times.push(now);
    this.#speeds.push(state.requests.tokens_per_s);
    for (const place of places) {
      if (!this.#stages.has(place.name)) this.#stages.set(place.name, Array(num).fill(null));
      this.#stages.get(place.name).push(place.isBusy ? place.stepMs : null);
    }
    for (const [name, row] of this.#stages) {
      if (row.length <= num) row.push(null);
      if (row.every((value) => value === null) && !places.some((place) => place.name === name)) this.#stages.delete(name);
    }
    const names = [...this.#stages.keys()];
    if (names.join() !== this.#names.join() || !this.#plots.length) {
      this.#names = names;
      this.#build();
    } else this.#draw();
    this.#tell(state, places);
  }

  #tell(state, places) {
    const speed = state.requests.tokens_per_s;
    const total = state.requests.decoding;
    $("speed-now").replaceChildren(make("b", {}, short(speed)), total ? ` now, ${total} ${total === 1 ? "answer" : "answers"}` : " now");
    $("speed-plot").setAttribute("aria-label", `Tokens per second over the last two minutes; now ${short(speed)}, at most ${short(Math.max(...this.#speeds))}`);
    const of = (name) => places.find((place) => place.name === name)?.stepMs;
    const parts = this.#names.map((name) => `${name}: ${short(of(name) ?? NaN)}`);
    $("latency-plot").setAttribute("aria-label", `Milliseconds a token over the last two minutes; now ${parts.join(", ")}`);
    $("latency-legend").replaceChildren(
      ...this.#names.map((name, index) => make("li", {}, swatch(index), `${name} `, make("b", {}, short(of(name) ?? NaN)))),
    );
  }

  #build() {
    for (const plot of this.#plots) plot.destroy();
    this.#plots = [];
    if (!this.#times.length) return;
    const accent = colour("--accent");
    const speed = [{ stroke: accent, width: 1.75, fill: colour("--tint"), points: { show: false } }];
    const stages = this.#names.map((_, index) => ({ stroke: index % 2 ? colour("--text") : accent, width: 1.75, dash: DASHES[index % DASHES.length], points: { show: false }, spanGaps: false }));
    this.#plots = [new uPlot(options($("speed-plot"), speed), this.#data()[0], $("speed-plot")), new uPlot(options($("latency-plot"), stages), this.#data()[1], $("latency-plot"))];
  }

  #data() {
    return [[this.#times, this.#speeds], [this.#times, ...this.#stages.values()]];
  }

  #draw() {
    this.#data().forEach((data, index) => this.#plots[index].setData(data));
  }

  #resize() {
    for (const plot of this.#plots) plot.setSize({ width: width(plot.root.parentElement), height: HEIGHT });
  }
}

const width = (box) => Math.max(120, box.clientWidth);

function options(box, series) {
  const axis = { stroke: colour("--soft"), font: "11px system-ui, sans-serif", ticks: { show: false }, gap: 4 };
  const grid = { stroke: colour("--line"), width: 1 };
  return {
    width: width(box),
    height: HEIGHT,
    padding: [8, 8, 0, 0],
    cursor: { show: false },
    legend: { show: false },
    select: { show: false },
    scales: {
      x: { time: false, range: (_, __, max) => [max - WINDOW_S, max] },
      y: { range: (_, __, max) => [0, Math.max(1, (max ?? 0) * 1.15)] },
    },
    axes: [
      {
        ...axis, size: 22, grid: { show: false },
        splits: (plot) => [120, 60, 0].map((ago) => plot.scales.x.max - ago),
        values: (plot, splits) => splits.map((at) => { const ago = Math.round(plot.scales.x.max - at); return ago ? (ago > 100 ? "     2 min ago" : "1 min") : "now    "; }),
      },
      { ...axis, size: 38, space: 28, grid, values: (_, splits) => splits.map((value) => (value >= 1000 ? `${value / 1000}k` : String(Number(value.toFixed(1))))) },
    ],
    series: [{}, ...series],
  };
}

function swatch(index) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 22 8");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  line.setAttribute("d", "M0 4h22");
  line.setAttribute("stroke-dasharray", DASHES[index % DASHES.length].join(" "));
  svg.append(line);
  svg.setAttribute("class", index % 2 ? "" : "accent");
  return svg;
}
