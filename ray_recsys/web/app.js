/** The page: who is asked for (kept in the address after #), the requests that follow from it, and the wiring. */

import { cancel, isSuperseded, request, stringify } from "./api.js";
import { showBundle } from "./bundle.js";
import { learnTitles, showHistory } from "./history.js";
import { learnKind, parseId, parseItemIds } from "./ids.js";
import { byId, element, showItems, showProblem, showSkeleton, showTimings, topCategories } from "./render.js";
import { makeItemSearch } from "./search.js";
import { makeSimilarDrawer } from "./similar.js";
import { describeSource, noteOn } from "./sources.js";

const NUM_USERS_SHOWN = 14;
const NUM_USERS_ASKED = 100;
const NUM_SEEN = 50;

/** mode: "user" | "history"; user: id or null; history: [{item_id, title?}] in order of entry. */
const state = { mode: "user", user: null, history: [] };
let knownUsers = [];
let shared = new Set();
let turn = 0; // of what is asked; an answer to an earlier turn is not shown
let seenShown = Promise.resolve();

const openSimilar = makeSimilarDrawer((item) => {
  addToHistory([item]);
  byId("tab-history").focus(); // the button that had it is gone
});

// ---- what is asked ----

function requestBody() {
  const who = state.mode === "user" ? { user_id: state.user } : { history: state.history.map((item) => item.item_id) };
  const candidates = numberOf("num-candidates");
  return {
    ...who,
    k: numberOf("k"),
    ...(candidates === "" ? {} : { num_candidates: candidates }), // the recipe's
    exclude_seen: byId("exclude-seen").checked,
  };
}

/** An empty or odd entry is sent as it is: the server's answer names the field and the limit. */
function numberOf(id) {
  const text = byId(id).value.trim();
  return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
}

function isAsked() {
  return state.mode === "user" ? state.user !== null : state.history.length > 0;
}

// ---- recommendations ----

/** Asks and shows; what is seen is shown before, because its categories mark those of the items. */
async function recommend() {
  cancel("recommend");
  const own = ++turn;
  if (!isAsked()) return showEmpty();
  const body = requestBody();
  const card = byId("results");
  card.setAttribute("aria-busy", "true");
  byId("results-empty").hidden = true;
  showSkeleton(byId("recommendations"), 8);
  const start = performance.now();
  try {
    const answer = await request("recommend", "v1/recommend", body);
    const roundTripMs = performance.now() - start;
    await seenShown;
    if (own !== turn) return;
    showProblem(byId("results-alert"), null);
    markInvalid(null);
    showAnswer(answer, body, roundTripMs);
  } catch (error) {
    if (isSuperseded(error) || own !== turn) return;
    clearAnswer();
    markInvalid(error.field);
    showProblem(byId("results-alert"), error, refresh);
  }
  card.setAttribute("aria-busy", "false");
}

function showAnswer(answer, body, roundTripMs) {
  const [word, meaning] = describeSource(answer.source);
  const list = byId("recommendations");
  showItems(list, answer.items, { onChoose: openSimilar, shared });
  byId("results-sub").textContent = `${describeWho()} · ${meaning}`;
  Object.assign(byId("source"), { textContent: word, title: meaning, hidden: false });
  byId("source").dataset.source = answer.source;
  const note = noteOn(answer, describeWho());
  byId("results-note").hidden = note === "";
  byId("results-note").textContent = note;
  byId("results-empty").hidden = answer.items.length > 0;
  byId("results-empty-text").textContent = "Nothing is left to recommend under these settings.";
  byId("timings").hidden = false;
  showTimings(byId("timing-bar"), byId("timing-legend"), answer.timings_ms ?? {}, roundTripMs);
  byId("request").hidden = false;
  byId("request-text").textContent = asCurl(body);
  byId("status").textContent = `${answer.items.length} recommendations for ${describeWho()}, ${word}`;
  if (answer.bundle !== byId("bundle-version").textContent) showBundle();
}

function clearAnswer() {
  byId("recommendations").replaceChildren();
  for (const id of ["timings", "request", "source", "results-note", "results-empty"]) byId(id).hidden = true;
  byId("results-sub").textContent = isAsked() ? describeWho() : "";
}

function showEmpty() {
  clearAnswer();
  showProblem(byId("results-alert"), null);
  byId("results").setAttribute("aria-busy", "false");
  byId("results-empty").hidden = false;
  byId("results-empty-text").textContent =
    state.mode === "user" ? "Choose a user, or type an id." : "Search for an item that this person liked, or paste ids.";
}

function markInvalid(field) {
  const inputs = { k: "k", num_candidates: "num-candidates", user_id: "user-id" };
  for (const [name, id] of Object.entries(inputs)) byId(id).setAttribute("aria-invalid", String(name === field));
}

function describeWho() {
  return state.mode === "user" ? `User ${state.user}` : `New user with ${state.history.length} item${state.history.length === 1 ? "" : "s"}`;
}

