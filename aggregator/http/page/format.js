// Numbers and times as a person reads them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export const count = (n) => Math.round(n).toLocaleString("en");
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

export function bytes(n) {
  let unit = 0;
  while (n >= 1024 && unit < UNITS.length - 1) {
    n /= 1024;
    unit += 1;
  }
  return `${unit && n < 100 ? n.toFixed(1).replace(/\.0$/, "") : Math.round(n)} ${UNITS[unit]}`;
}

/** A duration: 350 µs, 4.2 ms, 1.3 s. */
export function took(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 1e-3) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${short(seconds * 1e3)} ms`;
  return seconds < 120 ? `${short(seconds)} s` : span(seconds);
}

/** A time gone by, coarser the longer: 12 s, 5 min, 3 h, 2 days. */
export function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 120) return `${s} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  return s < 172800 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} days`;
}

/** Three digits that count. */
export function short(n) {
  if (n === null || n === undefined) return "none";
  if (n === 0) return "0";
  const size = Math.abs(n);
  if (size >= 1e5 || size < 1e-3) return n.toExponential(1);
  return size >= 100 ? n.toFixed(0) : Number(n.toPrecision(3)).toString();
}

export function percent(share) {
  if (share === null || share === undefined) return "";
  if (share > 0 && share < 0.001) return "<0.1%";
  return share === 1 || share === 0 ? `${share * 100}%` : `${(share * 100).toFixed(1)}%`;
}

export const clock = (time) =>
  new Date(time * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export const when = (time) => new Date(time * 1000).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });

/** The first few of a list in words: a, b and 3 more. */
export function some(items, limit = 3) {
  if (items.length <= limit) return items.length > 1 ? `${items.slice(0, -1).join(", ")} and ${items.at(-1)}` : items.join("");
  return `${items.slice(0, limit).join(", ")} and ${items.length - limit} more`;
}

/** When something was: the time of day alone, if it was on the day of `at`. */
export const since = (time, at) => (new Date(time * 1000).toDateString() === new Date(at * 1000).toDateString() ? clock(time) : when(time));

/** A clause as a sentence begins; one that begins with a name of something is left as it is. */
export const sentence = (text) => (/^[a-z]+[ ,]/.test(text) ? `${text[0].toUpperCase()}${text.slice(1)}` : text);
