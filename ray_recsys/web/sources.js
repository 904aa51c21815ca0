/** Where recommendations came from, in words. */

const SOURCES = {
  "two-stage": ["Two-stage", "Recalled by Faiss, reranked by NeuMF"],
  "fold-in": ["Fold-in", "From the history alone, without training"],
  popular: ["Popular", "What most people chose"],
};

/** Returns [word, meaning] of an answer's source. */
export const describeSource = (source) => SOURCES[source] ?? [source, ""];

/** Returns what a person should know about how an answer came about, or nothing. */
export function noteOn(answer, who) {
  if (answer.source === "popular") return `${who}: no history that this bundle knows. These are its most popular items.`;
  const unknown = answer.num_unknown_history ?? 0;
  return unknown ? `${unknown} of the history's items ${unknown === 1 ? "is" : "are"} unknown to this bundle and left out.` : "";
}
