/**
 * Ids as people type them. Whether the bundle's ids are numbers or text is learnt from those that the server sends;
 * typed ones are then sent as the same kind.
 */

const areNumbers = { user: false, item: false };

/** Takes note of an id that the server sent; `kind` is "user" or "item". */
export function learnKind(kind, id) {
  if (id !== undefined) areNumbers[kind] = typeof id !== "string";
}

/** Returns a typed id as the server wants it: number, BigInt beyond 2^53, or text. */
export function parseId(text, kind) {
  if (!areNumbers[kind] || !/^-?\d{1,19}$/.test(text)) return text;
  return Number.isSafeInteger(Number(text)) ? Number(text) : BigInt(text);
}

/** Returns distinct item ids written as a JSON list or separated by commas, semicolons or lines; numbers also by spaces. */
export function parseItemIds(text) {
  const separator = areNumbers.item ? /[\s,;]+/ : /[\n\t,;]+/;
  const parts = text.trim().replace(/^\[|\]$/g, "").split(separator);
  const ids = parts.map((part) => part.trim().replace(/^"|"$/g, "")).filter(Boolean);
  return [...new Set(ids)].map((id) => parseId(id, "item"));
}
