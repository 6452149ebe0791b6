// Vercel's AI SDK, by three doors: the default of @ai-sdk/openai (responses), its .chat, and @ai-sdk/openai-compatible.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, experimental_transcribe, generateObject, generateText, streamObject, streamText } from "ai";
import { z } from "zod";
import { all, bytes, fake, isJfk, limited, speech, whisper } from "./settings.mjs";

const openai = (baseURL, apiKey = "none") => createOpenAI({ baseURL, apiKey });
const compatible = (baseURL, apiKey = "none") =>
  createOpenAICompatible({ name: "eardrum", baseURL, apiKey, includeUsage: true, supportsStructuredOutputs: true });

const DOORS = {
  "the default, responses": (url, id, key) => openai(url, key)(id),
  "openai.chat": (url, id, key) => openai(url, key).chat(id),
  "openai-compatible": (url, id, key) => compatible(url, key)(id),
};
const KEYS = { "the default, responses": "ai-sdk-responses", "openai.chat": "ai-sdk", "openai-compatible": "ai-sdk-compatible" };
const schema = z.object({ mood: z.enum(["good", "bad"]) });
const once = { maxRetries: 0 };
const hello = { ...once, prompt: "hello" };
const file = (name, mediaType) => [
  { role: "user", content: [{ type: "text", text: "What is said?" }, { type: "file", data: bytes(name), mediaType }] },
];

const raised = async (promise) => promise.then(() => assert.fail("nothing was raised"), (error) => error);

for (const [door, open] of Object.entries(DOORS)) {
  describe(door, () => {
    const model = open(fake, "fake");

    test("generateText has the text, the end and the usage", async () => {
      const answer = await generateText({ ...hello, model });
      assert.equal(answer.text, "I heard nothing. You said: hello");
      assert.equal(answer.finishReason, "stop");
      assert.equal(answer.usage.outputTokens, answer.text.length);
      assert.equal(answer.usage.totalTokens, answer.usage.inputTokens + answer.usage.outputTokens);
      const cut = await generateText({ ...once, model, prompt: "#tokens=50", maxOutputTokens: 4 });
      assert.deepEqual([cut.text, cut.finishReason], ["abcd", "length"]);
    });

    test("streamText has the same", async () => {
      const stream = streamText({ ...hello, model });
      assert.equal((await all(stream.textStream)).join(""), "I heard nothing. You said: hello");
      assert.equal(await stream.finishReason, "stop");
      assert.equal((await stream.usage).outputTokens, (await stream.text).length);
    });

    test("generateObject and streamObject follow a schema", async () => {
      const prompt = "#random";
      assert.ok(["good", "bad"].includes((await generateObject({ ...once, model, schema, prompt })).object.mood));
      const stream = streamObject({ ...once, model, schema, prompt });
      await all(stream.partialObjectStream);
      assert.ok(["good", "bad"].includes((await stream.object).mood));
    });

    test("an error has its status and message", async () => {
      await generateText({ ...hello, model: open(limited, "fake", KEYS[door]) });
      const cases = [
        [open(fake, "gpt-9"), 404, "does not exist here"],
        [open(limited, "fake", "wrong"), 401, "key"],
        [open(limited, "fake", KEYS[door]), 429, "a minute"],
      ];
      for (const [model, status, message] of cases) {
        const error = await raised(generateText({ ...hello, model }));
        assert.ok(APICallError.isInstance(error), String(error));
        assert.equal(error.statusCode, status);
        assert.ok(error.message.includes(message), error.message);
      }
    });

    test("a failure after the first byte is raised", async () => {
      const stream = streamText({ ...once, model, prompt: "#tokens=20 #fail=step", onError: () => {} });
      const parts = await all(stream.fullStream);
      assert.equal(parts.filter((part) => part.type === "error").length, 1, JSON.stringify(parts));
      assert.equal(await stream.finishReason, "error");
    });

    test("a request that is aborted ends", async () => {
      const controller = new AbortController();
      const stream = streamText({
        ...once, model, prompt: "#tokens=100000 #delay=0.01", abortSignal: controller.signal, onError: () => {},
      });
      const types = [];
      for await (const part of stream.fullStream) {
        types.push(part.type);
        if (part.type === "text-delta") controller.abort();
      }
      assert.equal(types.at(-1), "abort");
      assert.equal((await generateText({ ...once, model, prompt: "#say=free" })).text, "free");
    });
  });
}

for (const door of ["openai.chat", "openai-compatible"]) {
  test(`${door}: a file part is heard, as mp3 and wav, whole and streamed`, async () => {
    const model = DOORS[door](whisper, speech);
    for (const [name, type] of [["jfk.mp3", "audio/mpeg"], ["jfk.wav", "audio/wav"]]) {
      const messages = file(name, type);
      const { text } = await generateText({ ...once, model, messages });
      assert.ok(isJfk(text), text);
      assert.equal(await streamText({ ...once, model, messages }).text, text);
    }
  });
}

test("experimental_transcribe has the text, and with options of the provider segments, length and language", async () => {
  const request = { ...once, model: openai(whisper).transcription(speech), audio: bytes("jfk.mp3") };
  const plain = await experimental_transcribe(request);
  assert.ok(isJfk(plain.text), plain.text);
  const verbose = await experimental_transcribe({ ...request, providerOptions: { openai: { language: "en" } } });
  assert.ok(isJfk(verbose.text), verbose.text);
  assert.deepEqual([verbose.durationInSeconds, verbose.language], [11, "en"]);
  assert.ok(verbose.segments.length && verbose.segments.at(-1).endSecond <= 11);
});
