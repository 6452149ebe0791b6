// A real server and a real browser for the tests, and the page as its users see it.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import { chromium } from "playwright-core";

export const ROOT = fileURLToPath(new URL("../..", import.meta.url));
export const DATA = join(ROOT, "tests", "data");
export const JFK =
  "and so my fellow americans ask not what your country can do for you ask what you can do for your country";

const START_LIMIT_MS = 120_000;
const MICROPHONE = [
  "--use-fake-device-for-media-stream",
  "--use-fake-ui-for-media-stream", // which says yes
  `--use-file-for-fake-audio-capture=${join(DATA, "jfk.wav")}%noloop`,
];

export const words = (text) =>
  text
    .toLowerCase()
    .match(/[a-z']+/g)
    .join(" ");
export const clip = (name) => join(DATA, name);

/** `python server.py` with these flags; its address, when it is ready. `stop()` ends it. */
export async function startServer(flags, env = {}) {
  const url = `http://127.0.0.1:${await freePort()}`;
  const command = ["server.py", "--port", new URL(url).port, ...flags];
  const options = { cwd: ROOT, env: { ...process.env, ...env }, stdio: ["ignore", "ignore", "pipe"] };
  const server = spawn(join(ROOT, ".venv", "bin", "python"), command, options);
  let log = "";
  server.stderr.on("data", (data) => (log = (log + data).slice(-10_000)));
  const until = Date.now() + START_LIMIT_MS;
  process.once("exit", () => server.kill("SIGKILL")); // whatever ends the tests
  while (
    !(await fetch(`${url}/ready`).then(
      (answer) => answer.ok,
      () => false,
    ))
  ) {
    if (server.exitCode !== null || Date.now() > until) throw new Error(`the server did not start:\n${log}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  const stop = async () => {
    server.kill("SIGINT");
    if (server.exitCode === null) await once(server, "exit");
  };
  return { url, stop };
}

async function freePort() {
  const probe = createServer().listen(0, "127.0.0.1");
  await once(probe, "listening");
  const { port } = probe.address();
  probe.close();
  await once(probe, "close");
  return port;
}

export const launch = () =>
  chromium.launch({
    executablePath: process.env.CHROMIUM,
    args: [...MICROPHONE, ...(process.getuid() === 0 ? ["--no-sandbox"] : [])], // which root cannot have
    env: { ...process.env, HOME: process.env.HOME ?? tmpdir() },
  });

/** The playground in a new window. Its troubles are collected: what the console calls errors, and foreign requests. */
export async function openPage(
  browser,
  url,
  { width = 1200, height = 800, theme = "light", key = "", ...options } = {},
) {
  const context = await browser.newContext({
    viewport: { width, height },
    colorScheme: theme,
    permissions: ["microphone", "clipboard-read", "clipboard-write"],
    reducedMotion: "reduce",
    ...options,
  });
  await context.addInitScript((given) => given && sessionStorage.setItem("eardrum.key", given), key);
  const page = await context.newPage();
  const troubles = [];
  page.on("console", (message) => message.type() === "error" && troubles.push(message.text()));
  page.on("pageerror", (error) => troubles.push(error.message));
  page.on("request", (request) => {
    const address = request.url();
    if (!address.startsWith(`${url}/`) && !/^(blob|data):/.test(address)) troubles.push(`asked for ${address}`);
  });
  page.setDefaultTimeout(60_000);
  await page.goto(`${url}/`);
  return { page, troubles, close: () => context.close() };
}

/** Drops files on the page, as a hand would. */
export async function drop(page, ...names) {
  const files = names.map((name) => ({ name, data: readFileSync(clip(name)).toString("base64") }));
  const transfer = await page.evaluateHandle((given) => {
    const transfer = new DataTransfer();
    for (const { name, data } of given) {
      transfer.items.add(new File([Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))], name));
    }
    return transfer;
  }, files);
  for (const type of ["dragover", "drop"]) await page.dispatchEvent("main", type, { dataTransfer: transfer });
}

/** Writes a question and sends it; its turn. */
export async function ask(page, question) {
  const number = await page.locator(".turn").count();
  if (question) await page.getByLabel("Question", { exact: true }).fill(question);
  await page.getByRole("button", { name: "Send" }).click();
  return page.locator(".turn").nth(number);
}

/** The turn's answer, when it is complete. */
export async function answerOf(turn) {
  await turn.getByRole("button", { name: "Copy as code" }).waitFor();
  return turn.locator(".said").innerText();
}

/** What the page will send to this path next, as JSON. */
export async function nextRequest(page, path) {
  const request = await page.waitForRequest((each) => each.url().endsWith(path));
  return request.postDataJSON();
}
