// The official SDK for Node: chats, transcriptions, responses, models, and what it makes of errors.

import assert from "node:assert/strict";
import { createReadStream } from "node:fs";
import { test } from "node:test";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { all, bytes, fake, isJfk, limited, path, speech, TELL, toCall, whisper } from "./settings.mjs";

const open = (baseURL, apiKey = "none") => new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const model = open(fake);
const ears = open(whisper);

const ask = (content, options = {}) => ({ model: "fake", messages: [{ role: "user", content }], ...options });
const clip = (name) => ({
  type: "input_audio",
  input_audio: { data: bytes(name).toString("base64"), format: name.split(".").at(-1) },
});
const Mood = z.object({ mood: z.enum(["good", "bad"]) });

// ---------------------------------------------------------------------------------------------------------- chats

test("an answer has its text, its end and a usage that adds up", async () => {
  const answer = await model.chat.completions.create(ask("hello"));
  assert.equal(answer.choices[0].message.content, "I heard nothing. You said: hello");
  assert.equal(answer.choices[0].finish_reason, "stop");
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
  assert.match(answer._request_id, /^req_/);
});

test("audio is transcribed, whole and as a stream", async () => {
  for (const name of ["jfk.mp3", "jfk.wav"]) {
    const request = { ...ask([{ type: "text", text: "What is said?" }, clip(name)]), model: speech };
    const answer = await ears.chat.completions.create(request);
    assert.ok(isJfk(answer.choices[0].message.content), answer.choices[0].message.content);
    const chunks = await all(await ears.chat.completions.create({ ...request, stream: true }));
    const text = chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join("");
    assert.equal(text, answer.choices[0].message.content);
  }
});

test("a stream tells its usage last, where it is asked", async () => {
  const options = { stream: true, stream_options: { include_usage: true } };
  const chunks = await all(await model.chat.completions.create(ask("hello", options)));
  const last = chunks.at(-1);
  assert.deepEqual(last.choices, []);
  assert.equal(last.usage.total_tokens, last.usage.prompt_tokens + last.usage.completion_tokens);
  assert.ok(chunks.slice(0, -1).every((chunk) => chunk.usage === null));
});

test("the streaming helper puts the answer together", async () => {
  const stream = model.chat.completions.stream(ask("hello", { stream_options: { include_usage: true } }));
  const contents = [];
  stream.on("content", (delta) => contents.push(delta));
  const final = await stream.finalChatCompletion();
  assert.equal(final.choices[0].message.content, "I heard nothing. You said: hello");
  assert.equal(contents.join(""), final.choices[0].message.content);
  assert.equal(final.choices[0].message.role, "assistant");
  assert.equal((await stream.totalUsage()).completion_tokens, final.choices[0].message.content.length);
});

test("a limit is told as it was, by the helper too", async () => {
  const answer = await model.chat.completions.stream(ask("#tokens=50", { max_tokens: 4 })).finalChatCompletion();
  assert.equal(answer.choices[0].message.content, "abcd");
  assert.equal(answer.choices[0].finish_reason, "length");
});

test("a zod schema is followed and parsed", async () => {
  const request = ask("#random", { response_format: zodResponseFormat(Mood, "mood") });
  const answer = await model.chat.completions.parse(request);
  assert.ok(["good", "bad"].includes(answer.choices[0].message.parsed.mood));
  const streamed = await model.chat.completions.stream(request).finalChatCompletion();
  assert.ok(["good", "bad"].includes(streamed.choices[0].message.parsed.mood));
});

test("several choices come by their index", async () => {
  const request = ask("#tokens=9 #random", { n: 3, seed: 5, temperature: 1 });
  const answer = await model.chat.completions.create(request);
  const streamed = await model.chat.completions.stream(request).finalChatCompletion();
  const texts = (completion) => completion.choices.map((choice) => choice.message.content);
  assert.equal(new Set(texts(answer)).size, 3);
  assert.deepEqual(texts(streamed), texts(answer));
});

// ---------------------------------------------------------------------------------------------------------- tools

const PARIS = { city: "Paris", days: 2 };
const parameters = {
  type: "object",
  properties: { city: { type: "string" }, days: { type: "integer" } },
  required: ["city", "days"],
  additionalProperties: false,
};
const weather = { name: "get_weather", description: "The weather of a city.", parameters };
const called = ask(toCall("get_weather", PARIS), { tools: [{ type: "function", function: { ...weather, strict: true } }] });

