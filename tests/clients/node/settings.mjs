// Where the servers and the clips are, as `tests/clients/servers.py` tells it.

import { readFileSync } from "node:fs";
import { join } from "node:path";

export const fake = process.env.FAKE_URL;
export const whisper = process.env.WHISPER_URL;
export const limited = process.env.LIMITED_URL;
export const speech = process.env.WHISPER_MODEL;

export const path = (name) => join(process.env.CLIPS, name);
export const bytes = (name) => readFileSync(path(name));
export const isJfk = (text) => /^\W*and so,? my fellow americans,? ask not/i.test(text);

// What makes the fake model call a tool, as its dialect has it.
export const toCall = (name, args) =>
  `#text=${encodeURIComponent(`<tool_call>\n${JSON.stringify({ name, arguments: args })}\n</tool_call>`)}`;

// A tool's result that makes the fake model answer with all it is told of tools.
export const TELL = "#tools";

// What a stream yields, as a list.
export async function all(stream) {
  const items = [];
  for await (const item of stream) items.push(item);
  return items;
}
