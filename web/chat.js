// The conversation: questions with clips, and answers as they stream in. All of it goes with each question, as the API
// keeps nothing; what failed, and what was stopped before its first word, is left out.

import { base64 } from "./audio.js";
import { BASE } from "./api.js";
import { announce, byId, el, icon, iconButton } from "./dom.js";
import { showCode } from "./code.js";
import { chatSnippets, filePart } from "./snippets.js";
import { Tray } from "./tray.js";

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
    const sends = event.key === "Enter" && !event.shiftKey && !event.isComposing && !matchMedia("(pointer: coarse)").matches;
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
    await this.#ask(turn, this.#running.signal);
    this.#running = null;
    this.#turns.push(turn);
    this.#refresh();
    this.view.scrollTo({ top: this.#isAtEnd() ? this.view.scrollHeight : this.view.scrollTop });
  }

  async #ask(turn, signal) {
    const { api, model } = this.settings();
    const turns = [...this.#turns.filter((each) => each.counts), turn];
    const request = (messages) => ({ model, messages, ...this.#sampling(), stream: true, stream_options: { include_usage: true } });
    try {
      turn.code = chatSnippets(BASE, request(await this.#messages(turns, (clip) => filePart(clip.file.name, clip.format))), Boolean(api.key));
      const body = request(await this.#messages(turns, sentPart));
      this.view.scrollTo({ top: this.view.scrollHeight });
      turn.begin();
      for await (const chunk of api.chat(body, signal)) {
        const follows = this.#isAtEnd();
        turn.take(chunk);
        if (follows) this.view.scrollTo({ top: this.view.scrollHeight });
      }
      turn.finish();
    } catch (error) {
      if (signal.aborted) turn.stop();
      else turn.fail(error);
    }
  }

  async #messages(turns, part) {
    const system = this.form.elements.system.value.trim();
    const messages = system ? [{ role: "system", content: system }] : [];
    for (const { text, clips, answer } of turns) {
      const parts = [...(await Promise.all(clips.map(part))), ...(text ? [{ type: "text", text }] : [])];
      messages.push({ role: "user", content: clips.length ? parts : text });
      if (answer) messages.push({ role: "assistant", content: answer });
    }
    return messages;
  }

  #sampling() {
    const given = Object.fromEntries([...new FormData(this.form)].filter(([name, value]) => value && name !== "system"));
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

  #isAtEnd() {
    return this.view.scrollHeight - this.view.scrollTop - this.view.clientHeight < NEAR_PX;
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

async function sentPart(clip) {
  return { type: "input_audio", input_audio: { data: await base64(clip.file), format: clip.format } };
}

/** One question and its answer. */
class Turn {
  answer = "";
  counts = false; // in what is sent later
  code = null;
  #asked = 0; // milliseconds, as are the next
  #first = 0;
  #usage = null;
  #reason = null;

  constructor(text, clips, onback) {
    Object.assign(this, { text, clips, onback });
    for (const clip of clips) clip.removable = false;
    this.said = el("p", { className: "said waiting" }, "Listening");
    this.figures = el("p", { className: "figures" }, " ");
    this.body = el("div", { className: "answer" }, this.said, this.figures);
    const list = el("ul", { className: "clips", ariaLabel: "Clips" }, ...clips.map((clip) => clip.element));
    const asked = el("div", { className: "asked" }, ...(clips.length ? [list] : []), ...(text ? [el("p", {}, text)] : []));
    this.element = el("article", { className: "turn", ariaLabel: "Question and answer" }, asked, this.body);
  }

  begin() {
    this.#asked = performance.now();
    announce("Asked");
  }

  take({ choices, usage }) {
    if (usage) this.#usage = usage;
    if (!choices.length) return;
    this.#reason = choices[0].finish_reason ?? this.#reason;
    const text = choices[0].delta.content;
    if (!text) return;
    if (!this.answer) {
      this.#first = performance.now();
      this.said.classList.remove("waiting");
      this.said.replaceChildren();
      this.#tell([this.#firstToken()]);
    }
    this.answer += text;
    this.said.append(text);
  }

  finish() {
    this.counts = true;
    if (!this.answer) this.#say("The model heard nothing to say.", "mute");
    this.#tell([this.#firstToken(), ...this.#speed(), ...this.#heard(), ...(this.#reason === "length" ? ["cut at its limit of tokens"] : [])], true);
    announce(`Answer: ${this.answer || "nothing"}`);
  }

  stop() {
    this.counts = Boolean(this.answer);
    if (!this.answer) this.#say("Stopped before the first word.", "mute");
    this.#tell([this.#firstToken(), "stopped"], true);
    announce("Stopped");
  }

  fail(error) {
    if (!this.answer) this.said.remove();
    const where = error.param ? [el("span", { className: "where" }, error.param)] : [];
    const back = el("button", { type: "button", onclick: () => this.onback(this) }, icon("again"), "Edit and ask again");
    this.figures.before(el("div", { className: "failure", role: "alert" }, el("p", {}, error.message), ...where, back));
    this.#tell(error.status ? [`status ${error.status}`] : [], true);
  }

  dispose() {
    for (const clip of this.clips) clip.dispose();
    this.element.remove();
  }

  #say(text, className) {
    this.said.className = `said ${className}`;
    this.said.textContent = text;
  }

  #tell(figures, isLast = false) {
    const told = figures.filter(Boolean).map((figure) => el("span", {}, figure));
    const code = iconButton("code", "Copy as code", () => showCode(this.code));
    this.figures.replaceChildren(...told, ...(isLast && this.code ? [code] : []));
  }

  #firstToken() {
    return this.#first ? `${((this.#first - this.#asked) / 1000).toFixed(2)} s to first token` : "";
  }

  #speed() {
    const tokens = this.#usage?.completion_tokens;
    if (!tokens) return [];
    const seconds = (performance.now() - this.#first) / 1000;
    const rate = tokens > 1 && seconds > 0 ? [`${((tokens - 1) / seconds).toFixed(tokens / seconds < 10 ? 1 : 0)} tokens/s`] : [];
    return [...rate, `${tokens} ${tokens === 1 ? "token" : "tokens"}`];
  }

  #heard() {
    const audio = this.#usage?.audio;
    if (!audio?.parts) return [];
    const { seconds_used: used, seconds_received: received, seconds_dropped: dropped } = audio;
    return [dropped > 0 ? `${used.toFixed(1)} of ${received.toFixed(1)} s heard` : `${used.toFixed(1)} s heard`];
  }
}
