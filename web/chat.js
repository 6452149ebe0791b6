// The conversation: questions with clips, and answers as they stream in. All of it goes with each question, as the API
// keeps nothing; what failed, and what was stopped before its first word, is left out.

import { base64 } from "./audio.js";
import { BASE } from "./api.js";
import { byId, el, icon } from "./dom.js";
import { chatSnippets, filePart } from "./snippets.js";
import { Tray } from "./tray.js";
import { Turn } from "./turn.js";

const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];
const NEAR_PX = 80; // from the end of the conversation: who is there follows it

export class Chat {
  #turns = [];
  #running = null;

  /** `settings()` tells `{api, model}`. */
  constructor(settings) {
    this.settings = settings;
    this.tray = new Tray(byId("chat-clips"), () => this.#refresh());
    this.view = byId("conversation");
    this.question = byId("question");
    this.form = byId("chat-settings");
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#running) this.#running.abort();
      else this.#send();
    });
    this.question.addEventListener("input", () => this.#refresh());
    this.question.addEventListener("keydown", (event) => this.#key(event));
    byId("clear").addEventListener("click", () => this.#clear());
    this.#refresh();
  }

  #key(event) {
    const sends =
      event.key === "Enter" && !event.shiftKey && !event.isComposing && !matchMedia("(pointer: coarse)").matches;
    if (event.key === "Escape") this.#running?.abort();
    if (!sends) return;
    event.preventDefault();
    if (!this.#running) this.#send();
  }

  async #send() {
    const text = this.question.value.trim();
    if ((!text && !this.tray.clips.length) || !this.form.reportValidity()) return;
    const turn = new Turn(text, this.tray.take(), (failed) => this.#back(failed));
    this.question.value = "";
    byId("chat-empty").hidden = true;
    this.view.append(turn.element);
    this.#running = new AbortController();
    this.#refresh();
    this.#toEnd();
    await this.#ask(turn, this.#running.signal);
    this.#running = null;
    this.#turns.push(turn);
    this.#refresh();
  }

  async #ask(turn, signal) {
    const { api, model } = this.settings();
    const turns = [...this.#turns.filter((each) => each.counts), turn];
    const options = { ...this.#sampling(), stream: true, stream_options: { include_usage: true } };
    const request = async (part) => ({ model, messages: await this.#messages(turns, part), ...options });
    try {
      turn.code = chatSnippets(BASE, await request(namedPart), Boolean(api.key));
      const body = await request(sentPart);
      turn.begin();
      for await (const chunk of api.chat(body, signal)) this.#follow(() => turn.take(chunk));
      this.#follow(() => turn.finish());
    } catch (error) {
      this.#follow(() => (signal.aborted ? turn.stop() : turn.fail(error)));
    }
  }

  async #messages(turns, part) {
    const system = this.form.elements.system.value.trim();
    const messages = system ? [{ role: "system", content: system }] : [];
    for (const { text, clips, answer, counts } of turns) {
      const parts = [...(await Promise.all(clips.map(part))), ...(text ? [{ type: "text", text }] : [])];
      messages.push({ role: "user", content: clips.length ? parts : text });
      if (counts) messages.push({ role: "assistant", content: answer }); // an empty one, too: roles take turns
    }
    return messages;
  }

  #sampling() {
    const given = Object.fromEntries(
      [...new FormData(this.form)].filter(([name, value]) => value && name !== "system"),
    );
    for (const name of NUMBERS) if (name in given) given[name] = Number(given[name]);
    return given;
  }

  /** A question that failed comes back to be changed. */
  #back(turn) {
    this.#turns = this.#turns.filter((each) => each !== turn);
    turn.element.remove();
    if (!this.question.value) this.question.value = turn.text;
    for (const clip of turn.clips) this.tray.put(clip);
    this.question.focus();
    this.#refresh();
  }

  #clear() {
    for (const turn of this.#turns) turn.dispose();
    this.#turns = [];
    this.#refresh();
    this.question.focus();
  }

  /** Who reads the end goes on reading the end; who has scrolled up stays there. */
  #follow(change) {
    const { scrollHeight, scrollTop, clientHeight } = this.view;
    change();
    if (scrollHeight - scrollTop - clientHeight < NEAR_PX) this.#toEnd();
  }

  #toEnd() {
    this.view.scrollTo({ top: this.view.scrollHeight });
  }

  #refresh() {
    const running = Boolean(this.#running);
    const send = byId("send");
    send.replaceChildren(icon(running ? "stop" : "send"), el("span", {}, running ? "Stop" : "Send"));
    send.classList.toggle("stops", running);
    send.disabled = !running && !this.question.value.trim() && !this.tray.clips.length;
    byId("clear").hidden = running || !this.#turns.length;
    byId("chat-empty").hidden = running || this.#turns.length > 0;
    this.question.style.height = "auto";
    this.question.style.height = `${this.question.scrollHeight + 2}px`;
  }
}

const namedPart = (clip) => filePart(clip.file.name, clip.format);

async function sentPart(clip) {
  return { type: "input_audio", input_audio: { data: await base64(clip.file), format: clip.format } };
}
