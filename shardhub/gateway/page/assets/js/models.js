// The model that answers, chosen among those that the gateway serves and remembered by this browser.
import { $, make, say } from "./dom.js";

const KEY = "shardhub.model";

function read() {
  try {
    return localStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

function keep(name) {
  try {
    localStorage.setItem(KEY, name);
  } catch { /* it holds until the page closes */ }
}

export class Models {
  #names = [];
  #chosen = read();

  /**
   * @param changed Called when the user chose another model.
   * @param lost Called with the names of a chosen model that is no longer served, and of the one that answers instead.
   */
  constructor({ changed, lost }) {
    this.lost = lost;
    $("models").addEventListener("change", () => {
      this.#chosen = $("models").value;
      keep(this.#chosen);
      changed();
    });
  }

  /** The chosen model's name; empty until the gateway has told one. */
  get chosen() {
    return this.#chosen;
  }

  get areSeveral() {
    return this.#names.length > 1;
  }

  /** Show the models that are served now: {name, ready}, in order. */
  show(models) {
    const names = models.map((model) => model.name);
    if (!names.includes(this.#chosen)) {
      const before = this.#chosen;
      this.#chosen = names[0] ?? "";
      if (before && this.#names.includes(before) && this.#chosen) this.lost(before, this.#chosen);
    }
    $("models").hidden = names.length < 2;
    $("model").hidden = names.length > 1;
    say($("model"), this.#chosen);
    const words = models.map((model) => (model.ready === false ? `${model.name} (a stage is missing)` : model.name));
    const options = [...$("models").options];
    if (words.join("\n") !== options.map((option) => option.textContent).join("\n")) {
      $("models").replaceChildren(...names.map((name, index) => make("option", { value: name }, words[index])));
    }
    $("models").value = this.#chosen;
    this.#names = names;
  }
}
