// The page's modules that need no page.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { test } from "node:test";

globalThis.document = { baseURI: "http://127.0.0.1/" }; // all that api.js wants of one
const { events } = await import("../../web/api.js");
const { chatSnippets, filePart, transcriptionSnippets } = await import("../../web/snippets.js");
const { srt, vtt } = await import("../../web/subtitles.js");
const { peaks, wav } = await import("../../web/audio.js");

const stream = (chunks) => ReadableStream.from(chunks);
const all = async (source) => {
  const found = [];
  for await (const each of source) found.push(each);
  return found;
};

test("events come out whole wherever the bytes are cut", async () => {
  const bytes = new TextEncoder().encode('data: {"a":"é"}\n\ndata:{"b":1}\r\n\r\n: a comment\n\ndata: [DONE]\n\n');
  for (let size = 1; size <= bytes.length; size++) {
    const cut = Array.from({ length: Math.ceil(bytes.length / size) }, (_, i) => bytes.slice(i * size, (i + 1) * size));
    assert.deepEqual(await all(events(stream(cut))), ['{"a":"é"}', '{"b":1}', "[DONE]"]);
  }
});

test("subtitles past an hour, with what WebVTT escapes", () => {
  const segments = [
    { start: 0, end: 59.9996, text: " one\n two" },
    { start: 3661.25, end: 3662, text: "a < b & c" },
  ];
  assert.equal(
    srt(segments),
    "1\n00:00:00,000 --> 00:01:00,000\none two\n\n2\n01:01:01,250 --> 01:01:02,000\na < b & c\n\n",
  );
  assert.match(vtt(segments), /^WEBVTT\n\n00:00:00\.000 --> 00:01:00\.000\none two\n\n[^]*\na &lt; b &amp; c\n\n$/);
});

test("a WAV file holds its samples", () => {
  const bytes = new DataView(wav(new Float32Array([0, 1, -1, 2]), 16_000));
  assert.equal(bytes.byteLength, 52);
  const told = [24, 28, 40].map((at) => bytes.getUint32(at, true)); // samples and bytes of a second, bytes of all
  assert.deepEqual(told, [16_000, 32_000, 8]);
  assert.deepEqual(
    [44, 46, 48, 50].map((at) => bytes.getInt16(at, true)),
    [0, 32767, -32767, 32767],
  );
});

test("a recording loses nothing at its end", async () => {
  const sent = [];
  let Tap;
  globalThis.AudioWorkletProcessor = class {
    port = { postMessage: (message) => sent.push(message) };
  };
  globalThis.registerProcessor = (_, processor) => (Tap = processor);
  await import("../../web/tap.js");
  const tap = new Tap();
  const heard = Float32Array.from({ length: 128 * 17 }, (_, i) => i);
  for (let at = 0; at < heard.length; at += 128) tap.process([[heard.subarray(at, at + 128)]]);
  tap.process([[]]); // no microphone any more
  tap.port.onmessage();
  assert.equal(sent.pop(), null);
  assert.deepEqual(
    sent.flatMap((block) => [...block]),
    [...heard],
  );
});

test("peaks are those of their piece, relative to the loudest", () => {
  assert.deepEqual(peaks(new Float32Array([0, 0.25, -0.5, 0]), 2), [0.5, 1]);
  assert.deepEqual(peaks(new Float32Array(4), 2), [0, 0]);
  assert.deepEqual(peaks(new Float32Array([0.5]), 3), [0, 0, 1]);
});

test("a key never stands in code, only where it is read from", () => {
  const request = { model: "m", messages: [{ role: "user", content: "hi" }], stream: true };
  const [open, keyed] = [false, true].map((is) => chatSnippets("http://h/v1", request, is));
  assert.doesNotMatch(open.curl, /OPENAI_API_KEY/);
  assert.match(keyed.curl, /Bearer \$OPENAI_API_KEY/);
  assert.match(open.python, /api_key="none"/);
  assert.doesNotMatch(keyed.python, /api_key/);
  assert.doesNotMatch(keyed.javascript, /apiKey/);
});

test("what only this server knows goes into the Python SDK's extra_body", () => {
  const request = { model: "m", messages: [], temperature: 0, top_k: 3, long_audio: "chunk" };
  const { python } = chatSnippets("http://h/v1", request, false);
  assert.match(
    python,
    /\n {4}temperature=0,\n {4}extra_body=\{\n {6}"top_k": 3,\n {6}"long_audio": "chunk"\n {4}\},\n\)/,
  );
});

test("what the shell reads is what was asked", () => {
  const content = 'It\'s "quoted", `x` $HOME $(x) \\n \\\\ é\nEND\n';
  const request = { model: "m", messages: [{ role: "user", content }], n: null, stream: true, stop: [] };
  const { curl } = chatSnippets("http://h/v1", request, true);
  const body = execFileSync("bash", ["-c", `curl() { cat; }\n${curl}`], { encoding: "utf8" });
  assert.deepEqual(JSON.parse(body), request);
});

test("a file's name cannot break out of the shell", () => {
  const name = `it's "$(x)".wav`;
  const { curl } = transcriptionSnippets("http://h/v1", "transcriptions", [["model", "m"]], name, false);
  assert.ok(curl.endsWith(`-F 'file=@"it'\\''s \\"$(x)\\".wav"'`), curl);
  const chat = chatSnippets("http://h/v1", { messages: [filePart(name, "wav")] }, false);
  assert.ok(chat.curl.includes(`$(base64 < 'it'\\''s "$(x)".wav' | tr -d '\\n')`), chat.curl);
});
