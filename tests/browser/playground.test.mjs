// The playground in a real browser, on a real server with the embedded Whisper, and on one with the fake model and a key.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtempSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { promisify } from "node:util";

import { wav } from "../../web/audio.js";
import { JFK, ROOT, answerOf, ask, clip, drop, launch, nextRequest, openPage, startServer, words } from "./support.mjs";

const KEY = "a-secret-key";
const AXE = readFileSync(new URL("node_modules/axe-core/axe.min.js", import.meta.url), "utf8");
const THEMES = ["light", "dark"];

const run = promisify(execFile);
// Before any test, so that no test's time goes into it.
const browser = await launch();
const [whisper, fake] = await Promise.all([
  startServer([]),
  startServer(["--model", "fake"], { EARDRUM_API_KEYS: KEY }),
]);

after(async () => {
  await browser.close();
  await Promise.all([whisper.stop(), fake.stop()]);
});

/** A test with a page of its own, which must have had no trouble at its end but what `expected` names. */
function onPage(name, server, body, { expected, ...options } = {}) {
  test(name, { timeout: 120_000 }, async () => {
    const opened = await openPage(browser, server.url, options);
    try {
      await opened.page.locator("#model option").first().waitFor({ state: "attached" });
      await body(opened.page);
      const troubles = opened.troubles.filter((trouble) => !expected?.test(trouble));
      assert.deepEqual(troubles, []);
    } finally {
      await opened.close();
    }
  });
}

const onWhisper = (name, body, options) => onPage(name, whisper, body, options);

/** With the key that it wants. */
const onFake = (name, body) => onPage(name, fake, body, { key: KEY });

// ---------------------------------------------------------------------------------------------------------------- audio

onWhisper("a recording gets its transcript", async (page) => {
  await page.getByRole("button", { name: "Record" }).click();
  const stop = page.getByRole("button", { name: /^Stop 0:12/ }); // the clip is 11 seconds long
  await stop.click();
  const clips = page.getByRole("list", { name: "Clips for the next question" });
  await clips.locator(".rest").waitFor();
  assert.equal(await clips.locator(".clip-name").innerText(), "recording-1.wav");
  assert.match(await clips.locator(".length").innerText(), /^0:1[23]$/);
  const turn = await ask(page, "What is said?");
  assert.equal(words(await answerOf(turn)), JFK);
});

onWhisper("dropped files have waveforms and lengths, can be played, and are heard", async (page) => {
  await drop(page, "jfk.ogg", "jfk.m4a");
  await page.locator(".clip .rest").nth(1).waitFor();
  assert.deepEqual(await page.locator(".clip .length").allInnerTexts(), ["0:11", "0:11"]);
  const bars = await page.locator(".clip .rest path").first().getAttribute("d");
  assert.ok(new Set(bars.match(/V[\d.]+/g)).size > 50, "a real waveform has bars of many heights");

  await page.getByRole("button", { name: "Play jfk.m4a" }).click();
  await page.getByRole("button", { name: "Pause jfk.m4a" }).waitFor();
  await page.waitForFunction(() => document.querySelectorAll(".wave input")[1].value > 0);
  await page.getByRole("button", { name: "Play jfk.ogg" }).click();
  await page.getByRole("button", { name: "Play jfk.m4a" }).waitFor(); // one at a time
  assert.ok((await page.locator(".wave input").nth(1).inputValue()) < 10, "it was paused, and did not end");

  const turn = await ask(page);
  assert.equal(words(await answerOf(turn)), `${JFK} ${JFK}`);
  const figures = await turn.locator(".figures").innerText();
  assert.match(figures, /\d s to first token[^]*\d tokens\/s[^]*22\.0 s heard/);
});

onWhisper("a clip that was not meant can be removed", async (page) => {
  await drop(page, "jfk.ogg", "cv-en-no.mp3");
  await page.getByRole("button", { name: "Remove jfk.ogg" }).click();
  const turn = await ask(page);
  assert.equal(words(await answerOf(turn)), "no");
});

