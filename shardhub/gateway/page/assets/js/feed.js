// The chain's states from a stream or, if that fails, by polling once a second.
import { call, events } from "./api.js";

const SILENT_MS = 2500; // states arrive once a second: a longer silence means a fault
const POLL_MS = 1000;
const ASK_TIMEOUT_MS = 2500;
const BROKEN_AFTER = 2; // streams without data before polling instead
const STREAM_AGAIN_MS = 30_000;

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

export class Feed {
  #control = new AbortController();
  #failures = 0;
  #lastAt = performance.now();
  #mode = "connecting";
  #reportedMode = "";

  /**
   * @param model Returns the name of the model whose chain is watched; empty for the first one.
   * @param onState Called with each state.
   * @param onMode Called with the mode: connecting, live, polling, silent, or locked (a key is needed).
   */
  constructor({ model, onState, onMode }) {
    this.model = model;
    this.onState = onState;
    this.onMode = onMode;
  }

  start() {
    this.#run();
    setInterval(() => this.#tell(), 250);
    addEventListener("online", () => this.again());
    document.addEventListener("visibilitychange", () => {
      // The stream of a tab that was asleep may be dead without notice.
      if (!document.hidden && performance.now() - this.#lastAt > 2 * SILENT_MS) this.again();
    });
  }

  /** Reconnect now. */
  again() {
    this.#failures = 0;
    this.#control.abort();
  }

  #path(name) {
    const model = this.model();
    return `/shardhub/${name}${model ? `?model=${encodeURIComponent(model)}` : ""}`;
  }

  async #run() {
    for (;;) {
      this.#control = new AbortController();
      const { signal } = this.#control;
      try {
        if (this.#failures < BROKEN_AFTER) await this.#stream(signal);
        else await this.#poll(signal);
      } catch (error) {
        if (error.status === 401) this.#mode = "locked";
      }
      if (!signal.aborted) {
        this.#failures += 1;
        await pause(this.#mode === "locked" ? 3000 : Math.min(1000, 250 * this.#failures));
      }
    }
  }

  async #stream(signal) {
    const answer = await call(this.#path("events"), { signal });
    // A buffering proxy passes nothing on.
    const watch = setInterval(() => {
      if (performance.now() - this.#lastAt > 4 * SILENT_MS) {
        this.#failures += 1;
        this.#control.abort();
      }
    }, 500);
    try {
      for await (const { data } of events(answer)) {
        if (data !== undefined) this.#came(JSON.parse(data), "live");
      }
    } finally {
      clearInterval(watch);
    }
  }

  async #poll(signal) {
    const started = performance.now();
    while (performance.now() - started < STREAM_AGAIN_MS) {
      const limit = AbortSignal.any([signal, AbortSignal.timeout(ASK_TIMEOUT_MS)]);
      this.#came(await (await call(this.#path("state"), { signal: limit })).json(), "polling");
      await pause(POLL_MS);
    }
    this.#failures = 0;
  }

  #came(state, mode) {
    this.#lastAt = performance.now();
    if (mode === "live") this.#failures = 0;
    this.#mode = mode;
    this.onState(state);
    this.#tell();
  }

  #tell() {
    const silent = performance.now() - this.#lastAt > SILENT_MS && this.#mode !== "locked" && this.#mode !== "connecting";
    const mode = silent ? "silent" : this.#mode;
    if (mode !== this.#reportedMode) {
      this.#reportedMode = mode;
      this.onMode(mode);
    }
  }
}
