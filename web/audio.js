// Audio as numbers: a file to its length and peaks, and samples to a WAV file. Knows nothing of the page.

const PREVIEW_RATE = 8000; // Hz, of what is only looked at: an hour of it is 115 MB

/** `{seconds, peaks}`, each peak from 0 to 1 of the loudest; `null` where the browser cannot read the file. */
export async function preview(file, numPeaks) {
  try {
    const context = new OfflineAudioContext(1, 1, PREVIEW_RATE);
    const decoded = await context.decodeAudioData(await file.arrayBuffer());
    return { seconds: decoded.duration, peaks: peaks(decoded.getChannelData(0), numPeaks) };
  } catch {
    return null;
  }
}

export function peaks(samples, count) {
  const found = Array.from({ length: count }, (_, i) => {
    const [from, to] = [Math.floor((i * samples.length) / count), Math.floor(((i + 1) * samples.length) / count)];
    let peak = 0;
    for (let at = from; at < to; at++) peak = Math.max(peak, Math.abs(samples[at]));
    return peak;
  });
  const loudest = Math.max(...found, 1e-4);
  return found.map((peak) => peak / loudest);
}

/** Mono samples at another rate. */
export async function resample(samples, from, to) {
  if (from === to) return samples;
  const context = new OfflineAudioContext(1, Math.max(1, Math.round((samples.length * to) / from)), to);
  const buffer = context.createBuffer(1, samples.length, from);
  buffer.copyToChannel(samples, 0);
  const source = new AudioBufferSourceNode(context, { buffer });
  source.connect(context.destination);
  source.start();
  return (await context.startRendering()).getChannelData(0);
}

/** The bytes of a mono WAV file with 16 bits a sample. */
export function wav(samples, rate) {
  const bytes = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, word) => [...word].forEach((letter, i) => bytes.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  bytes.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  bytes.setUint32(16, 16, true);
  bytes.setUint16(20, 1, true); // PCM
  bytes.setUint16(22, 1, true); // mono
  bytes.setUint32(24, rate, true);
  bytes.setUint32(28, 2 * rate, true);
  bytes.setUint16(32, 2, true);
  bytes.setUint16(34, 16, true);
  text(36, "data");
  bytes.setUint32(40, 2 * samples.length, true);
  samples.forEach((sample, i) => bytes.setInt16(44 + 2 * i, 32767 * Math.max(-1, Math.min(1, sample)), true));
  return bytes.buffer;
}

/** The base64 of a file, made by the browser and not letter by letter. */
export function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error(`${file.name} cannot be read any more. Add it again.`));
    reader.readAsDataURL(file);
  });
}