test("a tool is called, whole and by the streaming helper", async () => {
  const whole = await model.chat.completions.create(called);
  const stream = model.chat.completions.stream(called);
  const deltas = [];
  stream.on("tool_calls.function.arguments.delta", (event) => deltas.push(event.arguments_delta));
  for (const answer of [whole, await stream.finalChatCompletion()]) {
    const [{ message, finish_reason }] = answer.choices;
    assert.deepEqual([finish_reason, message.role, message.content || null], ["tool_calls", "assistant", null]);
    const [call] = message.tool_calls;
    assert.deepEqual([message.tool_calls.length, call.type, call.function.name], [1, "function", "get_weather"]);
    assert.match(call.id, /^call_/);
    assert.deepEqual(JSON.parse(call.function.arguments), PARIS);
  }
  assert.ok(deltas.length > 10, "they come as they are written");
  assert.deepEqual(JSON.parse(deltas.join("")), PARIS);
});

test("a tool is called in a stream of chunks: named once, later deltas have arguments only", async () => {
  const chunks = await all(await model.chat.completions.create({ ...called, stream: true }));
  const [first, ...later] = chunks.flatMap((chunk) => chunk.choices[0].delta.tool_calls ?? []);
  assert.deepEqual([first.index, first.type, first.function], [0, "function", { name: "get_weather", arguments: "" }]);
  for (const delta of later) assert.deepEqual(Object.keys(delta).sort(), ["function", "index"]);
  assert.deepEqual(JSON.parse(later.map((delta) => delta.function.arguments).join("")), PARIS);
  assert.equal(chunks.at(-1).choices[0].finish_reason, "tool_calls");
});

test("runTools sends a tool's result back, whole and streamed", async () => {
  for (const stream of [false, true]) {
    const heard = [];
    const listen = (args) => heard.push(args) && TELL;
    const tools = [{ type: "function", function: { ...weather, parse: JSON.parse, function: listen } }];
    const runner = model.chat.completions.runTools({ ...called, tools, stream });
    const { history } = JSON.parse(await runner.finalContent());
    assert.deepEqual(heard, [PARIS]);
    assert.deepEqual(history.map((turn) => turn.role), ["user", "assistant", "tool"]);
    assert.equal(history[2].tool_call_id, history[1].tool_calls[0].id);
    assert.deepEqual(history[1].tool_calls[0].function, { name: "get_weather", arguments: PARIS });
  }
});

test("a zod function is parsed, where it must be called", async () => {
  const tools = [zodFunction({ name: "feel", parameters: Mood })];
  const request = ask("#random", { tools, tool_choice: "required", parallel_tool_calls: false });
  const streamed = model.chat.completions.stream(request).finalChatCompletion();
  for (const answer of [await model.chat.completions.parse(request), await streamed]) {
    const [call] = answer.choices[0].message.tool_calls;
    assert.ok(["good", "bad"].includes(call.function.parsed_arguments.mood));
  }
});

// --------------------------------------------------------------------------------------------------------- errors

const raised = async (promise) => promise.then(() => assert.fail("nothing was raised"), (error) => error);

test("an error has its class, message, code, param and request id", async () => {
  const key = "openai-js";
  await open(limited, key).chat.completions.create(ask("hello"));
  const cases = [
    [model, ask([{ type: "input_audio", input_audio: { data: "bm9wZQ==", format: "wav" } }]), "BadRequestError",
      "invalid_audio", "messages[0].content[0].input_audio.data"],
    [open(limited, "wrong"), ask("hello"), "AuthenticationError", "invalid_api_key", null],
    [model, { ...ask("hello"), model: "gpt-9" }, "NotFoundError", "model_not_found", "model"],
    [open(limited, key), ask("hello"), "RateLimitError", "rate_limit_exceeded", null],
    [model, ask("#fail=prefill"), "InternalServerError", "internal_error", null],
  ];
  for (const [client, request, name, code, param] of cases) {
    const error = await raised(client.chat.completions.create(request));
    assert.ok(error instanceof OpenAI[name], `${error.constructor.name} instead of ${name}`);
    assert.deepEqual([error.code, error.param], [code, param]);
    assert.match(error.requestID, /^req_/);
    assert.ok(error.message.startsWith(`${error.status} `) && error.error.message, error.message);
    assert.ok(error.message.endsWith(error.error.message), error.message);
  }
});

test("an unknown route keeps its message", async () => {
  const error = await raised(model.post("/no/such/route", { body: {} }));
  assert.ok(error instanceof OpenAI.NotFoundError);
  assert.equal(error.code, "not_found");
});

test("a failure after the first byte raises, by the iterator and the helper", async () => {
  const request = ask("#tokens=20 #fail=step");
  const stream = await model.chat.completions.create({ ...request, stream: true });
  const error = await raised(all(stream));
  assert.ok(error instanceof OpenAI.APIError);
  assert.equal(error.code, "internal_error");
  const helper = await raised(model.chat.completions.stream(request).finalChatCompletion());
  assert.ok(helper instanceof OpenAI.OpenAIError);
});

