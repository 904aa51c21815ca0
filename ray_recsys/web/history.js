/** The history of a new user as a list of removable entries; the caller owns the items. */

import { isSuperseded, request } from "./api.js";
import { byId, element, nameOf } from "./render.js";

const MAX_TITLES = 50; // one request each

/** Shows the entries; `onRemove(item)` is called for the one that is taken out. */
export function showHistory(items, onRemove) {
  byId("history").replaceChildren(...items.map((item) => entryOf(item, () => onRemove(item))));
  byId("history-empty").hidden = items.length > 0;
  byId("clear-history").hidden = items.length === 0;
}

/** Fills in the titles and categories of items that were pasted or linked as bare ids; of very many, the first. */
export async function learnTitles(items) {
  const bare = items.filter((item) => item.title === undefined);
  for (const item of bare.splice(MAX_TITLES)) item.title = null; // it is shown by its id
  await Promise.all(bare.map(learnTitle));
}

async function learnTitle(item) {
  try {
    const answer = await request(`title ${item.item_id}`, `v1/similar/${encodeURIComponent(item.item_id)}?k=1`);
    Object.assign(item, { title: null }, answer.item);
  } catch (error) {
    if (!isSuperseded(error)) item.title = null; // it is shown by its id
  }
}

function entryOf(item, onclick) {
  const remove = element("button", { type: "button", onclick }, "×");
  remove.setAttribute("aria-label", `Remove ${nameOf(item)}`);
  return element("li", {}, element("span", { title: nameOf(item) }, nameOf(item)), remove);
}
