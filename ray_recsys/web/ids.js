/**
 * Ids as people type them. Whether the bundle's ids are numbers or text is learnt from those that the server sends;
 * typed ones are then sent as the same kind.
 */

import { parse } from "./api.js";

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
  const ids = readList(text) ?? splitList(text);
  return [...new Set(ids)].filter(Boolean).map((id) => parseId(id, "item"));
}

/** Returns the ids of a JSON list as text, or nothing if it is not one: an id in quotes may hold any character. */
function readList(text) {
  try {
    const list = parse(text);
    return Array.isArray(list) ? list.map(String) : undefined;
  } catch {
    return undefined;
  }
}

function splitList(text) {
  const separator = areNumbers.item ? /[\s,;]+/ : /[\n\t,;]+/;
  const parts = text.trim().replace(/^\[|\]$/g, "").split(separator);
  return parts.map((part) => part.trim().replace(/^"|"$/g, ""));
}
