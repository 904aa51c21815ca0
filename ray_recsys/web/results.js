/** The recommendations of the page: the list, how it was made, and how long it took. */

import { describeStages } from "./bundle.js";
import { byId, element, formatMs, showItems, showProblem, showSkeleton, withStyle } from "./render.js";

const INPUTS = { k: "k", num_candidates: "num-candidates", user_id: "user-id" };

/** Shows that a request is in flight. */
export function showPending() {
  byId("results").setAttribute("aria-busy", "true");
  byId("results-empty").hidden = true;
  showSkeleton(byId("recommendations"), 8);
}

/** Shows a response. `who` is the user in words, `body` the request. */
export function showAnswer(answer, { who, body, roundTripMs, onChoose, shared, onLike, onHide }) {
  finish(null);
  const [word, meaning] = describeSource(answer.source);
  showItems(byId("recommendations"), answer.items, { onChoose, shared, onLike, onHide });
  byId("results-sub").textContent = `${who} · ${meaning}${answer.arm && answer.arm !== "A" ? ` · arm ${answer.arm}` : ""}`;
  Object.assign(byId("source"), { textContent: word, title: meaning, hidden: false });
  byId("source").dataset.source = answer.source;
  const note = noteOn(answer, who);
  byId("results-note").hidden = note === "";
  byId("results-note").textContent = note;
  byId("results-empty").hidden = answer.items.length > 0;
  byId("results-empty-text").textContent = "No items are left to recommend with these settings.";
  byId("timings").hidden = false;
  showTimings(answer.timings_ms ?? {}, roundTripMs, noteRoundTrip(roundTripMs));
  byId("request").hidden = false;
  byId("request-text").textContent = asCurl(body);
  byId("status").textContent = `${answer.items.length} recommendations for ${who}, ${word}`;
}

/** Shows a failure in place of the response. */
export function showFailure(problem, who, onRetry) {
  clear(who);
  finish(problem, onRetry);
}

/** Shows what to do while there is nothing to ask for. */
export function showEmpty(text) {
  clear("");
  finish(null);
  byId("results-empty").hidden = false;
  byId("results-empty-text").textContent = text;
}

function clear(who) {
  byId("recommendations").replaceChildren();
  for (const id of ["timings", "request", "source", "results-note", "results-empty"]) byId(id).hidden = true;
  byId("results-sub").textContent = who;
}

function finish(problem, onRetry) {
  byId("results").setAttribute("aria-busy", "false");
  for (const [name, id] of Object.entries(INPUTS)) byId(id).setAttribute("aria-invalid", String(name === problem?.field));
  showProblem(byId("results-alert"), problem, onRetry);
}

function describeSource(source) {
  const sources = {
    "two-stage": ["Two-stage", describeStages()],
    "fold-in": ["Fold-in", "From the history, without retraining"],
    popular: ["Popular", "The most popular items"],
  };
  return sources[source] ?? [source, ""];
}

function noteOn(answer, who) {
  if (answer.source === "popular") return `${who} has no history in this bundle. These are its most popular items.`;
  const unknown = answer.num_unknown_history ?? 0;
  return unknown ? `${unknown} history item${unknown === 1 ? " is" : "s are"} not in this bundle and ignored.` : "";
}

function asCurl(body) {
  const url = new URL("v1/recommend", document.baseURI);
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  return `curl -s ${url} -H 'Content-Type: application/json' \\\n  -d '${quoted}'`;
}

const roundTrips = []; // of the last answers on this page

function noteRoundTrip(ms) {
  roundTrips.push(ms);
  if (roundTrips.length > 50) roundTrips.shift();
  return [...roundTrips].sort((a, b) => a - b)[Math.floor(roundTrips.length / 2)];
}

/** Shows where the time went: each stage, the whole request on the server, and the round trip seen by the browser. */
function showTimings(timings, roundTripMs, medianMs) {
  const { total = 0, ...stages } = timings;
  const staged = Object.values(stages).reduce((sum, ms) => sum + ms, 0);
  const colours = ["var(--accent)", "var(--violet)", "var(--amber)"];
  const parts = Object.entries(stages).map(([name, ms], index) => ({ name, ms, colour: colours[index % colours.length] }));
  const rest = { ms: Math.max(0, total - staged), colour: "var(--line-strong)" };
  const share = (ms) => String(ms / Math.max(total, staged, Number.EPSILON));
  byId("timing-bar").replaceChildren(
    ...[...parts, rest].map(({ ms, colour }) => withStyle(element("span"), { "--share": share(ms), "--colour": colour })),
  );
  byId("timing-legend").replaceChildren(
    ...parts.map(({ name, ms, colour }) => withStyle(fact(name, ms), { "--colour": colour })),
    fact("total", total, "plain"),
    fact("round trip", roundTripMs, "plain"),
    fact(`median of ${roundTrips.length}`, medianMs, "plain"),
  );
}

function fact(name, ms, className = "") {
  return element("div", { className }, element("dt", {}, name), element("dd", {}, `${formatMs(ms)} ms`));
}
