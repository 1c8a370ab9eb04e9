// Formats numbers for people.

/** Format bytes in powers of 1000. */
export function bytes(size) {
  if (!Number.isFinite(size)) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let index = 0;
  while (size >= 999.5 && index < units.length - 1) {
    size /= 1000;
    index += 1;
  }
  return `${index && size < 9.95 ? size.toFixed(1) : Math.round(size)} ${units[index]}`;
}

/** Format a number with about three digits. */
export function short(value) {
  if (!Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  return value >= 99.95 ? Math.round(value).toLocaleString("en") : value >= 9.95 ? value.toFixed(1) : value.toFixed(2);
}

/** Format seconds or milliseconds. */
export const duration = (ms) => (ms < 999.5 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

/** Format the time of day. */
export const clock = (seconds) =>
  new Date(seconds * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
