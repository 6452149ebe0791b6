// The microphone: one recording at a time, as a WAV file, which every server takes and every browser plays.

import { resample, wav } from "./audio.js";

/** Why there can be no recording here; empty where there can. */
export const obstacle = () =>
  navigator.mediaDevices?.getUserMedia && window.AudioWorkletNode
    ? ""
    : "Browsers lend the microphone only to pages from https:// or localhost.";

export class Recording {
  #blocks = [];
  #last;
  #numSamples = 0;

  /** Raises a `DOMException` where the user or the system does not give the microphone. */
  static async start(onLevel) {
    const recording = new Recording();
    await recording.#open(onLevel);
    return recording;
  }

  async #open(onLevel) {
    const audio = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: true };
    this.stream = await navigator.mediaDevices.getUserMedia({ audio });
    try {
      this.context = new AudioContext(); // at the microphone's own rate: Firefox joins no others
      await this.context.audioWorklet.addModule(new URL("tap.js", import.meta.url));
      this.tap = new AudioWorkletNode(this.context, "tap", {
        numberOfOutputs: 0,
        channelCount: 1,
        channelCountMode: "explicit",
      });
      this.#last = new Promise((resolve) => {
        this.tap.port.onmessage = ({ data }) => (data ? this.#take(data, onLevel) : resolve());
      });
      this.context.createMediaStreamSource(this.stream).connect(this.tap);
      await this.context.resume();
    } catch (error) {
      this.#close();
      throw error;
    }
  }

  #take(block, onLevel) {
    this.#blocks.push(block);
    this.#numSamples += block.length;
    onLevel(
      this.#numSamples / this.context.sampleRate,
      block.reduce((peak, sample) => Math.max(peak, Math.abs(sample)), 0),
    );
  }

  /** The recording at `rate` Hz. */
  async stop(rate, name) {
    this.tap.port.postMessage("end");
    await this.#last;
    const heard = new Float32Array(this.#numSamples);
    let at = 0;
    for (const block of this.#blocks) {
      heard.set(block, at);
      at += block.length;
    }
    const from = this.context.sampleRate;
    this.#close();
    return new File([wav(await resample(heard, from, rate), rate)], name, { type: "audio/wav" });
  }

  #close() {
    for (const track of this.stream.getTracks()) track.stop();
    this.context?.close();
  }
}
