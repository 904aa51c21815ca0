/** Turns answers into elements. Text enters the page through textContent alone, so that no title can be markup. */

/** Returns the element with an id. */
export const byId = (id) => document.getElementById(id);

/** Returns a new element; properties are set as they are, children may be strings. */
export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Returns what to call an item: its title, else its id. */
export const nameOf = (item) => item.title || String(item.item_id);

/** Returns an item's categories; several are written `Drama|Romance` or `Drama, Romance`. */
export function categoriesOf(item) {
  return String(item.category ?? "").split(/\||, /).map((name) => name.trim()).filter(Boolean);
}

/** Returns the categories met most often, at most `count`, each at least twice. */
export function topCategories(items, count) {
  const tally = new Map();
  for (const name of items.flatMap(categoriesOf)) tally.set(name, (tally.get(name) ?? 0) + 1);
  const ranked = [...tally].filter(([, times]) => times > 1).sort((a, b) => b[1] - a[1]);
  return new Set(ranked.slice(0, count).map(([name]) => name));
}

/** Fills a list with items; each is a button that calls `onChoose(item)`. */
export function showItems(list, items, { onChoose, shared = new Set(), isRanked = true }) {
  const scores = items.map((item) => item.score).filter(Number.isFinite);
  const scale = scoreScale(scores);
  const rows = items.map((item, place) => {
    const button = element(
      "button",
      { type: "button", onclick: () => onChoose(item) },
      isRanked ? element("span", { className: "rank" }, String(place + 1)) : null,
      element("span", {}, element("span", { className: "title" }, nameOf(item)), metaOf(item, shared)),
      isRanked && Number.isFinite(item.score) ? scoreOf(item.score, scale) : null,
    );
    button.dataset.itemId = String(item.item_id);
    return element("li", {}, button);
  });
  list.replaceChildren(...rows);
}

/** Fills a list with placeholders, unless it shows something already. */
export function showSkeleton(list, count) {
  if (list.childElementCount) return;
  const rows = Array.from({ length: count }, () => element("li", { className: "skeleton" }));
  rows.forEach((row) => row.setAttribute("aria-hidden", "true"));
  list.replaceChildren(...rows);
}

/** Shows a problem in `place` (null clears it); `onRetry` adds a button for those that may pass. */
export function showProblem(place, problem, onRetry) {
  if (!problem) return place.replaceChildren();
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
  place.replaceChildren(box);
}

/** Shows where the time of an answer went: the graph's stages, and the whole way as the browser saw it. */
export function showTimings(bar, legend, timings, roundTripMs) {
  const { total = 0, ...stages } = timings;
  const staged = Object.values(stages).reduce((sum, ms) => sum + ms, 0);
  const colours = ["var(--accent)", "var(--violet)", "var(--amber)"];
  const parts = Object.entries(stages).map(([name, ms], place) => ({ name, ms, colour: colours[place % colours.length] }));
  const rest = { ms: Math.max(0, total - staged), colour: "var(--line-strong)" };
  const share = (ms) => String(ms / Math.max(total, staged, Number.EPSILON));
  bar.replaceChildren(
    ...[...parts, rest].map(({ ms, colour }) => withStyle(element("span"), { "--share": share(ms), "--colour": colour })),
  );
  legend.replaceChildren(
    ...parts.map(({ name, ms, colour }) => withStyle(fact(name, `${formatMs(ms)} ms`), { "--colour": colour })),
    fact("total", `${formatMs(total)} ms`, "plain"),
    fact("round trip", `${formatMs(roundTripMs)} ms`, "plain"),
  );
}

/** Returns a pair of a definition list as one element. */
function fact(name, value, className = "") {
  return element("div", { className }, element("dt", {}, name), element("dd", {}, value));
}

function metaOf(item, shared) {
  const tags = categoriesOf(item).slice(0, 6).map((name) => element("span", { className: shared.has(name) ? "tag shared" : "tag" }, name));
  const id = item.title ? element("span", { className: "id" }, String(item.item_id)) : null;
  return tags.length || id ? element("span", { className: "meta" }, ...tags, id) : null;
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

function withStyle(node, properties) {
  for (const [name, value] of Object.entries(properties)) node.style.setProperty(name, value);
  return node;
}

function formatMs(ms) {
  return ms >= 100 ? ms.toFixed(0) : ms.toFixed(ms >= 10 ? 1 : 2);
}

function shorten(value) {
  const text = typeof value === "object" ? JSON.stringify(value) : String(value);
  return text.length > 120 ? `${text.slice(0, 117)}…` : text;
}
