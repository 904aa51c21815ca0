/** A combobox that searches items by title (ARIA 1.2 pattern: focus stays in the input). */

import { isSuperseded, request } from "./api.js";
import { categoriesOf, element, nameOf } from "./render.js";

const PAUSE_MS = 160;

/** Turns `input` and `list` into an item search; calls `onChoose(item)` with the chosen item. */
export function makeItemSearch(input, list, onChoose) {
  let found = [];
  let active = -1;
  let timer = 0;

  const close = () => {
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
    activate(-1);
  };

  const activate = (index) => {
    active = index;
    [...list.querySelectorAll("[role=option]")].forEach((option, i) => {
      option.setAttribute("aria-selected", String(i === index));
      if (i === index) option.scrollIntoView({ block: "nearest" });
    });
    if (index < 0) input.removeAttribute("aria-activedescendant");
    else input.setAttribute("aria-activedescendant", `item-option-${index}`);
  };

  const choose = (index) => {
    const item = found[index];
    input.value = "";
    found = [];
    close();
    onChoose(item);
  };

  const open = (message) => {
    const options = found.map((item, index) => optionOf(item, index, () => choose(index)));
    list.replaceChildren(...(options.length ? options : [element("li", { className: "nothing" }, message)]));
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
    activate(found.length ? 0 : -1);
  };

  const search = async () => {
    const query = input.value.trim();
    try {
      const answer = await request("search", "v1/items", { query: { query, limit: 12 } });
      found = answer.items;
      if (document.activeElement === input) open("No matching titles.");
    } catch (error) {
      if (isSuperseded(error)) return;
      found = [];
      open(`${error.title}. ${error.detail}`);
    }
  };

  const searchSoon = () => {
    clearTimeout(timer);
    timer = setTimeout(search, PAUSE_MS);
  };

  input.addEventListener("input", searchSoon);
  input.addEventListener("focus", searchSoon);
  input.addEventListener("blur", () => {
    clearTimeout(timer);
    close();
  });
  input.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && list.hidden) searchSoon();
    else if (step && found.length) activate((active + step + found.length) % found.length);
    else if (event.key === "Enter" && active >= 0 && !list.hidden) choose(active);
    else if (event.key === "Escape" && !list.hidden) close();
    else return;
    event.preventDefault();
  });
}

function optionOf(item, index, onChoose) {
  const details = [...categoriesOf(item), item.title ? item.item_id : ""].filter(Boolean).join(" · ");
  const option = element("li", { id: `item-option-${index}` }, nameOf(item), details ? element("small", {}, details) : null);
  option.setAttribute("role", "option");
  // mousedown comes before the input's blur, which would close the list under the pointer.
  option.addEventListener("mousedown", (event) => {
    event.preventDefault();
    onChoose();
  });
  return option;
}
