// OpenAI's client for JavaScript, unmodified: chat, stream, tools, abort, errors.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none-needed", maxRetries: 0 });
const messages = [{ role: "user", content: "hi" }];
const model = "tiny";

const whole = await client.chat.completions.create({ model, messages, max_tokens: 5 });
assert.equal(whole.choices[0].finish_reason, "length");
assert.equal(whole.usage.completion_tokens, 5);

let text = "";
const stream = await client.chat.completions.create({ model, messages, max_tokens: 5, stream: true });
for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
assert.equal(text, whole.choices[0].message.content);

const tools = [
  {
    type: "function",
    function: {
      name: "weather",
      parameters: {
        type: "object",
        properties: { CITY: { enum: ["ROME"] } },
        required: ["CITY"],
        additionalProperties: false,
      },
    },
  },
];
const runner = client.chat.completions.stream({
  model,
  messages,
  tools,
  tool_choice: { type: "function", function: { name: "weather" } },
});
const final = await runner.finalChatCompletion();
assert.deepEqual(JSON.parse(final.choices[0].message.tool_calls[0].function.arguments), { CITY: "ROME" });

const aborter = new AbortController();
const long = await client.chat.completions.create(
  { model, messages, max_tokens: 900, stream: true, ignore_eos: true },
  { signal: aborter.signal },
);
let numChunks = 0;
for await (const _ of long) if (++numChunks === 3) aborter.abort();
assert.ok(numChunks < 900); // what has come already is still told

await assert.rejects(client.chat.completions.create({ model: "gpt-4", messages }), (error) => {
  assert.ok(error instanceof OpenAI.NotFoundError);
  assert.equal(error.code, "model_not_found");
  return true;
});
