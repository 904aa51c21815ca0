/** The header's description of the live bundle. */

import { isSuperseded, request } from "./api.js";
import { byId, element } from "./render.js";

/** Loads the live bundle and shows its version, model, counts and metrics. */
export async function showBundle() {
  try {
    const { version, recipe: _recipe, data_fingerprint: _fingerprint, metrics, ...facts } = await request("bundle", "v1/bundle");
    byId("bundle-version").textContent = version;
    byId("bundle-model").textContent = facts.model;
    const pairs = flatten({ ...facts, ...metrics }).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]);
    byId("bundle-facts").replaceChildren(...pairs);
    byId("bundle").hidden = false;
  } catch (error) {
    if (!isSuperseded(error)) byId("bundle").hidden = true;
  }
}

/** Returns [name, text] for every number and short text of an object, nested names joined. */
function flatten(facts, prefix = "") {
  return Object.entries(facts).flatMap(([key, value]) => {
    const name = (prefix ? `${prefix} ` : "") + key.replaceAll("_", " ");
    if (value && typeof value === "object" && !Array.isArray(value)) return flatten(value, name);
    if (typeof value === "number") return [[name, value.toLocaleString("en", { maximumFractionDigits: 4 })]];
    if (/^\d{4}-\d\d-\d\dT/.test(value)) return [[name, new Date(value).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" })]];
    return typeof value === "string" && value.length <= 40 ? [[name, value]] : [];
  });
}
