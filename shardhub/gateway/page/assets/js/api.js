// Requests to the gateway that serves this page.

const KEY = "shardhub.key";

/** A refusal of the gateway, or a failure of the connection. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

export function apiKey() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

export function keepApiKey(key) {
  try {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  } catch { /* a browser that keeps nothing */ }
}

/** Send a request. An answer with a status other than 2xx becomes an ApiError. */
export async function call(path, { body, signal } = {}) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (apiKey()) headers.Authorization = `Bearer ${apiKey()}`;
  let answer;
  try {
    answer = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError("The gateway does not answer. Is it still running?");
  }
  if (answer.ok) return answer;
  let found = {};
  try {
    found = (await answer.json()).error ?? {};
  } catch { /* not ours: a proxy's page */ }
  throw new ApiError(found.message ?? `The gateway answered ${answer.status}.`, {
    status: answer.status,
    code: found.code ?? null,
    retryAfter: Number(answer.headers.get("Retry-After")) || null,
  });
}

/**
 * Yield the server-sent events of an answer as they arrive: {data} or {comment}.
 *
 * EventSource cannot be used, because it can neither post nor send a key.
 */
export async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      const blocks = rest.split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        if (block.startsWith("data:")) yield { data: block.slice(5).trim() };
        else if (block.startsWith(":")) yield { comment: block.slice(1).trim() };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * Stream a chat's answer: {text}, {reasoning}, {progress}, {finish} and {usage}.
 *
 * A stream that ends without [DONE] was cut off, which is an error.
 */
export async function* answerTo(body, signal) {
  const request = { ...body, stream: true, stream_options: { include_usage: true } };
  const answer = await call("/v1/chat/completions", { body: request, signal });
  try {
    for await (const { data, comment } of events(answer)) {
      if (comment !== undefined) {
        const found = /(\d+)\/(\d+)/.exec(comment);
        if (found) yield { progress: [Number(found[1]), Number(found[2])] };
        continue;
      }
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(chunk.error.message, { code: chunk.error.code });
      const [choice] = chunk.choices;
      if (choice) {
        const delta = choice.delta ?? {};
        const reasoning = delta.reasoning_content ?? delta.reasoning;
        if (reasoning) yield { reasoning };
        if (delta.content) yield { text: delta.content };
        if (choice.finish_reason) yield { finish: choice.finish_reason };
      }
      if (chunk.usage) yield { usage: chunk.usage };
    }
  } catch (error) {
    if (signal?.aborted || error instanceof ApiError) throw error;
    throw new ApiError("The connection broke before the answer was complete.");
  }
  throw new ApiError("The answer was cut off.");
}
