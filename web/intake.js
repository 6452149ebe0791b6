// How audio comes into the page: by the file picker, dropped anywhere, pasted, or recorded. It goes to the open tab.

import { announce, byId, clock, el, icon } from "./dom.js";
import { Recording, obstacle } from "./recorder.js";

export function watchFiles(onfiles) {
  const picker = byId("picker");
  picker.addEventListener("change", () => {
    onfiles([...picker.files]);
    picker.value = ""; // else the same file could not be chosen again
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) onfiles([...event.clipboardData.files]);
  });
  watchDrops(onfiles);
}

function watchDrops(onfiles) {
  const sign = byId("dropping");
  const brings = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!brings(event)) return;
    event.preventDefault();
    sign.hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) sign.hidden = true;
  });
  document.addEventListener("drop", (event) => {
    if (!brings(event)) return;
    event.preventDefault(); // else the browser would open it and leave the page
    sign.hidden = true;
    onfiles([...event.dataTransfer.files]);
  });
}

let numRecorded = 0;

/** A button that records and stops. `rate()` is the model's own, in Hz. */
export class RecordButton {
  #recording = null;
  #busy = false;

  constructor(button, rate, onfile, onerror) {
    Object.assign(this, { button, rate, onfile, onerror });
    this.#rest();
    const why = obstacle();
    if (why) {
      button.disabled = true;
      button.closest(".actions").after(el("p", { className: "hint" }, `No recording here: ${why}`));
    }
    button.addEventListener("click", () => this.#press());
  }

  async #press() {
    if (this.#busy) return;
    this.#busy = true;
    try {
      await (this.#recording ? this.#stop() : this.#start());
    } catch (error) {
      this.#recording = null;
      this.#rest();
      this.onerror(wording(error));
    } finally {
      this.#busy = false;
    }
  }

  async #start() {
    this.time = el("span", { className: "time" }, "0:00");
    this.level = el("span", { className: "level", ariaHidden: "true" });
    this.#recording = await Recording.start((seconds, peak) => {
      this.time.textContent = clock(seconds);
      this.level.style.transform = `scaleX(${Math.min(1, peak).toFixed(3)})`;
    });
    this.button.classList.add("recording");
    this.button.ariaPressed = "true";
    this.button.replaceChildren(icon("stop"), "Stop ", this.time, this.level);
    announce("Recording");
  }

  async #stop() {
    const recording = this.#recording;
    this.#recording = null;
    numRecorded += 1;
    const file = await recording.stop(this.rate(), `recording-${numRecorded}.wav`);
    this.#rest();
    announce("Recorded");
    this.onfile(file);
  }

  #rest() {
    this.button.classList.remove("recording");
    this.button.ariaPressed = "false";
    this.button.replaceChildren(icon("mic"), "Record");
  }
}

function wording(error) {
  if (error.name === "NotAllowedError") return "The microphone was not given: allow it for this page in the browser.";
  if (error.name === "NotFoundError") return "The browser finds no microphone.";
  return `The microphone cannot be used: ${error.message}`;
}
