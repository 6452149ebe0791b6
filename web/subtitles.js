// Segments as subtitle files, by the rules of the API's own `srt` and `vtt`, so that what is saved is what is seen.
// (Asked again, a model that samples would say something else.) Pure.

const time = (seconds, point) => {
  const milliseconds = Math.round(1000 * seconds);
  const [hours, minutes] = [Math.floor(milliseconds / 3_600_000), Math.floor(milliseconds / 60_000) % 60];
  const two = (number) => String(number).padStart(2, "0");
  const rest = milliseconds % 60_000;
  return `${two(hours)}:${two(minutes)}:${two(Math.floor(rest / 1000))}${point}${String(rest % 1000).padStart(3, "0")}`;
};

const line = (text) => text.trim().split(/\s+/).join(" ");
const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

export const srt = (segments) =>
  segments
    .map(({ start, end, text }, i) => `${i + 1}\n${time(start, ",")} --> ${time(end, ",")}\n${line(text)}\n\n`)
    .join("");

export const vtt = (segments) =>
  "WEBVTT\n\n" +
  segments
    .map(({ start, end, text }) => `${time(start, ".")} --> ${time(end, ".")}\n${escaped(line(text))}\n\n`)
    .join("");
