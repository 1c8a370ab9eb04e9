// Shows formulas as MathML. The converter is loaded when a formula is first seen; until then its source is shown.
import { make } from "./dom.js";

// Sizes that a formula may name, so that none covers the page; and how often it may expand macros.
const LIMITS = { maxSize: [20, 200], maxExpand: 200, trust: false, strict: false, throwOnError: true };
const MAX_CHARS = 4000;
// Wider formulas of a line get a line of their own, where they can be scrolled.
const MAX_INLINE_CHARS = 60;
const OPENINGS = { "$$": "$$", "\\[": "\\]", "\\(": "\\)" };

let loading = null;

/** Show a formula in place of an element that holds its source. */
export function showFormula(element) {
  if (globalThis.temml) replace(element);
  else load().then(() => element.isConnected && replace(element), () => {}); // without the converter the source stays
}

function load() {
  loading ??= new Promise((resolve, reject) => {
    document.head.append(make("script", { src: "/page/vendor/temml.min.js", onload: resolve, onerror: reject }));
  });
  return loading;
}

function replace(element) {
  const source = element.textContent;
  const tex = source.slice(2, -OPENINGS[source.slice(0, 2)].length).trim();
  const isDisplay = !source.startsWith("\\(");
  const isWide = isDisplay || tex.length > MAX_INLINE_CHARS;
  if (!tex || tex.length > MAX_CHARS) return;
  const shown = make("span", isWide ? { class: "formula wide", tabindex: "0", role: "group", "aria-label": "Formula" } : { class: "formula" });
  try {
    globalThis.temml.render(tex, shown, { ...LIMITS, displayMode: isDisplay, macros: {} });
  } catch {
    return; // not a formula that can be read: its source stays
  }
  if (isSafe(shown)) element.replaceWith(shown);
}

/** Whether the converter made nothing but MathML: no link, image or name that the page could mistake for its own. */
function isSafe(shown) {
  return [...shown.querySelectorAll("*")].every(
    (each) =>
      (each.namespaceURI === "http://www.w3.org/1998/Math/MathML" || each.localName === "span") &&
      [...each.attributes].every(({ name }) => !/^on|^href$|^xlink:|^src$|^id$|^name$/i.test(name)),
  );
}
