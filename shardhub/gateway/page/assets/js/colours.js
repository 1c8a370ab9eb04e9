// Colours the syntax of code blocks. The highlighter and each language are loaded when a block first needs them.

const purify = globalThis.DOMPurify;

// Languages by the names that models give them.
const LANGUAGES = {
  bash: ["bash", "sh", "zsh"],
  c: ["c", "h"],
  cpp: ["cpp", "c++", "cc", "hpp"],
  csharp: ["csharp", "cs", "c#"],
  css: ["css"],
  diff: ["diff", "patch"],
  dockerfile: ["dockerfile", "docker"],
  go: ["go", "golang"],
  ini: ["ini", "toml"],
  java: ["java"],
  javascript: ["javascript", "js", "jsx", "mjs"],
  json: ["json", "jsonc"],
  kotlin: ["kotlin", "kt"],
  lua: ["lua"],
  markdown: ["markdown", "md"],
  php: ["php"],
  python: ["python", "py", "python3"],
  ruby: ["ruby", "rb"],
  rust: ["rust", "rs"],
  shell: ["shell", "console", "shellsession"],
  sql: ["sql"],
  swift: ["swift"],
  typescript: ["typescript", "ts", "tsx"],
  xml: ["xml", "html", "svg"],
  yaml: ["yaml", "yml"],
};
const BY_NAME = new Map(Object.entries(LANGUAGES).flatMap(([file, names]) => names.map((name) => [name, file])));
// Longer blocks stay plain: colouring them again with each token would take too long.
const MAX_CHARS = 30_000;
const MAX_KEPT = 64;

const loads = new Map();
const ready = new Set();
const kept = new Map();
let highlighter = null;

/** Colour the code in an element, at once if its language is loaded, else as soon as it is. */
export function colour(code, name) {
  const language = BY_NAME.get(name.toLowerCase());
  if (!language || code.textContent.length > MAX_CHARS) return;
  if (ready.has(language)) apply(code, language);
  else load(language).then(() => apply(code, language), () => {}); // without its language the code stays plain
}

function load(language) {
  if (!loads.has(language)) loads.set(language, fetchOf(language));
  return loads.get(language);
}

async function fetchOf(language) {
  const [core, grammar] = await Promise.all([
    import("/page/vendor/highlight/core.min.js"),
    import(`/page/vendor/highlight/languages/${language}.min.js`),
  ]);
  highlighter = core.default;
  highlighter.registerLanguage(language, grammar.default);
  ready.add(language);
}

function apply(code, language) {
  const text = code.textContent;
  const key = `${language}\n${text}`;
  if (!kept.has(key)) {
    if (kept.size >= MAX_KEPT) kept.delete(kept.keys().next().value);
    kept.set(key, highlighter.highlight(text, { language, ignoreIllegals: true }).value);
  }
  // The highlighter escapes the text; its result is trusted no more than the model's.
  code.replaceChildren(purify.sanitize(kept.get(key), { ALLOWED_TAGS: ["span"], ALLOWED_ATTR: ["class"], RETURN_DOM_FRAGMENT: true }));
}