function asCurl(body) {
  const url = new URL("v1/recommend", document.baseURI);
  const quoted = stringify(body).replaceAll("'", "'\\''");
  return `curl -s ${url} -H 'Content-Type: application/json' \\\n  -d '${quoted}'`;
}

// ---- what they liked ----

async function showSeen() {
  cancel("seen");
  const empty = byId("seen-empty");
  const list = byId("seen");
  if (state.mode === "history") return showEntered(state.history);
  if (state.user === null) return fillSeen([], "", "Nobody is chosen yet.");
  showSkeleton(list, 6);
  empty.hidden = true;
  try {
    const answer = await request("seen", `v1/users/${encodeURIComponent(state.user)}/seen?limit=${NUM_SEEN}`);
    learnKind("item", answer.items[0]?.item_id);
    const count = answer.items.length;
    const sub = count === NUM_SEEN ? `The latest ${count}` : `${count} items, latest first`;
    fillSeen(answer.items, sub, "Nothing is known of this user.");
  } catch (error) {
    if (isSuperseded(error)) return;
    fillSeen([], "", error.status === 404 ? "Nothing is known of this user." : `${error.title}. ${error.detail}`);
  }
}

async function showEntered(items) {
  await learnTitles(items);
  if (state.mode !== "history" || state.history !== items) return; // it changed meanwhile
  showHistory(items, removeFromHistory);
  fillSeen(items, "What was entered", "The history that you enter appears here.");
}

function fillSeen(items, sub, emptyText) {
  shared = topCategories(items, 3);
  showItems(byId("seen"), items, { onChoose: openSimilar, shared, isRanked: false });
  byId("seen-sub").textContent = items.length ? sub + (shared.size ? ". Marked: frequent here" : "") : "";
  byId("seen-title").closest("section").classList.remove("all");
  byId("seen-empty").hidden = items.length > 0;
  byId("seen-empty").textContent = emptyText;
}

// ---- who: the address, the two tabs, the history ----

/** Shows everything for the state as it is. */
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
  byId("user-id").value = state.user === null ? "" : String(state.user);
  for (const button of byId("users").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.textContent === String(state.user)));
  }
  showHistory(state.history, removeFromHistory);
}

/** Writes the state into the address, which is what makes it shareable, and shows it. */
function go(change) {
  Object.assign(state, change);
  const hash = new URLSearchParams(
    state.mode === "user" ? { user: state.user ?? "" } : { history: stringify(state.history.map((item) => item.item_id)) },
  );
  history.pushState(null, "", `#${hash}`);
  refresh();
}

function readAddress() {
  const hash = new URLSearchParams(location.hash.slice(1));
  if (hash.has("history")) {
    const known = new Map(state.history.map((item) => [String(item.item_id), item]));
    state.mode = "history";
    state.history = parseItemIds(hash.get("history")).map((id) => known.get(String(id)) ?? { item_id: id });
  } else if (hash.get("user")) {
    state.mode = "user";
    state.user = parseId(hash.get("user"), "user");
  } else {
    return false;
  }
  return true;
}

/** Shows what the address names; a bare address shows the first user, so that there is something to see. */
function openAddress() {
  if (!readAddress()) Object.assign(state, { mode: "user", user: knownUsers[0] ?? null });
  refresh();
}

const setHistory = (items) => go({ mode: "history", history: items });

function removeFromHistory(item) {
  setHistory(state.history.filter((kept) => kept !== item));
  byId("tab-history").focus(); // the button that had it is gone
}

function addToHistory(items) {
  const known = new Set(state.history.map((item) => String(item.item_id)));
  setHistory([...state.history, ...items.filter((item) => !known.has(String(item.item_id)))]);
}

// ---- start ----

async function loadUsers() {
  try {
    knownUsers = (await request("users", `v1/users?limit=${NUM_USERS_ASKED}`)).users;
    learnKind("user", knownUsers[0]);
    const chips = knownUsers.slice(0, NUM_USERS_SHOWN).map((id) =>
      element("li", {}, element("button", { type: "button", onclick: () => go({ mode: "user", user: id }) }, String(id))),
    );
    byId("users").replaceChildren(...chips);
  } catch {
    byId("users-label").textContent = "No list of users is available";
  }
  byId("random-user").hidden = knownUsers.length < 2;
}

/** Learns from one item whether ids are numbers: a pasted or linked history needs it before anything else is asked. */
async function learnItems() {
  try {
    learnKind("item", (await request("items", "v1/items?query=&limit=1")).items[0]?.item_id);
  } catch {
    // Without it ids are sent as text, and the recommend request itself says what is wrong.
  }
}

function wire() {
  byId("user-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const typed = byId("user-id").value.trim();
    go({ mode: "user", user: typed === "" ? null : parseId(typed, "user") });
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
  await Promise.all([showBundle(), loadUsers(), learnItems()]);
  openAddress();
}

start();
