/** The page: whose recommendations are shown (kept in the address after #), the requests for them, and the wiring. */

import { cancel, isSuperseded, request } from "./api.js";
import { showBundle, watchBundle } from "./bundle.js";
import { loadTitles, parseItemIds, showHistory } from "./history.js";
import { byId, element, showItems, showSkeleton, topCategories } from "./render.js";
import { showAnswer, showEmpty, showFailure, showPending } from "./results.js";
import { makeItemSearch } from "./search.js";
import { makeSimilarDrawer } from "./similar.js";

const NUM_USERS_SHOWN = 14;
const NUM_USERS_LOADED = 100;
const NUM_SEEN = 50; // at first, and as many more at a time
const MAX_SEEN = 1000;

/** mode: "user" | "history"; user: id or null; history: [{item_id, title?}], oldest first. */
const state = { mode: "user", user: null, history: [] };
let feedback = { liked: [], hidden: [] }; // on the recommendations of the user shown
let numSeen = NUM_SEEN;
let knownUsers = [];
let shared = new Set();
let turn = 0; // counts requests; the response to an earlier one is not shown
let seenShown = Promise.resolve();

const openSimilar = makeSimilarDrawer((item) => {
  addToHistory([item]);
  byId("tab-history").focus(); // the focused button is gone
});

// ---- recommendations ----

function requestBody() {
  const ids = (items) => items.map((item) => item.item_id);
  const liked = ids(feedback.liked);
  const who = state.mode === "user" ? { user_id: state.user, ...(liked.length ? { history: liked } : {}) } : { history: ids(state.history) };
  const candidates = numberOf("num-candidates");
  const category = byId("category").value;
  return {
    ...who,
    ...(category ? { category } : {}),
    ...(feedback.hidden.length ? { exclude_items: ids(feedback.hidden) } : {}),
    k: numberOf("k"),
    ...(candidates === "" ? {} : { num_candidates: candidates }), // empty: the server's default
    exclude_seen: byId("exclude-seen").checked,
    explain: true,
  };
}

/** Returns a number, or an invalid entry unchanged: the server's problem names the field and the limit. */
function numberOf(id) {
  const text = byId(id).value.trim();
  return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
}

/** Requests and shows recommendations, after the seen items, whose categories are highlighted in them. */
async function recommend() {
  cancel("recommend");
  const own = ++turn;
  if (state.mode === "user" && state.user === null) return showEmpty("Select a user or enter an id.");
  if (state.mode === "history" && !state.history.length) return showEmpty("Search for items this person has seen, or paste ids.");
  const body = requestBody();
  showPending();
  const start = performance.now();
  try {
    const answer = await request("recommend", "v1/recommend", { body });
    const roundTripMs = performance.now() - start;
    await seenShown;
    if (own !== turn) return;
    showAnswer(answer, { who: describeWho(), body, roundTripMs, onChoose: openSimilar, shared, onLike: like, onHide: hide });
    if (answer.bundle !== byId("bundle-version").textContent) showBundle();
  } catch (error) {
    if (!isSuperseded(error) && own === turn) showFailure(error, describeWho(), refresh);
  }
}

function describeWho() {
  return state.mode === "user" ? `User ${state.user}` : `New user with ${state.history.length} item${state.history.length === 1 ? "" : "s"}`;
}

// ---- like and hide: what is liked counts as seen, and the list is made again at once ----

function like(item) {
  if (state.mode === "history") return addToHistory([item]);
  react({ ...feedback, liked: [...feedback.liked, item] });
}

function hide(item) {
  react({ ...feedback, hidden: [...feedback.hidden, item] });
}

async function react(changed) {
  feedback = changed;
  showFeedback();
  await recommend();
  byId("results").focus(); // the focused button is gone
}

function showFeedback() {
  const { liked, hidden } = feedback;
  byId("feedback").hidden = !liked.length && !hidden.length;
  byId("feedback-text").textContent = `${liked.length} liked, ${hidden.length} hidden`;
}

// ---- popular items, beside the recommendations ----

async function showPopular() {
  const category = byId("category").value;
  try {
    const answer = await request("popular", "v1/recommend", { body: { k: 10, ...(category ? { category } : {}) } });
    showItems(byId("popular"), answer.items, { onChoose: openSimilar });
    byId("popular-box").hidden = answer.items.length === 0;
  } catch (error) {
    if (!isSuperseded(error)) byId("popular-box").hidden = true;
  }
}

// ---- seen items ----

async function showSeen() {
  cancel("seen");
  if (state.mode === "history") return showEntered(state.history);
  if (state.user === null) return fillSeen([], "", "No user selected.");
  showSkeleton(byId("seen"), 6);
  byId("seen-empty").hidden = true;
  const asked = numSeen;
  try {
    const answer = await request("seen", `v1/users/${encodeURIComponent(state.user)}/seen`, { query: { limit: asked } });
    const count = answer.items.length;
    const sub = count === asked ? `The latest ${count}` : `${count} items, latest first`;
    fillSeen(answer.items, sub, "This user has no history.");
    byId("seen-more").hidden = count < asked || asked >= MAX_SEEN;
  } catch (error) {
    if (isSuperseded(error)) return;
    fillSeen([], "", error.status === 404 ? "This user has no history." : `${error.title}. ${error.detail}`);
  }
}

async function showEntered(items) {
  await loadTitles(items);
  if (state.mode !== "history" || state.history !== items) return; // changed meanwhile
  showHistory(items, removeFromHistory);
  fillSeen(items, "As entered", "The history you enter appears here.");
}

