// Vercel's AI SDK, by three doors: the default of @ai-sdk/openai (responses), its .chat, and @ai-sdk/openai-compatible.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import {
  APICallError, experimental_transcribe, generateObject, generateText, stepCountIs, streamObject, streamText, tool,
} from "ai";
import { z } from "zod";
import { all, bytes, fake, isJfk, limited, speech, TELL, toCall, whisper } from "./settings.mjs";

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

const PARIS = { city: "Paris", days: 2 };
const inputSchema = z.object({ city: z.enum(["Paris", "Rome"]), days: z.literal([1, 2]) });
const weather = tool({ description: "The weather of a city.", inputSchema, execute: async () => TELL });
const asked = { ...once, tools: { weather }, stopWhen: stepCountIs(2), prompt: toCall("weather", PARIS) };

function checkTold(text, call) {
  const { history } = JSON.parse(text);
  assert.deepEqual(history.map((turn) => turn.role), ["user", "assistant", "tool"]);
  assert.deepEqual(history[1].tool_calls[0].function, { name: "weather", arguments: PARIS });
  assert.deepEqual([history[1].tool_calls[0].id, history[2].tool_call_id], [call.toolCallId, call.toolCallId]);
}

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

    test("generateText calls a tool, and goes on with its result", async () => {
      const { steps, text, totalUsage } = await generateText({ ...asked, model });
      assert.deepEqual(steps.map((step) => step.finishReason), ["tool-calls", "stop"]);
      const [call] = steps[0].toolCalls;
      assert.deepEqual([steps[0].toolCalls.length, call.toolName, call.input], [1, "weather", PARIS]);
      assert.equal(steps[0].toolResults[0].output, TELL);
      checkTold(text, call);
      assert.equal(totalUsage.totalTokens, steps[0].usage.totalTokens + steps[1].usage.totalTokens);
    });

    test("streamText has the call's input as it is written, the call, and its result", async () => {
      const stream = streamText({ ...asked, model });
      const parts = await all(stream.fullStream);
      const of = (type) => parts.filter((part) => part.type === type);
      const deltas = of("tool-input-delta").map((part) => part.delta);
      assert.ok(deltas.length > 10, String(deltas.length));
      assert.deepEqual(JSON.parse(deltas.join("")), PARIS);
      const [[call], [result]] = [of("tool-call"), of("tool-result")];
      assert.deepEqual([call.toolName, call.input, result.toolCallId], ["weather", PARIS, call.toolCallId]);
      assert.deepEqual(of("finish-step").map((part) => part.finishReason), ["tool-calls", "stop"]);
      checkTold(await stream.text, call);
    });

    test("a call that is required comes, and its input follows the schema", async () => {
      const request = { ...once, model, tools: { weather }, toolChoice: "required", prompt: "#random" };
      const { toolCalls } = await generateText(request);
      assert.ok(inputSchema.safeParse(toolCalls[0].input).success, JSON.stringify(toolCalls));
      const [streamed] = await streamText(request).toolCalls;
      assert.ok(inputSchema.safeParse(streamed.input).success, JSON.stringify(streamed));
      assert.notEqual(streamed.invalid, true);
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

test("the default refers to stored items, where a text comes before a call: refused, and whole with store: false", async () => {
  const model = openai(fake)("fake");
  const text = asked.prompt.replace("#text=", "#text=Yes.");
  const error = await raised(generateText({ ...asked, model, prompt: text }));
  assert.deepEqual([error.statusCode, error.message.includes("store: false")], [400, true], error.message);
  const answer = await generateText({ ...asked, model, prompt: text, providerOptions: { openai: { store: false } } });
  assert.equal(answer.steps[0].text, "Yes.");
  checkTold(answer.text, answer.steps[0].toolCalls[0]);
});

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
  const newer = experimental_transcribe({ ...request, providerOptions: { openai: { keywords: ["Kennedy"] } } });
  assert.match((await raised(newer)).message, /keywords/);
});
