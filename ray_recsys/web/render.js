/** Turns responses into elements. Text is only set through textContent, so no title can inject markup. */

/** Returns the element with an id. */
export const byId = (id) => document.getElementById(id);

/** Returns a new element with the given properties; children may be strings, null ones are dropped. */
export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Returns an item's title, or its id if it has none. */
export const nameOf = (item) => item.title || item.item_id;

/** Returns an item's categories, written `Drama|Romance` or `Drama, Romance`. */
export function categoriesOf(item) {
  return String(item.category ?? "").split(/\||, /).map((name) => name.trim()).filter(Boolean);
}

/** Returns the `count` most frequent categories that occur at least twice. */
export function topCategories(items, count) {
  const tally = new Map();
  for (const name of items.flatMap(categoriesOf)) tally.set(name, (tally.get(name) ?? 0) + 1);
  const ranked = [...tally].filter(([, times]) => times > 1).sort((a, b) => b[1] - a[1]);
  return new Set(ranked.slice(0, count).map(([name]) => name));
}

/** Fills a list with items; each is a button that calls `onChoose(item)`. */
export function showItems(list, items, { onChoose, shared = new Set(), isRanked = true, onLike, onHide }) {
  const scale = scoreScale(items.map((item) => item.score).filter(Number.isFinite));
  const rows = items.map((item, index) => {
    const button = element(
      "button",
      { type: "button", onclick: () => onChoose(item) },
      isRanked ? element("span", { className: "rank" }, String(index + 1)) : null,
      element("span", {}, element("span", { className: "title" }, nameOf(item)), metaOf(item, shared)),
      isRanked && Number.isFinite(item.score) ? scoreOf(item.score, scale) : ratingOf(item),
      reasonOf(item),
    );
    button.dataset.itemId = item.item_id;
    return element("li", {}, button, onLike ? actionsOn(item, onLike, onHide) : null);
  });
  list.replaceChildren(...rows);
}

function actionsOn(item, onLike, onHide) {
  const action = (text, label, act) => {
    const button = element("button", { type: "button", title: label, onclick: () => act(item) }, text);
    button.setAttribute("aria-label", `${label}: ${nameOf(item)}`);
    return button;
  };
  return element("span", { className: "actions" }, action("\u2665", "Like", onLike), action("\u00d7", "Hide", onHide));
}

/** Fills an empty list with placeholders. */
export function showSkeleton(list, count) {
  if (list.childElementCount) return;
  const rows = Array.from({ length: count }, () => element("li", { className: "skeleton" }));
  rows.forEach((row) => row.setAttribute("aria-hidden", "true"));
  list.replaceChildren(...rows);
}

/** Shows a problem in `container`, null clears it; `onRetry` adds a button if a retry may help. */
export function showProblem(container, problem, onRetry) {
  if (!problem) return container.replaceChildren();
  const facts = [["field", problem.field], ["value", problem.value], ["limit", problem.limit]]
    .filter(([, value]) => value !== undefined && value !== null)
    .map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, shorten(value))));
  const mayPass = problem.status === 0 || problem.status >= 500 || problem.status === 429;
  const box = element(
    "div",
    { className: "alert" },
    element("b", {}, problem.title),
    problem.detail ? element("p", {}, problem.detail) : null,
    facts.length ? element("dl", {}, ...facts) : null,
    mayPass && onRetry ? element("button", { type: "button", onclick: onRetry }, "Try again") : null,
  );
  box.setAttribute("role", "alert");
  container.replaceChildren(box);
}

/** Sets CSS variables of an element, which the page's content security policy forbids as markup. */
export function withStyle(node, properties) {
  for (const [name, value] of Object.entries(properties)) node.style.setProperty(name, value);
  return node;
}

/** Returns milliseconds with three significant digits. */
export function formatMs(ms) {
  return ms >= 100 ? ms.toFixed(0) : ms.toFixed(ms >= 10 ? 1 : 2);
}

function metaOf(item, shared) {
  const tags = categoriesOf(item).slice(0, 6).map((name) => element("span", { className: shared.has(name) ? "tag shared" : "tag" }, name));
  const id = item.title ? element("span", { className: "id" }, item.item_id) : null;
  return tags.length || id ? element("span", { className: "meta" }, ...tags, id) : null;
}

function reasonOf(item) {
  return item.because?.length ? element("span", { className: "because" }, `because you saw ${item.because.map(nameOf).join(" · ")}`) : null;
}

function ratingOf(item) {
  if (!Number.isFinite(item.rating)) return null;
  return element("span", { className: "rating" }, element("span", { className: "hidden" }, "rated "), `${item.rating.toLocaleString("en")} ★`);
}

function scoreScale(scores) {
  const [low, high] = [Math.min(...scores), Math.max(...scores)];
  const from = low < 0 ? low - (high - low) * 0.1 : 0;
  return (score) => (high > from ? (score - from) / (high - from) : 0);
}

function scoreOf(score, scale) {
  const digits = Math.abs(score) >= 100 ? 0 : 3;
  const text = score.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const label = element("span", { className: "hidden" }, "score ");
  return element("span", { className: "score" }, label, text, withStyle(element("i"), { "--share": String(scale(score)) }));
}

function shorten(value) {
  const text = typeof value === "object" ? JSON.stringify(value) : String(value);
  return text.length > 120 ? `${text.slice(0, 117)}…` : text;
}
