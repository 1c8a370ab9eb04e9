// The settings: system prompt, sampling, key.
import { apiKey, keepApiKey } from "./api.js";
import { $, make } from "./dom.js";

const KEY = "shardhub.sampling";
const FIELDS = [
  { name: "temperature", label: "Temperature", min: 0, max: 5, step: "any", about: "0 is always the likeliest token" },
  { name: "top_p", label: "Top p", min: 0, max: 1, step: "any", about: "from the likeliest that make up this share" },
  { name: "top_k", label: "Top k", min: 0, max: 1000000, step: 1, about: "from this many of the likeliest" },
  { name: "min_p", label: "Min p", min: 0, max: 1, step: "any", about: "none below this share of the likeliest" },
  { name: "max_tokens", label: "Max tokens", min: 1, max: 1000000, step: 1, about: "of an answer" },
  { name: "seed", label: "Seed", min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, about: "the same seed, the same answer" },
];

let values = read();

function read() {
  try {
    const found = JSON.parse(localStorage.getItem(KEY)) ?? {};
    return Object.fromEntries(FIELDS.map(({ name }) => [name, found[name]]).filter(([, v]) => typeof v === "number"));
  } catch {
    return {};
  }
}

function keep() {
  try {
    localStorage.setItem(KEY, JSON.stringify(values));
  } catch { /* it holds until the page closes */ }
}

/** The settings as fields of a request. */
export const sampling = () => ({ ...values });

/**
 * Set up the dialog.
 *
 * @param conversation Returns the current conversation.
 * @param changed Called when its system prompt changed.
 * @param keyChanged Called when the key changed.
 */
export function setUp({ conversation, changed, keyChanged }) {
  const dialog = $("settings");
  const inputs = FIELDS.map(({ name, label, about, min, max, step }) => {
    const input = make("input", { id: `set-${name}`, type: "number", inputmode: "decimal", min, max, step, title: about, placeholder: "default" });
    input.addEventListener("input", () => {
      if (input.value === "") delete values[name];
      else if (input.validity.valid) values[name] = Number(input.value);
      keep();
    });
    $("sampling").append(make("div", {}, make("label", { for: input.id, title: about }, label), input));
    return [name, input];
  });
  const show = () => inputs.forEach(([name, input]) => (input.value = values[name] ?? ""));
  $("reset").addEventListener("click", () => {
    values = {};
    keep();
    show();
  });
  $("system").addEventListener("input", () => {
    conversation().system = $("system").value;
    changed();
  });
  $("key").addEventListener("change", () => {
    keepApiKey($("key").value.trim());
    keyChanged();
  });
  // A value out of range is not used, and must not keep the dialog open.
  dialog.querySelector("form").noValidate = true;
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.tagName === "INPUT") {
      event.preventDefault();
      event.target.dispatchEvent(new Event("change"));
      dialog.close();
    }
  });
  return {
    open(focus = null) {
      if (dialog.open) return;
      show();
      $("system").value = conversation().system;
      $("key").value = apiKey();
      dialog.showModal();
      (focus ?? $("system")).focus();
    },
  };
}