test("a request that is aborted raises, and the row is free for the next", async () => {
  for (let i = 0; i < 20; i++) {
    const controller = new AbortController();
    const request = ask("#tokens=100000 #delay=0.01", { stream: true });
    const stream = await model.chat.completions.create(request, { signal: controller.signal });
    for await (const chunk of stream) {
      assert.ok(chunk.id);
      controller.abort();
    }
  }
  const answer = await model.chat.completions.create(ask("#say=free"));
  assert.equal(answer.choices[0].message.content, "free");
});

// ------------------------------------------------------------------------------------------------- transcriptions

test("a file is transcribed in every format", async () => {
  const formats = { json: (a) => a.text, text: (a) => a, verbose_json: (a) => a.text, srt: (a) => a, vtt: (a) => a };
  for (const [response_format, text] of Object.entries(formats)) {
    const file = createReadStream(path("jfk.mp3"));
    const answer = await ears.audio.transcriptions.create({ model: speech, file, response_format });
    const plain = text(answer).replace(/^WEBVTT\s*/, "").replace(/^(\d+\n)?[\d:,.]+ --> [\d:,.]+\n/, "");
    assert.ok(isJfk(plain), `${response_format}: ${JSON.stringify(answer)}`);
    if (response_format === "verbose_json") {
      assert.equal(answer.duration, 11);
      assert.ok(answer.segments.length && answer.segments[0].end > 0);
    }
  }
});

test("a transcription is streamed, and done once", async () => {
  const file = createReadStream(path("jfk.webm"));
  const events = await all(await ears.audio.transcriptions.create({ model: speech, file, stream: true }));
  const done = events.filter((event) => event.type === "transcript.text.done");
  const deltas = events.filter((event) => event.type === "transcript.text.delta").map((event) => event.delta);
  assert.equal(done.length, 1);
  assert.equal(deltas.join(""), done[0].text);
  assert.ok(isJfk(done[0].text));
  assert.equal(done[0].usage.total_tokens, done[0].usage.input_tokens + done[0].usage.output_tokens);
});

test("lists in a form are read", async () => {
  const file = createReadStream(path("jfk.mp3"));
  const options = { response_format: "verbose_json", timestamp_granularities: ["segment"] };
  const answer = await ears.audio.transcriptions.create({ model: speech, file, ...options });
  assert.ok(answer.segments.length);
  const words = { ...options, timestamp_granularities: ["word"], file: createReadStream(path("jfk.mp3")) };
  const error = await raised(ears.audio.transcriptions.create({ model: speech, ...words }));
  assert.match(error.param, /^timestamp_granularities/);
});

// ------------------------------------------------------------------------------------------------------ responses

test("a response is created, streamed and parsed", async () => {
  const answer = await model.responses.create({ model: "fake", input: "hello", instructions: "be short" });
  assert.equal(answer.output_text, "I heard nothing. You said: hello");
  const events = await all(await model.responses.create({ model: "fake", input: "hello", stream: true }));
  assert.deepEqual(events.map((event) => event.sequence_number), [...events.keys()]);
  assert.equal(events.at(-1).type, "response.completed");
  const final = await model.responses.stream({ model: "fake", input: "hello" }).finalResponse();
  assert.equal(final.output_text, answer.output_text);
  assert.equal(final.usage.total_tokens, final.usage.input_tokens + final.usage.output_tokens);
});

test("a response hears audio", async () => {
  const content = [{ type: "input_text", text: "What is said?" }, clip("jfk.mp3")];
  const answer = await ears.responses.create({ model: speech, input: [{ role: "user", content }] });
  assert.ok(isJfk(answer.output_text));
});

test("a response calls a function, and is told what came of it", async () => {
  const tools = [{ type: "function", ...weather, strict: true }];
  const input = [{ role: "user", content: toCall("get_weather", PARIS) }];
  const request = { model: "fake", input, tools };
  const whole = await model.responses.create(request);
  const streamed = await model.responses.stream(request).finalResponse();
  for (const { output } of [whole, streamed]) {
    const [call] = output;
    assert.deepEqual([output.length, call.type, call.name], [1, "function_call", "get_weather"]);
    assert.deepEqual(JSON.parse(call.arguments), PARIS);
    const result = { type: "function_call_output", call_id: call.call_id, output: TELL };
    const answer = await model.responses.create({ ...request, input: [...input, ...output, result] });
    const { history } = JSON.parse(answer.output_text);
    assert.deepEqual(history.map((turn) => turn.role), ["user", "assistant", "tool"]);
    assert.deepEqual([history[2].tool_call_id, history[2].name], [call.call_id, "get_weather"]);
  }
});

// --------------------------------------------------------------------------------------------------------- models

test("models are listed and retrieved", async () => {
  const [card] = await all(ears.models.list());
  assert.deepEqual([card.id, card.object, typeof card.created, card.owned_by], [speech, "model", "number", "eardrum"]);
  assert.equal((await ears.models.retrieve(card.id)).id, card.id);
  assert.ok((await raised(ears.models.retrieve("org/none"))) instanceof OpenAI.NotFoundError);
});
