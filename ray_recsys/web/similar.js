/** The drawer of similar items: a modal dialog with its own back button. */

import { cancel, isSuperseded, request } from "./api.js";
import { byId, nameOf, showItems, showProblem, showSkeleton } from "./render.js";

const NUM_SIMILAR = 12;

/** Wires the drawer; returns `open(item)`. `onAdd(item)` is called for an item added to the history. */
export function makeSimilarDrawer(onAdd) {
  const dialog = byId("similar");
  const list = byId("similar-items");
  const visited = [];

  const close = () => dialog.close();

  const show = async () => {
    const item = visited.at(-1);
    byId("similar-title").textContent = nameOf(item);
    byId("similar-back").hidden = visited.length < 2;
    showProblem(byId("similar-alert"), null);
    list.replaceChildren();
    showSkeleton(list, 6);
    dialog.setAttribute("aria-busy", "true");
    byId("similar-title").focus();
    try {
      const answer = await request("similar", `v1/similar/${encodeURIComponent(item.item_id)}`, { query: { k: NUM_SIMILAR } });
      showItems(list, answer.items, { onChoose: visit });
      byId("status").textContent = `${answer.items.length} items similar to ${nameOf(item)}`;
    } catch (error) {
      if (isSuperseded(error)) return;
      list.replaceChildren();
      showProblem(byId("similar-alert"), error, show);
    }
    dialog.setAttribute("aria-busy", "false");
  };

  const visit = (item) => {
    visited.push(item);
    byId("similar-items").parentElement.scrollTop = 0;
    show();
  };

  byId("similar-close").addEventListener("click", close);
  byId("similar-back").addEventListener("click", () => {
    visited.pop();
    show();
  });
  byId("similar-add").addEventListener("click", () => {
    const item = visited.at(-1);
    close();
    onAdd(item);
  });
  dialog.addEventListener("click", (event) => event.target === dialog && close());
  dialog.addEventListener("close", () => cancel("similar"));

  return (item) => {
    visited.length = 0;
    if (!dialog.open) dialog.showModal();
    visit(item);
  };
}
