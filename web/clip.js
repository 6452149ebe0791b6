// One clip of audio: its file, and its row in the page with a player on a waveform. One clip plays at a time.

import { preview } from "./audio.js";
import { clock, el, icon, iconButton, save, svg } from "./dom.js";

const NUM_PEAKS = 120;
const HEIGHT = 100; // of the drawing; the page stretches it

let playing = null;

export class Clip {
  constructor(file, onremove, { recorded = false } = {}) {
    this.file = file;
    this.seconds = null; // until they are known
    this.ontime = () => {};
    this.audio = el("audio", { src: URL.createObjectURL(file), preload: "metadata" });
    this.audio.addEventListener("play", () => this.#began());
    this.audio.addEventListener("pause", () => this.#paused());
    this.audio.addEventListener("ended", () => this.#paused());
    this.audio.addEventListener("seeked", () => this.#show());
    this.element = this.#row(onremove, recorded);
    this.ready = this.#look();
  }

  get format() {
    return this.file.name.split(".").pop().toLowerCase();
  }

  /** Whether it can be taken away: not once it is part of what was sent. */
  set removable(is) {
    this.element.querySelector(".remove").hidden = !is;
  }

  dispose() {
    this.audio.pause();
    URL.revokeObjectURL(this.audio.src);
    this.element.remove();
  }

  playFrom(seconds) {
    this.audio.currentTime = seconds;
    this.audio.play().catch(() => {}); // where the browser cannot, its button is off already
  }

  #row(onremove, recorded) {
    const { name, size } = this.file;
    this.button = iconButton("play", `Play ${name}`, () => this.#toggle());
    this.button.classList.add("play");
    this.button.disabled = true;
    this.range = el("input", { type: "range", min: "0", max: "1", step: "0.1", value: "0", disabled: true });
    this.range.ariaLabel = `Position in ${name}`;
    this.range.addEventListener("input", () => (this.audio.currentTime = Number(this.range.value)));
    this.wave = el("div", { className: "wave" }, this.range);
    this.length = el("span", { className: "length" }, "…");
    const remove = iconButton("close", `Remove ${name}`, onremove);
    remove.classList.add("remove");
    const keep = iconButton("save", `Save ${name}`, () => save(name, this.file, this.file.type));
    const title = el("span", { className: "clip-name", title: name }, name);
    const meta = el("p", { className: "clip-meta" }, title, el("span", {}, bytes(size)), this.length);
    return el(
      "li",
      { className: "clip" },
      this.button,
      el("div", { className: "clip-body" }, this.wave, meta),
      ...(recorded ? [keep] : []),
      remove,
    );
  }

  async #look() {
    const seen = await preview(this.file, NUM_PEAKS);
    if (!seen) {
      this.element.classList.add("unseen");
      this.length.textContent = "no preview";
      return;
    }
    this.seconds = seen.seconds;
    this.length.textContent = clock(Math.round(seen.seconds));
    this.range.max = String(seen.seconds);
    this.range.disabled = this.button.disabled = false;
    this.wave.prepend(drawing(seen.peaks, "rest"), drawing(seen.peaks, "heard"));
    this.#show();
  }

  #toggle() {
    if (this.audio.paused) this.audio.play().catch(() => {});
    else this.audio.pause();
  }

  #began() {
    if (playing !== this) playing?.audio.pause();
    playing = this;
    this.#label("pause", "Pause");
    this.#follow();
  }

  #paused() {
    this.#label("play", "Play");
    this.#show();
  }

  #label(picture, verb) {
    this.button.replaceChildren(icon(picture));
    this.button.ariaLabel = this.button.title = `${verb} ${this.file.name}`;
  }

  #follow() {
    this.#show();
    if (!this.audio.paused) requestAnimationFrame(() => this.#follow());
  }

  #show() {
    const now = this.audio.currentTime;
    this.range.value = String(now);
    this.range.setAttribute("aria-valuetext", `${clock(now)} of ${clock(this.seconds ?? 0)}`);
    const heard = this.wave.querySelector(".heard");
    if (heard) heard.style.clipPath = `inset(0 ${100 - (100 * now) / this.seconds}% 0 0)`;
    this.ontime(now);
  }
}

function drawing(peaks, kind) {
  const bars = peaks.map((peak, i) => {
    const half = Math.max(1.5, (peak * HEIGHT) / 2);
    return `M${i + 0.5} ${(HEIGHT / 2 - half).toFixed(1)}V${(HEIGHT / 2 + half).toFixed(1)}`;
  });
  const box = {
    viewBox: `0 0 ${peaks.length} ${HEIGHT}`,
    preserveAspectRatio: "none",
    class: kind,
    "aria-hidden": "true",
  };
  return svg("svg", box, svg("path", { d: bars.join("") }));
}

const bytes = (size) => (size < 1e6 ? `${Math.max(1, Math.round(size / 1e3))} kB` : `${(size / 1e6).toFixed(1)} MB`);
