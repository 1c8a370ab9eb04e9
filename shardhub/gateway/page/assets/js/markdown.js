// Converts the model's Markdown to elements. It is untrusted: DOMPurify always sanitizes the HTML that marked makes.
import { colour } from "./colours.js";
import { copy, make } from "./dom.js";
import { showFormula } from "./formulas.js";

const { marked } = globalThis;
const purify = globalThis.DOMPurify;

const TAGS = [
  "p", "br", "hr", "strong", "em", "del", "code", "pre", "ul", "ol", "li", "blockquote", "a", "h3", "h4", "h5", "h6",
  "table", "thead", "tbody", "tr", "th", "td", "sup", "sub",
];
const ATTRIBUTES = ["href", "title", "start", "class", "align"];
const SIDES = new Set(["left", "center", "right"]);
// Formulas as models write them: \\( \\), \\[ \\] and $$ $$.
const FORMULA = /^(?:\\\([\s\S]+?\\\)|\\\[[\s\S]+?\\\]|\$\$[\s\S]+?\$\$)/;
const FORMULA_LINES = /^ {0,3}(\\\[[\s\S]+?\\\]|\$\$[\s\S]+?\$\$)[ \t]*(?:\n|$)/;
// Classes that are kept: the language of code, the mark of a formula, and the colours of code.
const CLASSES = /^(?:language-[\w+#.-]{1,30}|formula|(?:hljs-[\w-]+|[\w-]+_)(?: (?:hljs-[\w-]+|[\w-]+_))*)$/;
const LINK = /^(?:https?:|mailto:)/i;

const escape = (text) =>
  text.replace(/[&<>"']/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" })[c]);

let lastLevel = 2;

marked.use({
  gfm: true,
  breaks: false,
  extensions: [
    {
      // Markdown would remove its backslashes and read stars and underscores as emphasis.
      name: "formula",
      level: "inline",
      start: (text) => /\\\(|\\\[|\$\$/.exec(text)?.index,
      tokenizer(text) {
        const match = FORMULA.exec(text);
        return match ? { type: "formula", raw: match[0] } : undefined;
      },
      renderer: ({ raw }) => `<code class="formula">${escape(raw)}</code>`,
    },
    {
      // On lines of its own, where a line that begins with a minus would be an item of a list.
      name: "formulaLines",
      level: "block",
      start: (text) => /^ {0,3}(?:\\\[|\$\$)/m.exec(text)?.index,
      tokenizer(text) {
        const match = FORMULA_LINES.exec(text);
        return match ? { type: "formulaLines", raw: match[0], formula: match[1] } : undefined;
      },
      renderer: ({ formula }) => `<p><code class="formula">${escape(formula)}</code></p>`,
    },
  ],
  renderer: {
    // The page has its own headings above these, and heading levels must not be skipped, whatever the model writes.
    heading({ tokens, depth }) {
      const level = Math.min(6, depth + 2, lastLevel + 1);
      lastLevel = level;
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
    },
    // Loading an image would tell its server that it was viewed.
    image({ href, text }) {
      return `<a href="${escape(href)}">${escape(text || href)}</a>`;
    },
    // HTML in an answer is shown as text.
    html({ text }) {
      return escape(text);
    },
    checkbox({ checked }) {
      return checked ? "☑ " : "☐ ";
    },
  },
});

purify.addHook("afterSanitizeAttributes", (element) => {
  if (element.tagName === "A") {
    element.setAttribute("target", "_blank");
    element.setAttribute("rel", "noopener noreferrer nofollow");
  }
  if (element.hasAttribute("align") && !SIDES.has(element.getAttribute("align"))) element.removeAttribute("align");
  if (element.hasAttribute("class") && !CLASSES.test(element.className)) element.removeAttribute("class");
});

/** Convert Markdown to a fragment that is safe to show. */
export function render(text) {
  lastLevel = 2;
  const fragment = purify.sanitize(marked.parse(text), {
    ALLOWED_TAGS: TAGS,
    ALLOWED_ATTR: ATTRIBUTES,
    ALLOWED_URI_REGEXP: LINK,
    ADD_URI_SAFE_ATTR: ["align", "start"], // every other attribute must look like a link to be kept
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
    RETURN_DOM_FRAGMENT: true,
  });
  for (const pre of fragment.querySelectorAll("pre")) frameCode(pre);
  for (const formula of fragment.querySelectorAll("code.formula")) showFormula(formula);
  for (const table of fragment.querySelectorAll("table")) {
    const frame = make("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Table" });
    table.replaceWith(frame);
    frame.append(table);
  }
  return fragment;
}

function frameCode(pre) {
  const language = /language-(\S+)/.exec(pre.firstElementChild?.className ?? "")?.[1] ?? "";
  const button = make("button", { class: "text-button", type: "button", "aria-label": "Copy the code" }, "Copy");
  button.addEventListener("click", async () => {
    await copy(pre.textContent);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  const frame = make("div", { class: "code" }, make("div", { class: "code-top" }, make("span", {}, language || "code"), button));
  pre.replaceWith(frame);
  pre.setAttribute("tabindex", "0");
  pre.setAttribute("role", "region");
  pre.setAttribute("aria-label", language ? `Code, ${language}` : "Code");
  frame.append(pre);
  if (language && pre.firstElementChild) colour(pre.firstElementChild, language);
}