onWhisper(
  "a bad file is told in the API's words, and the question comes back",
  async (page) => {
    const broken = "not audio at all";
    const file = { name: "broken.ogg", mimeType: "audio/ogg", buffer: Buffer.from(broken) };
    await page.setInputFiles("#picker", file);
    await page.getByText("no preview").waitFor();
    const turn = await ask(page, "What is said?");
    const told = await turn.getByRole("alert").innerText();
    const data = Buffer.from(broken).toString("base64");
    const part = { type: "input_audio", input_audio: { data } };
    const body = JSON.stringify({ model: "whisper-tiny.en", messages: [{ role: "user", content: [part] }] });
    const answer = await fetch(`${whisper.url}/v1/chat/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body,
    });
    const { error } = await answer.json();
    assert.ok(told.includes(error.message), told);
    assert.ok(told.includes(error.param), told);

    await turn.getByRole("button", { name: "Edit and ask again" }).click();
    assert.equal(await page.getByLabel("Question", { exact: true }).inputValue(), "What is said?");
    await page.getByRole("button", { name: "Remove broken.ogg" }).click();
    await drop(page, "cv-en-no.mp3");
    const request = nextRequest(page, "/chat/completions");
    assert.equal(words(await answerOf(await ask(page))), "no");
    assert.equal((await request).messages.length, 1, "what failed is no part of the conversation");
  },
  { expected: /status of 400/ },
);

onWhisper("where there is no microphone, the page says why", async (page) => {
  const record = page.getByRole("button", { name: "Record" });
  await page.addInitScript(() => {
    navigator.mediaDevices.getUserMedia = async () => {
      throw new DOMException("", "NotAllowedError");
    };
  });
  await page.reload();
  await record.click();
  await page.getByRole("alert").getByText("allow it for this page").waitFor();
  assert.ok(await record.isEnabled(), "it can be tried again");

  await page.addInitScript(() => Object.defineProperty(navigator, "mediaDevices", { value: undefined })); // plain http
  await page.reload();
  assert.ok(await record.isDisabled());
  await page.getByText("only to pages from https:// or localhost").first().waitFor();
});

// ----------------------------------------------------------------------------------------------------------------- chat

onWhisper("a second question goes with the first, its clips and its answer", async (page) => {
  await drop(page, "cv-en-no.mp3");
  const answer = await answerOf(await ask(page, "What is said?"));
  const sent = nextRequest(page, "/chat/completions");
  const second = await ask(page, "Are you sure?");
  await answerOf(second);
  const { messages } = await sent;
  assert.deepEqual(
    messages.map(({ role }) => role),
    ["user", "assistant", "user"],
  );
  assert.deepEqual(
    messages[0].content.map(({ type }) => type),
    ["input_audio", "text"],
  );
  assert.equal(messages[0].content[0].input_audio.data, readFileSync(clip("cv-en-no.mp3")).toString("base64"));
  assert.deepEqual(messages.slice(1), [
    { role: "assistant", content: answer },
    { role: "user", content: "Are you sure?" },
  ]);
  assert.ok(await page.locator(".turn").first().getByText("cv-en-no.mp3").isVisible());

  await page.getByRole("button", { name: "New chat" }).click();
  assert.equal(await page.locator(".turn").count(), 0);
});

onWhisper("where nothing is said, that is told, and the conversation goes on", async (page) => {
  const silence = {
    name: "silence.wav",
    mimeType: "audio/wav",
    buffer: Buffer.from(wav(new Float32Array(16_000), 16_000)),
  };
  await page.setInputFiles("#picker", silence);
  assert.equal(await answerOf(await ask(page)), "The model heard nothing to say.");
  const sent = nextRequest(page, "/chat/completions");
  await answerOf(await ask(page, "Nothing?"));
  assert.deepEqual((await sent).messages[1], { role: "assistant", content: "" });
});

onFake("an answer is seen growing, and its figures are true", async (page) => {
  await page.evaluate(() => {
    window.lengths = [];
    const seen = () => window.lengths.push(document.querySelector(".said:not(.waiting)")?.textContent.length ?? 0);
    new MutationObserver(seen).observe(document.getElementById("conversation"), {
      subtree: true,
      childList: true,
      characterData: true,
    });
  });
  const turn = await ask(page, "#tokens=40 #delay=0.05 #prefill=0.3");
  const letters = await answerOf(turn);
  assert.equal(letters.length, 40);
  const lengths = new Set((await page.evaluate("window.lengths")).filter((length) => length > 0));
  assert.ok(lengths.size > 15, `${lengths.size} different lengths were seen`);
  const figures = await turn.locator(".figures").innerText();
  const [first, rate] = [/([\d.]+) s to first token/, /([\d.]+) tokens\/s/].map((each) =>
    Number(figures.match(each)[1]),
  );
  assert.ok(first >= 0.3 && first < 5, figures);
  assert.ok(rate > 2 && rate <= 21, figures); // 20 in a second, and less on a busy machine
});

onFake("an answer can be stopped, and the conversation goes on from what was said", async (page) => {
  const turn = await ask(page, "#tokens=50000 #delay=0.02");
  await page.waitForFunction(() => document.querySelector(".said:not(.waiting)")?.textContent.length > 5);
  const left = page.waitForEvent("requestfailed");
  await page.getByRole("button", { name: "Stop" }).click();
  await left;
  const said = await answerOf(turn);
  assert.match(await turn.locator(".figures").innerText(), /stopped/);
  const sent = nextRequest(page, "/chat/completions");
  assert.match(await answerOf(await ask(page, "hello")), /You said: hello/);
  assert.equal((await sent).messages[1].content, said);
});

onFake("settings are sent, and only those that were set", async (page) => {
  const form = page.getByRole("complementary", { name: "Settings" });
  await form.getByLabel("Instructions").fill("Be brief.");
  await form.getByLabel("Temperature").first().fill("0");
  await form.getByLabel("Max tokens").fill("3");
  await form.getByLabel("Long audio").selectOption("truncate");
  const sent = nextRequest(page, "/chat/completions");
  const turn = await ask(page, "#tokens=9");
  assert.equal(await answerOf(turn), "abc");
  assert.match(await turn.locator(".figures").innerText(), /cut at its limit of tokens/);
  const { messages, ...rest } = await sent;
  assert.deepEqual(messages[0], { role: "system", content: "Be brief." });
  assert.deepEqual(rest, {
    model: "fake",
    temperature: 0,
    max_tokens: 3,
    long_audio: "truncate",
    stream: true,
    stream_options: { include_usage: true },
  });
});

onFake("a failure in the middle is told below what was said", async (page) => {
  const turn = await ask(page, "#tokens=20 #fail=step");
  assert.match(await turn.getByRole("alert").innerText(), /failed while it answered/);
  assert.equal(await turn.locator(".said").innerText(), "abc");
  const sent = nextRequest(page, "/chat/completions");
  await answerOf(await ask(page, "hello"));
  assert.equal((await sent).messages.length, 1, "it is no part of the conversation");
});

onFake("nothing that a model, a file or an error says becomes markup", async (page) => {
  const markup = "<img src=x onerror=alert(1)><b>bold</b>";
  const answers = [
    { choices: [{ index: 0, delta: { content: markup }, finish_reason: null }] }, // in one piece, as the fake model never does
    { error: { message: markup, param: markup } },
  ];
  await page.route("**/chat/completions", (route) => {
    const body = answers.map((each) => `data: ${JSON.stringify(each)}\n\n`).join("");
    return route.fulfill({ contentType: "text/event-stream", body });
  });
  await page.setInputFiles("#picker", {
    name: `${markup.replace("/", "")}.wav`,
    mimeType: "audio/wav",
    buffer: Buffer.from("x"),
  });
  const turn = await ask(page, markup);
  const shown = await turn.innerText();
  assert.equal(shown.split(markup).length - 1, 4, shown); // the question, the answer, the error and its place
  assert.equal(await page.locator("main img, main b").count(), 0);
});

onFake("all of it can be done with the keyboard", async (page) => {
  await page.getByLabel("Question", { exact: true }).focus();
  await page.keyboard.type("one");
  await page.keyboard.press("Shift+Enter");
  await page.keyboard.type("two");
  await page.keyboard.press("Enter");
  assert.match(await answerOf(page.locator(".turn")), /You said: one\ntwo/);
  assert.match(await page.getByRole("status").textContent(), /Answer: .*You said: one/);
  await page.keyboard.type("#tokens=50000 #delay=0.02");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelectorAll(".said:not(.waiting)")[1]?.textContent.length > 5);
  await page.keyboard.press("Escape");
  await page.locator(".figures").getByText("stopped").waitFor();
  await page.getByRole("tab", { name: "Chat" }).focus();
  await page.keyboard.press("ArrowRight");
  assert.ok(await page.getByRole("tabpanel", { name: "Transcribe" }).isVisible());
  assert.equal(await page.evaluate("document.activeElement.id"), "tab-transcribe");
});

// ----------------------------------------------------------------------------------------------------------- transcribe

onWhisper("several files are transcribed, by segments that play, and saved as the API writes them", async (page) => {
  await page.getByRole("tab", { name: "Transcribe" }).click();
  await drop(page, "long-readings.ogg", "cv-en-no.mp3");
  await page.getByRole("button", { name: "Transcribe" }).click();
  const rows = page.getByRole("list", { name: "Transcripts" }).locator(".clip");
  await rows.nth(1).locator(".segment").waitFor();
  assert.equal(words(await rows.nth(1).locator(".segment span").last().innerText()), "no");
  const segment = rows.first().locator(".segment").nth(3);
  await segment.click();
  await rows.first().locator(".segment.here").waitFor();
  const [minutes, seconds] = (await segment.locator(".time").innerText()).split(":").map(Number);
  const position = await page.locator(".wave input").first().inputValue();
  assert.ok(Math.abs(position - 60 * minutes - seconds) < 2, `it plays from ${position}`);

  for (const kind of ["srt", "vtt"]) {
    const download = page.waitForEvent("download");
    await page.getByRole("button", { name: `Save long-readings.${kind}` }).click();
    const saved = await download;
    assert.equal(saved.suggestedFilename(), `long-readings.${kind}`);
    const form = new FormData();
    form.append("model", "whisper-tiny.en");
    form.append("response_format", kind);
    form.append("file", new Blob([readFileSync(clip("long-readings.ogg"))]), "x.ogg");
    const answer = await fetch(`${whisper.url}/v1/audio/transcriptions`, { method: "POST", body: form });
    assert.equal(readFileSync(await saved.path(), "utf8"), await answer.text());
  }
});

onWhisper(
  "one bad file among several stops none of the others",
  async (page) => {
    await page.getByRole("tab", { name: "Transcribe" }).click();
    await page.setInputFiles("#picker", { name: "broken.mp3", mimeType: "audio/mpeg", buffer: Buffer.from("nothing") });
    await drop(page, "cv-en-no.mp3");
    await page.getByRole("button", { name: "Transcribe" }).click();
    await page.locator(".segment").waitFor();
    assert.match(await page.getByRole("alert").innerText(), /`file`: the data is not audio/);
    await page.getByRole("button", { name: "Remove broken.mp3" }).click();
    assert.ok(await page.getByRole("button", { name: "Transcribe" }).isDisabled(), "nothing is left to do");
  },
  { expected: /status of 400/ },
);

// ----------------------------------------------------------------------------------------------------- keys and snippets

onWhisper("what the model takes is told as soon as it is loaded, and the chosen name stays", async (page) => {
  const audio = { sampling_rate: 24_000, max_seconds_per_window: 30, long_audio: "chunk", max_clips: 3 };
  const answers = [["a", "b"].map((id) => ({ id })), ["a", "b"].map((id) => ({ id, audio }))];
  await page.route("**/v1/models", (route) => route.fulfill({ json: { data: answers.shift() } }));
  await page.reload();
  await page.getByLabel("Model").selectOption("b");
  await page.getByText("24 kHz").waitFor();
  assert.equal(await page.getByLabel("Model").inputValue(), "b");
  assert.match(await page.locator("#card").innerText(), /30 s[^]*in pieces[^]*up to 3/);
});

test("a server with keys asks for one, and it stays in its tab", { timeout: 60_000 }, async () => {
  const { page, close } = await openPage(browser, fake.url);
  await page.getByRole("alert").getByText("No valid API key").waitFor();
  assert.equal(await page.evaluate("document.activeElement.id"), "key", "the field waits for it");
  await page.keyboard.type(KEY);
  await page.keyboard.press("Enter");
  await page.locator("#model option").waitFor({ state: "attached" });
  assert.ok(await page.getByRole("alert").isHidden());
  assert.match(await answerOf(await ask(page, "hello")), /You said: hello/);
  await page.getByRole("button", { name: "Copy as code" }).click();
  const code = await page.locator("#code-text").innerText();
  assert.ok(code.includes("$OPENAI_API_KEY") && !code.includes(KEY), code);
  await page.reload();
  await page.locator("#model option").waitFor({ state: "attached" });
  assert.deepEqual(await page.evaluate(() => Object.values(localStorage)), ["system"]);
  await close();
});

/** What the copied code prints, where the audio lies beside it. */
async function runs(language, code) {
  const directory = mkdtempSync(join(tmpdir(), "playground-"));
  for (const name of ["jfk.ogg", "cv-en-no.mp3"]) symlinkSync(clip(name), join(directory, name));
  symlinkSync(new URL("node_modules", import.meta.url).pathname, join(directory, "node_modules"));
  const commands = {
    curl: ["bash", "code"],
    Python: [join(ROOT, ".venv/bin/python"), "code"],
    JavaScript: ["node", "code.mjs"],
  };
  const [command, file] = commands[language];
  writeFileSync(join(directory, file), code);
  return (await run(command, [file], { cwd: directory })).stdout;
}

async function copied(page, language) {
  await page.getByRole("tab", { name: language }).click();
  await page.getByRole("button", { name: /^Cop/ }).last().click();
  await page.getByRole("button", { name: "Copied" }).waitFor();
  return page.evaluate("navigator.clipboard.readText()");
}

onWhisper("the copied code does the same", async (page) => {
  await drop(page, "jfk.ogg");
  await page.getByRole("complementary").getByLabel("Temperature").first().fill("0");
  await page.getByRole("complementary").getByLabel("Long audio").selectOption("chunk");
  const turn = await ask(page, 'It\'s "quoted", `x` $HOME \\n <b>?');
  await answerOf(turn);
  await turn.getByRole("button", { name: "Copy as code" }).click();
  for (const language of ["curl", "Python", "JavaScript"]) {
    const printed = await runs(language, await copied(page, language));
    const said =
      language === "curl" ? [...printed.matchAll(/"content":"([^"]*)"/g)].map((each) => each[1]).join("") : printed;
    assert.ok(words(said).startsWith(JFK), printed);
  }
  await page.keyboard.press("Escape");

  await page.getByRole("tab", { name: "Transcribe" }).click();
  await drop(page, "cv-en-no.mp3");
  await page.getByRole("button", { name: "Transcribe" }).click();
  await page.locator("#transcribe").getByRole("button", { name: "Copy as code" }).click();
  for (const language of ["curl", "Python", "JavaScript"]) {
    assert.match(await runs(language, await copied(page, language)), /\bNo\b/);
  }
});

// -------------------------------------------------------------------------------------------------------- for everybody

async function faults(page) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate("axe.run()");
  return violations
    .filter(({ impact }) => ["serious", "critical"].includes(impact))
    .map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" ")}`);
}

for (const theme of THEMES) {
  onWhisper(
    `axe finds no serious fault in the ${theme} theme`,
    async (page) => {
      assert.deepEqual(await faults(page), [], "at the start");
      await page.setInputFiles("#picker", { name: "broken.ogg", mimeType: "audio/ogg", buffer: Buffer.from("x") });
      await (await ask(page, "What?")).getByRole("alert").waitFor();
      await drop(page, "jfk.ogg");
      await answerOf(await ask(page, "What is said?"));
      await drop(page, "cv-en-no.mp3");
      await page.locator(".composer .clip .rest").waitFor();
      assert.deepEqual(await faults(page), [], "with answers");
      await page.getByRole("button", { name: "Copy as code" }).last().click();
      assert.deepEqual(await faults(page), [], "with code");
      await page.keyboard.press("Escape");
      await page.getByRole("tab", { name: "Transcribe" }).click();
      await drop(page, "jfk.ogg");
      await page.getByRole("button", { name: "Transcribe" }).click();
      await page.locator(".segment").first().waitFor();
      assert.deepEqual(await faults(page), [], "with a transcript");
    },
    { theme, expected: /status of 400/ },
  );
}

onWhisper(
  "it fits a phone",
  async (page) => {
    const fits = () => page.evaluate("document.documentElement.scrollWidth <= innerWidth");
    await drop(page, "jfk.ogg");
    await answerOf(await ask(page, "What is said?"));
    assert.ok(await fits());
    assert.ok(await page.getByRole("button", { name: "Send" }).isVisible());
    await page.getByRole("button", { name: "Settings", exact: true }).click();
    assert.ok(await page.getByLabel("Max tokens").isVisible());
    assert.deepEqual(await faults(page), []);
    await page.getByLabel("Max tokens").fill("0");
    await page.keyboard.press("Escape");
    assert.ok(await page.getByLabel("Max tokens").isHidden());
    await page.getByLabel("Question", { exact: true }).fill("Again?");
    await page.getByRole("button", { name: "Send" }).click();
    assert.ok(await page.getByLabel("Max tokens").isVisible(), "it is shown what is wrong");
    await page.getByRole("button", { name: "Close settings" }).click();
    await page.getByRole("tab", { name: "Transcribe" }).click();
    assert.ok(await fits());
  },
  { width: 390, height: 780, isMobile: true, hasTouch: true },
);

onWhisper("the theme follows the system until one is chosen, which stays", async (page) => {
  const paper = () => page.evaluate("getComputedStyle(document.body).backgroundColor");
  const light = await paper();
  await page.emulateMedia({ colorScheme: "dark" });
  const dark = await paper();
  assert.notEqual(light, dark);
  await page.getByRole("button", { name: "Theme: system" }).click();
  assert.equal(await paper(), light);
  await page.reload();
  assert.equal(await paper(), light);
  await page.getByRole("button", { name: "Theme: light" }).click();
  await page.getByRole("button", { name: "Theme: dark" }).waitFor();
  assert.equal(await paper(), dark);
});

onWhisper(
  "no script runs but the server's own files",
  async (page) => {
    await page.evaluate(() => {
      const script = document.createElement("script");
      script.textContent = "window.injected = true";
      document.body.append(script);
      document.body.insertAdjacentHTML("beforeend", '<img src="x" onerror="window.injected = true">');
    });
    await page.waitForFunction(() => document.querySelector("img[src=x]").complete);
    assert.equal(await page.evaluate("window.injected"), undefined);
  },
  { expected: /Content Security Policy|status of 404/ },
);
