// The Transcribe tab: each clip with what is said in it, by segments that can be clicked, and as subtitles to save.

import { BASE } from "./api.js";
import { showCode } from "./code.js";
import { announce, byId, clock, el, icon, iconButton, save } from "./dom.js";
import { transcriptionSnippets } from "./snippets.js";
import { srt, vtt } from "./subtitles.js";
import { Tray } from "./tray.js";

const TIMED = [
  ["response_format", "verbose_json"],
  ["timestamp_granularities[]", "segment"],
];

export class Transcribe {
  #running = null;
  #results = new WeakMap(); // by clip; until there is one, it waits for it

  constructor(settings) {
    this.settings = settings;
    this.form = byId("transcribe-settings");
    this.start = byId("transcribe-start");
    this.tray = new Tray(byId("transcripts"), () => this.#refresh());
    this.start.addEventListener("click", () => (this.#running ? this.#running.abort() : this.#run()));
    this.#refresh();
  }

  get #waiting() {
    return this.tray.clips.filter((clip) => !this.#results.get(clip)?.done);
  }

  async #run() {
    if (!this.form.reportValidity()) return;
    this.#running = new AbortController();
    const { signal } = this.#running;
    this.#refresh();
    for (
      let next;
      (next = this.#waiting.find((clip) => !this.#results.get(clip)?.tried.has(signal))) && !signal.aborted;
    ) {
      await this.#one(next, signal);
    }
    this.#running = null;
    this.#refresh();
  }

  async #one(clip, signal) {
    const { api, model } = this.settings();
    const { task, fields } = this.#fields(model);
    const result = this.#resultOf(clip);
    result.tried.add(signal);
    result.begin();
    const began = performance.now();
    try {
      const transcript = await api.transcribe(task, clip.file, fields, signal);
      const code = transcriptionSnippets(BASE, task, fields, clip.file.name, Boolean(api.key));
      result.show(transcript, (performance.now() - began) / 1000, code);
    } catch (error) {
      result.fail(signal.aborted ? "Stopped." : error.message, error.param);
    }
  }

  #fields(model) {
    const { task, ...given } = Object.fromEntries(new FormData(this.form));
    const used = Object.entries(given).filter(
      ([name, value]) => value.trim() && !(name === "language" && task === "translations"),
    );
    return { task, fields: [["model", model], ...used, ...TIMED] };
  }

  #resultOf(clip) {
    if (!this.#results.has(clip)) this.#results.set(clip, new Result(clip));
    return this.#results.get(clip);
  }

  #refresh() {
    const running = Boolean(this.#running);
    this.start.disabled = !running && !this.#waiting.length;
    this.start.classList.toggle("stops", running);
    this.start.replaceChildren(icon(running ? "stop" : "send"), el("span", {}, running ? "Stop" : "Transcribe"));
  }
}

/** What came of one clip, below its player. */
class Result {
  done = false;
  tried = new Set();

  constructor(clip) {
    this.clip = clip;
    this.view = el("div", { className: "transcript" });
    clip.element.append(this.view);
  }

  begin() {
    this.view.replaceChildren(el("p", { className: "said waiting" }, "Listening"));
  }

  fail(message, param) {
    const where = param ? [el("span", { className: "where" }, param)] : [];
    this.view.replaceChildren(el("div", { className: "failure", role: "alert" }, el("p", {}, message), ...where));
  }

  show(transcript, seconds, code) {
    this.done = true;
    const { segments, duration, language, text } = transcript;
    const figures = [`${duration.toFixed(1)} s heard in ${seconds.toFixed(1)} s`];
    if (language !== "unknown") figures.push(language);
    const said = segments.length ? this.#list(segments) : el("p", { className: "said mute" }, "Nothing is said in it.");
    const below = [...figures.map((figure) => el("span", {}, figure)), ...this.#saves(segments, text)];
    const copy = iconButton("code", "Copy as code", () => showCode(code));
    this.view.replaceChildren(said, el("p", { className: "figures" }, ...below, copy));
    announce(`Transcript of ${this.clip.file.name}: ${text}`);
  }

  #saves(segments, text) {
    const stem = this.clip.file.name.replace(/\.[^.]*$/, "");
    const kinds = [
      ["srt", srt(segments), "application/x-subrip"],
      ["vtt", vtt(segments), "text/vtt"],
      ["txt", `${text.trim()}\n`, "text/plain"],
    ];
    return kinds.map(([kind, content, type]) => {
      const onclick = () => save(`${stem}.${kind}`, content, type);
      const props = { type: "button", className: "quiet", ariaLabel: `Save ${stem}.${kind}`, onclick };
      return el("button", props, icon("save"), kind);
    });
  }

  #list(segments) {
    const rows = segments.map(({ start, text }) => {
      const props = { type: "button", className: "segment", onclick: () => this.clip.playFrom(start) };
      return el("button", props, el("span", { className: "time" }, clock(start)), el("span", {}, text.trim()));
    });
    this.clip.ontime = (now) => {
      rows.forEach((row, i) => {
        const isHere = !this.clip.audio.paused && now >= segments[i].start && now < segments[i].end;
        row.classList.toggle("here", isHere);
      });
    };
    return el("ol", { className: "segments" }, ...rows.map((row) => el("li", {}, row)));
  }
}
