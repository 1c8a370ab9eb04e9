// Conversations stored in this browser, each under its own key, so that two tabs do not overwrite each other's.

const PREFIX = "shardhub.conversation.";

const randomId = () => Array.from(crypto.getRandomValues(new Uint8Array(9)), (n) => n.toString(36).padStart(2, "0")).join("");

/** Make a conversation without messages. It is saved once it has one. */
export const blank = (system = "") => ({ id: randomId(), created: Date.now(), changed: Date.now(), system, messages: [] });

/** The title of a conversation: its beginning. */
export function title(conversation) {
  const text = conversation.messages.find((m) => m.role === "user")?.content.trim().replace(/\s+/g, " ") ?? "";
  return text ? (text.length > 60 ? `${text.slice(0, 59)}…` : text) : "New conversation";
}

function isMessage(value) {
  return typeof value === "object" && value !== null && ["user", "assistant"].includes(value.role) && typeof value.content === "string";
}

function read(key) {
  try {
    const value = JSON.parse(localStorage.getItem(key));
    const isWhole = typeof value.id === "string" && Array.isArray(value.messages) && value.messages.every(isMessage);
    return isWhole ? { created: 0, changed: 0, system: "", ...value } : null;
  } catch {
    return null; // left in place, although it cannot be read: it may be another version's
  }
}

/** All stored conversations, latest first. */
export function all() {
  try {
    const keys = Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
    return keys.map(read).filter(Boolean).sort((a, b) => b.changed - a.changed);
  } catch {
    return [];
  }
}

/** Save a conversation. Returns false if the browser's storage is full. */
export function keep(conversation) {
  try {
    localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
    return true;
  } catch {
    return false;
  }
}

export function drop(conversation) {
  try {
    localStorage.removeItem(PREFIX + conversation.id);
  } catch { /* nothing was kept */ }
}

/** Call back when another tab changed conversations. */
export function onOtherTab(changed) {
  addEventListener("storage", (event) => {
    if (event.key === null || event.key.startsWith(PREFIX)) changed();
  });
}

function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const fileName = (conversation) =>
  title(conversation).toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 40) || "conversation";

/** Export a conversation with all its data. */
export function exportJson(conversation, model) {
  const data = { format: "shardhub-conversation", version: 1, title: title(conversation), model, ...conversation };
  save(`${fileName(conversation)}.json`, "application/json", `${JSON.stringify(data, null, 2)}\n`);
}

/** Export a conversation as readable text. */
export function exportMarkdown(conversation, model) {
  const parts = [`# ${title(conversation)}`, `${model}, ${new Date(conversation.created).toLocaleString("en-GB")}`];
  if (conversation.system) parts.push("## System", conversation.system);
  for (const message of conversation.messages) {
    parts.push(message.role === "user" ? "## You" : "## Model", message.content);
  }
  save(`${fileName(conversation)}.md`, "text/markdown", `${parts.join("\n\n")}\n`);
}
