// A list of clips in the page, and the ways into it.

import { Clip } from "./clip.js";

export class Tray {
  constructor(list, onchange = () => {}) {
    this.list = list;
    this.onchange = onchange;
    this.clips = [];
  }

  add(files, { recorded = false } = {}) {
    for (const file of files) this.put(new Clip(file, () => this.#remove(file), { recorded }));
  }

  put(clip) {
    clip.removable = true;
    this.clips.push(clip);
    this.list.append(clip.element);
    this.onchange();
  }

  /** All of them, which leave the tray. */
  take() {
    const taken = this.clips;
    this.clips = [];
    this.onchange();
    return taken;
  }

  #remove(file) {
    const clip = this.clips.find((each) => each.file === file);
    this.clips = this.clips.filter((each) => each !== clip);
    clip.dispose();
    this.onchange();
  }
}