function fillSeen(items, sub, emptyText) {
  shared = topCategories(items, 3);
  showItems(byId("seen"), items, { onChoose: openSimilar, shared, isRanked: false });
  byId("seen-sub").textContent = items.length ? sub + (shared.size ? ". Highlighted: frequent categories" : "") : "";
  byId("seen-title").closest("section").classList.toggle("all", numSeen > NUM_SEEN);
  byId("seen-more").hidden = true;
  byId("seen-empty").hidden = items.length > 0;
  byId("seen-empty").textContent = emptyText;
}

// ---- the address, the two tabs, the history ----

/** Shows everything for the current state. */
async function refresh() {
  showControls();
  seenShown = showSeen();
  await recommend();
}

function showControls() {
  const isUser = state.mode === "user";
  for (const [mode, isSelected] of [["user", isUser], ["history", !isUser]]) {
    byId(`tab-${mode}`).setAttribute("aria-selected", String(isSelected));
    byId(`tab-${mode}`).tabIndex = isSelected ? 0 : -1;
    byId(`panel-${mode}`).hidden = !isSelected;
  }
  byId("user-id").value = state.user ?? "";
  for (const button of byId("users").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.textContent === state.user));
  }
  showHistory(state.history, removeFromHistory);
}

/** Changes the state, writes it into the address so that it can be shared, and shows it. */
function go(change) {
  Object.assign(state, change);
  forgetFeedback();
  const hash = new URLSearchParams(
    state.mode === "user" ? { user: state.user ?? "" } : { history: JSON.stringify(state.history.map((item) => item.item_id)) },
  );
  history.pushState(null, "", `#${hash}`);
  refresh();
}

function forgetFeedback() {
  feedback = { liked: [], hidden: [] };
  numSeen = NUM_SEEN;
  showFeedback();
}

function readAddress() {
  const hash = new URLSearchParams(location.hash.slice(1));
  if (hash.has("history")) {
    const known = new Map(state.history.map((item) => [item.item_id, item]));
    state.mode = "history";
    state.history = parseItemIds(hash.get("history")).map((id) => known.get(id) ?? { item_id: id });
  } else if (hash.get("user")) {
    state.mode = "user";
    state.user = hash.get("user");
  } else {
    return false;
  }
  return true;
}

/** Shows what the address names; without a name, the first user. */
function openAddress() {
  forgetFeedback();
  if (!readAddress()) Object.assign(state, { mode: "user", user: knownUsers[0] ?? null });
  refresh();
}

const setHistory = (items) => go({ mode: "history", history: items });

function removeFromHistory(item) {
  setHistory(state.history.filter((kept) => kept !== item));
  byId("tab-history").focus(); // the focused button is gone
}

function addToHistory(items) {
  const known = new Set(state.history.map((item) => item.item_id));
  setHistory([...state.history, ...items.filter((item) => !known.has(item.item_id))]);
}

// ---- start ----

async function loadUsers() {
  try {
    knownUsers = (await request("users", "v1/users", { query: { limit: NUM_USERS_LOADED } })).users;
    const chips = knownUsers.slice(0, NUM_USERS_SHOWN).map((id) =>
      element("li", {}, element("button", { type: "button", onclick: () => go({ mode: "user", user: id }) }, id)),
    );
    byId("users").replaceChildren(...chips);
  } catch {
    byId("users-label").textContent = "The list of users is not available";
  }
  byId("random-user").hidden = knownUsers.length < 2;
}

function wire() {
  byId("user-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const typed = byId("user-id").value.trim();
    go({ mode: "user", user: typed === "" ? null : typed });
  });
  byId("random-user").addEventListener("click", () => {
    const others = knownUsers.filter((id) => id !== state.user);
    go({ mode: "user", user: others[Math.floor(Math.random() * others.length)] });
  });
  const tabs = ["user", "history"];
  for (const mode of tabs) {
    byId(`tab-${mode}`).addEventListener("click", () => go({ mode }));
    byId(`tab-${mode}`).addEventListener("keydown", (event) => {
      if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
      const other = tabs[1 - tabs.indexOf(mode)];
      go({ mode: other });
      byId(`tab-${other}`).focus();
    });
  }
  makeItemSearch(byId("item-search"), byId("item-options"), (item) => addToHistory([item]));
  byId("clear-history").addEventListener("click", () => {
    setHistory([]);
    byId("item-search").focus();
  });
  byId("paste-form").addEventListener("submit", (event) => {
    event.preventDefault();
    addToHistory(parseItemIds(byId("paste-ids").value).map((id) => ({ item_id: id })));
    byId("paste-ids").value = "";
  });
  byId("seen-more").addEventListener("click", () => {
    numSeen = Math.min(numSeen + NUM_SEEN, MAX_SEEN);
    showSeen();
  });
  byId("feedback-clear").addEventListener("click", () => react({ liked: [], hidden: [] }));
  byId("category").addEventListener("change", showPopular);
  byId("seen-all").addEventListener("click", (event) => event.target.closest("section").classList.add("all"));
  let timer = 0;
  byId("settings").addEventListener("submit", (event) => event.preventDefault());
  byId("settings").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(recommend, 200);
  });
  window.addEventListener("popstate", openAddress);
}

async function start() {
  wire();
  await Promise.all([showBundle(), loadUsers()]);
  openAddress();
  showPopular();
  watchBundle();
}

start();
