// What was sent as code to copy: for curl, Python and JavaScript. Pure. Files stand by their names and keys never do:
// code reads them from the disk and the environment.

const FILE = Symbol("the base64 of a file, where it stands in a request");

/** The content part of a clip whose bytes the code is to read. */
export const filePart = (name, format) => ({ type: "input_audio", input_audio: { data: { [FILE]: name }, format } });

const OPENAIS = new Set([
  "model",
  "messages",
  "stream",
  "stream_options",
  "temperature",
  "top_p",
  "max_tokens",
  "seed",
  "stop",
]); // the others go into the Python SDK's `extra_body`

/** The code in each language. `request` is what was sent, with `filePart`s for its audio. */
export function chatSnippets(base, request, keyed) {
  return {
    curl: chatCurl(base, request, keyed),
    python: chatPython(base, request, keyed),
    javascript: chatJavaScript(base, request, keyed),
    keyed,
  };
}

/** `fields` are pairs, as a form has them. */
export function transcriptionSnippets(base, task, fields, file, keyed) {
  return {
    curl: formCurl(base, task, fields, file, keyed),
    python: formPython(base, task, fields, file, keyed),
    javascript: formJavaScript(base, task, fields, file, keyed),
    keyed,
  };
}

// ---------------------------------------------------------------------------------------------------------------- curl

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const curl = (url, ...options) => [`curl ${shell(url)}`, ...options].join(" \\\n  ");
const authorization = (keyed) => (keyed ? ['-H "Authorization: Bearer $OPENAI_API_KEY"'] : []);

/** Through a here-document: a command's arguments cannot hold the base64 of a clip. */
function chatCurl(base, request, keyed) {
  const inside = (text) => text.replace(/[\\$`]/g, "\\$&");
  const data = literal(request, JSON_WORDS, (name) => `"$(base64 < ${shell(name)} | tr -d '\\n')"`, inside);
  const headers = ["-H 'Content-Type: application/json'", ...authorization(keyed)];
  return curl(`${base}/chat/completions`, "-N", ...headers, `-d @- <<END\n${data}\nEND`);
}

function formCurl(base, task, fields, file, keyed) {
  const parts = fields.map(([name, value]) => `--form-string ${shell(`${name}=${value}`)}`);
  const quoted = file.replace(/["\\]/g, "\\$&"); // curl's own quotes, around what may have commas
  return curl(`${base}/audio/${task}`, ...authorization(keyed), ...parts, `-F ${shell(`file=@"${quoted}"`)}`);
}

// -------------------------------------------------------------------------------------------------------------- Python

const client = (base, keyed) => `client = OpenAI(base_url=${JSON.stringify(base)}${keyed ? "" : ', api_key="none"'})`;

function chatPython(base, request, keyed) {
  const known = Object.entries(request).filter(([name]) => OPENAIS.has(name));
  const extra = Object.fromEntries(Object.entries(request).filter(([name]) => !OPENAIS.has(name)));
  const all = Object.keys(extra).length ? [...known, ["extra_body", extra]] : known;
  const read = (name) => `base64.b64encode(open(${JSON.stringify(name)}, "rb").read()).decode()`;
  const given = all.map(([name, value]) => `    ${name}=${literal(value, PYTHON_WORDS, read, String, "    ")},\n`);
  return `import base64
from openai import OpenAI

${client(base, keyed)}
stream = client.chat.completions.create(
${given.join("")})
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    elif chunk.usage:
        print("\\n", chunk.usage)`;
}

function formPython(base, task, fields, file, keyed) {
  const given = Object.entries(grouped(fields)).map(
    ([name, value]) => `    ${name}=${literal(value, PYTHON_WORDS, null, String, "    ")},\n`,
  );
  const isTranslation = task === "translations"; // whose method has fewer words
  return `from openai import OpenAI

${client(base, keyed)}
transcript = client.audio.${task}.create(
    file=open(${JSON.stringify(file)}, "rb"),
${given.join("")})
for segment in transcript.segments${isTranslation ? " or []" : ""}:
    print(f"{segment.start:8.2f}  {segment.text}")`;
}

// ---------------------------------------------------------------------------------------------------------- JavaScript

const newClient = (base, keyed) =>
  `const client = new OpenAI({ baseURL: ${JSON.stringify(base)}${keyed ? "" : ', apiKey: "none"'} });`;

function chatJavaScript(base, request, keyed) {
  const read = (name) => `readFileSync(${JSON.stringify(name)}, "base64")`;
  return `import { readFileSync } from "node:fs";
import OpenAI from "openai";

${newClient(base, keyed)}
const stream = await client.chat.completions.create(${literal(request, JSON_WORDS, read, String)});
for await (const chunk of stream) {
  process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
  if (chunk.usage) console.log("\\n", chunk.usage);
}`;
}

function formJavaScript(base, task, fields, file, keyed) {
  const given = Object.entries(grouped(fields)).map(
    ([name, value]) => `  ${name}: ${literal(value, JSON_WORDS, null, String, "  ")},\n`,
  );
  return `import { createReadStream } from "node:fs";
import OpenAI from "openai";

${newClient(base, keyed)}
const transcript = await client.audio.${task}.create({
  file: createReadStream(${JSON.stringify(file)}),
${given.join("")}});
for (const { start, text } of transcript.segments) console.log(start.toFixed(2), text);`;
}

// ------------------------------------------------------------------------------------------------------------ literals

const JSON_WORDS = { true: "true", false: "false", null: "null" };
const PYTHON_WORDS = { true: "True", false: "False", null: "None" };

/** A form's pairs as the SDKs take them: `name[]` is a list, and numbers are numbers. */
function grouped(fields) {
  const plain = (name, value) => (name === "temperature" ? Number(value) : value);
  return Object.fromEntries(
    fields.map(([name, value]) => (name.endsWith("[]") ? [name.slice(0, -2), [value]] : [name, plain(name, value)])),
  );
}

/** A value in JSON's form, with a language's own words, and `read(name)` in the place of each file. */
function literal(value, words, read, quote, indent = "") {
  const deeper = `${indent}  `;
  const inner = (each) => literal(each, words, read, quote, deeper);
  if (typeof value === "string") return quote(JSON.stringify(value));
  if (value === null || typeof value === "boolean") return words[String(value)];
  if (typeof value === "number") return String(value);
  if (FILE in value) return read(value[FILE]);
  if (Array.isArray(value))
    return value.length ? `[\n${value.map((each) => deeper + inner(each)).join(",\n")}\n${indent}]` : "[]";
  const pairs = Object.entries(value).map(([name, each]) => `${deeper}${quote(JSON.stringify(name))}: ${inner(each)}`);
  return `{\n${pairs.join(",\n")}\n${indent}}`;
}
