// Runs in the audio thread: hands on what the microphone hears, a few times a second.

const BLOCK = 2048; // samples

class Tap extends AudioWorkletProcessor {
  #block = new Float32Array(BLOCK);
  #filled = 0;

  constructor() {
    super();
    this.port.onmessage = () => {
      this.#send(); // it ends: what is there, and then the last word
      this.port.postMessage(null);
    };
  }

  process([[channel]]) {
    for (const sample of channel ?? []) {
      this.#block[this.#filled++] = sample;
      if (this.#filled === BLOCK) this.#send();
    }
    return true;
  }

  #send() {
    this.port.postMessage(this.#block.slice(0, this.#filled));
    this.#filled = 0;
  }
}

registerProcessor("tap", Tap);
