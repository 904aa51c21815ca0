/** The header's description of the live bundle. */

import { isSuperseded, request } from "./api.js";
import { byId, element } from "./render.js";

const WATCH_MS = 5_000;

let stages = "Recalled from the catalogue, then reranked";

/** Returns a description of the stages for known users. */
export const describeStages = () => stages;

/** Loads the live bundle and shows its version, models, counts and metrics. */
export async function showBundle() {
  try {
    const bundle = await request("bundle", "v1/bundle");
    const { model_label: model, recall_model_label: recallModel } = bundle;
    stages = `Recalled ${recallModel === model ? "from the catalogue" : `by ${recallModel}`}, reranked by ${model}`;
    byId("bundle-version").textContent = bundle.version;
    byId("bundle-model").textContent = model;
    byId("bundle-quality").textContent = qualityOf(bundle.metrics);
    byId("bundle-facts").replaceChildren(...factsOf(bundle).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
    byId("bundle").classList.toggle("failing", Boolean(bundle.swap_failure || bundle.arm_failure));
    showCategories(bundle.categories ?? []);
    byId("bundle").hidden = false;
  } catch (error) {
    if (!isSuperseded(error)) byId("bundle").hidden = true;
  }
}

function showCategories(names) {
  byId("category-field").hidden = names.length === 0;
  const chosen = byId("category").value;
  byId("category").replaceChildren(element("option", { value: "" }, "Any"), ...names.map((name) => element("option", { value: name }, name)));
  byId("category").value = names.includes(chosen) ? chosen : "";
}

/** Polls the live bundle, so that a refused version or a new arm appears while the page is open. */
export function watchBundle() {
  setInterval(() => document.hidden || showBundle(), WATCH_MS);
}

/** Returns the metric of the header: NDCG@10 of the test or else of validation; empty if neither was measured. */
function qualityOf(metrics) {
  const measured = ["test", "validation"].find((split) => metrics[split]?.["NDCG@10"] !== undefined);
  return measured ? `${measured} NDCG@10 ${metrics[measured]["NDCG@10"].toFixed(4)}` : "";
}

function factsOf(bundle) {
  const number = (value) => value.toLocaleString("en", { maximumFractionDigits: 4 });
  const created = new Date(bundle.created_at).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
  const metrics = Object.entries(bundle.metrics).flatMap(([split, values]) =>
    Object.entries(values).map(([name, value]) => [`${split} ${name}`, number(value)]),
  );
  return [
    ...(bundle.swap_failure ? [["refused", `${bundle.swap_failure.version ?? "CURRENT"}: ${bundle.swap_failure.reason}`]] : []),
    ...(bundle.arm_failure ? [["arms", bundle.arm_failure]] : []),
    ...(bundle.arms ?? []).map((arm) => [`arm ${arm.name}`, `${arm.version}, ${arm.percent} %${arm.shadow ? " (shadow)" : ""}`]),
    ["model", bundle.model_label],
    ...(bundle.recall_model === bundle.model ? [] : [["recall model", bundle.recall_model_label]]),
    ["created", created],
    ...(bundle.parent ? [["replaces", bundle.parent]] : []),
    ["users", number(bundle.num_users)],
    ["items", number(bundle.num_items)],
    ["interactions", number(bundle.num_interactions)],
    ...metrics,
  ];
}
