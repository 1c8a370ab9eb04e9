// The AI SDK with its OpenAI-compatible provider, unmodified: streamText and generateObject.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, streamText } from "ai";
import { z } from "zod";

const provider = createOpenAICompatible({
  name: "shardhub",
  baseURL: `${process.argv[2]}/v1`,
  supportsStructuredOutputs: true,
  includeUsage: true,
});
const model = provider("tiny");

const streamed = streamText({ model, prompt: "hi", maxOutputTokens: 6, maxRetries: 0 });
let text = "";
for await (const piece of streamed.textStream) text += piece;
assert.ok(text.length > 0);
assert.equal(await streamed.finishReason, "length");
assert.equal((await streamed.usage).outputTokens, 6);

const { object } = await generateObject({
  model,
  maxRetries: 0,
  prompt: "hi",
  temperature: 1.1,
  seed: 2,
  schema: z.object({ NAME: z.enum(["ADA", "BOB"]), AGE: z.number().int().min(0).max(99) }),
});
assert.ok(["ADA", "BOB"].includes(object.NAME));
assert.ok(object.AGE >= 0 && object.AGE <= 99);
