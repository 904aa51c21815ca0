/** A new user's history: a list of removable items, their titles, and pasted ids. The caller owns the items. */

import { isSuperseded, request } from "./api.js";
import { byId, element, nameOf } from "./render.js";

const MAX_TITLES = 50; // one request each

/** Shows the items; `onRemove(item)` is called for a removed one. */
export function showHistory(items, onRemove) {
  byId("history").replaceChildren(...items.map((item) => entryOf(item, () => onRemove(item))));
  byId("history-empty").hidden = items.length > 0;
  byId("clear-history").hidden = items.length === 0;
}

/** Adds titles and categories to items that were pasted or linked as bare ids, up to MAX_TITLES of them. */
export async function loadTitles(items) {
  const bare = items.filter((item) => item.title === undefined);
  for (const item of bare.splice(MAX_TITLES)) item.title = null; // shown by its id
  await Promise.all(bare.map(loadTitle));
}

/** Returns the distinct ids of a JSON list, or of text separated by commas, semicolons or lines; integers also by spaces. */
export function parseItemIds(text) {
  return [...new Set(readList(text) ?? splitList(text))].filter(Boolean);
}

async function loadTitle(item) {
  try {
    const answer = await request(`title ${item.item_id}`, `v1/similar/${encodeURIComponent(item.item_id)}`, { query: { k: 1 } });
    Object.assign(item, { title: null }, answer.item);
  } catch (error) {
    if (!isSuperseded(error)) item.title = null; // shown by its id
  }
}

/** Returns the ids of a JSON list of strings, which may contain any character; undefined for any other text. */
function readList(text) {
  try {
    const list = JSON.parse(text);
    // Integers are read digit by digit below: here those above 2^53 are rounded already.
    return Array.isArray(list) && list.every((id) => typeof id === "string") ? list : undefined;
  } catch {
    return undefined;
  }
}

function splitList(text) {
  const areIntegers = /^[\s,;\-\d[\]"]*$/.test(text);
  const parts = text.trim().replace(/^\[|\]$/g, "").split(areIntegers ? /[\s,;]+/ : /[\n\t,;]+/);
  return parts.map((part) => part.trim().replace(/^"|"$/g, ""));
}

function entryOf(item, onclick) {
  const remove = element("button", { type: "button", onclick }, "×");
  remove.setAttribute("aria-label", `Remove ${nameOf(item)}`);
  return element("li", {}, element("span", { title: nameOf(item) }, nameOf(item)), remove);
}
