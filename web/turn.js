// One question and its answer, in the page.

import { showCode } from "./code.js";
import { announce, el, icon, iconButton } from "./dom.js";

export class Turn {
  answer = "";
  counts = false; // in what is sent later
  code = null;
  #asked = 0; // milliseconds, as are the next
  #first = 0;
  #numPieces = 0;
  #usage = null;
  #reason = null;

  constructor(text, clips, onback) {
    Object.assign(this, { text, clips, onback });
    for (const clip of clips) clip.removable = false;
    this.said = el("p", { className: "said waiting" }, "Listening");
    this.figures = el("p", { className: "figures" }, " ");
    this.body = el("div", { className: "answer" }, this.said, this.figures);
    const list = el("ul", { className: "clips", ariaLabel: "Clips" }, ...clips.map((clip) => clip.element));
    const asked = el(
      "div",
      { className: "asked" },
      ...(clips.length ? [list] : []),
      ...(text ? [el("p", {}, text)] : []),
    );
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
    this.#numPieces += 1;
    this.said.append(text);
  }

  finish() {
    this.counts = true;
    if (!this.answer) this.#say("The model heard nothing to say.", "mute");
    const cut = this.#reason === "length" ? "cut at its limit of tokens" : "";
    this.#tell([this.#firstToken(), ...this.#speed(), ...this.#heard(), cut], true);
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
    const back = el(
      "button",
      { type: "button", onclick: () => this.onback(this) },
      icon("again"),
      "Edit and ask again",
    );
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
    const told = tokens === 1 ? "1 token" : `${tokens} tokens`;
    if (this.#numPieces < 2) return [told]; // it came all at once
    const rate = (tokens - 1) / seconds; // the first is not among them: the clock begins with it
    return [`${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s`, told];
  }

  #heard() {
    const audio = this.#usage?.audio;
    if (!audio?.parts) return [];
    const [used, received] = [audio.seconds_used.toFixed(1), audio.seconds_received.toFixed(1)];
    return [audio.seconds_dropped > 0 ? `${used} of ${received} s heard` : `${used} s heard`];
  }
}
