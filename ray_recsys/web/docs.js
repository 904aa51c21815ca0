/** The API's description at /docs: made from openapi.json, asks the API, and needs nothing from the internet. */

import { parse, stringify } from "./api.js";
import { byId, element, showProblem } from "./render.js";

const refName = (schema) => schema.$ref?.split("/").pop();

/** Returns a schema's type in words; a named one is a link to its table. */
function typeOf(schema) {
  const name = refName(schema);
  if (name) return element("a", { href: `#${name}` }, name);
  const any = schema.anyOf ?? schema.oneOf;
  if (any) return element("span", {}, ...any.flatMap((one, place) => (place ? [" or ", typeOf(one)] : [typeOf(one)])));
  if (schema.items) return element("span", {}, "list of ", typeOf(schema.items));
  return element("span", {}, schema.enum?.map((value) => JSON.stringify(value)).join(" or ") ?? schema.type ?? "anything");
}

/** Returns the limits and the default of a schema in words. */
function limitsOf(schema) {
  const names = { minimum: "at least", maximum: "at most", maxItems: "at most (items)", maxLength: "at most (characters)" };
  const merged = Object.assign({}, ...(schema.anyOf ?? []), schema);
  const limits = Object.entries(names).filter(([key]) => key in merged).map(([key, text]) => `${text} ${merged[key]}`);
  return ("default" in schema ? [...limits, `default ${JSON.stringify(schema.default)}`] : limits).join(", ");
}

function propertyTable(schema) {
  const rows = Object.entries(schema.properties ?? {}).map(([name, property]) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, name, schema.required?.includes(name) ? element("b", { title: "required" }, " *") : null),
      element("td", {}, typeOf(property)),
      element("td", {}, [property.description, limitsOf(property)].filter(Boolean).join(" — ")),
    ),
  );
  return element("table", {}, element("tbody", {}, ...rows));
}

/** Returns a request body made from the examples and defaults of a schema. */
function exampleOf(schema) {
  const entries = Object.entries(schema.properties ?? {});
  return Object.fromEntries(entries.map(([name, one]) => [name, one.examples?.[0] ?? one.default ?? null]));
}

function parameterField(parameter) {
  const input = element("input", { type: "text", name: parameter.name, placeholder: String(parameter.schema.default ?? "") });
  input.required = parameter.required === true;
  const note = [parameter.description, limitsOf(parameter.schema)].filter(Boolean).join(" — ");
  return element("label", {}, element("span", { className: "code" }, parameter.name), ` ${note}`, input);
}

function bodyField(schema) {
  const text = JSON.stringify(exampleOf(schema), null, 2);
  return element("label", {}, element("span", { className: "code" }, "body"), element("textarea", { name: "body", rows: 9, value: text, spellcheck: false }));
}

/** Returns the address of a filled-in form; empty query parameters are left out. */
function addressOf(path, parameters, form) {
  const query = new URLSearchParams();
  let filled = path.slice(1);
  for (const { name, in: place } of parameters) {
    const { value } = form.elements[name];
    if (place === "path") filled = filled.replace(`{${name}}`, encodeURIComponent(value));
    else if (value !== "") query.set(name, value);
  }
  return query.size ? `${filled}?${query}` : filled;
}

async function send(method, path, operation, form, answer) {
  const body = form.elements.body?.value;
  const started = performance.now();
  try {
    const headers = body === undefined ? {} : { "Content-Type": "application/json" };
    const response = await fetch(addressOf(path, operation.parameters ?? [], form), { method, headers, body });
    const text = await response.text();
    const status = `${response.status} in ${(performance.now() - started).toFixed(1)} ms`;
    answer.replaceChildren(element("p", { className: "sub" }, status), element("pre", { tabIndex: 0 }, stringify(parse(text), 2)));
  } catch {
    showProblem(answer, { title: "The server cannot be reached", detail: "Is it still running?" });
  }
}

function operationCard(path, method, operation, schemas) {
  const content = operation.requestBody?.content["application/json"];
  const answer = element("div", { className: "answer" });
  const form = element(
    "form",
    {},
    ...(operation.parameters ?? []).map(parameterField),
    content ? bodyField(schemas[refName(content.schema)]) : null,
    element("button", { type: "submit", className: "primary" }, "Send"),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(method.toUpperCase(), path, operation, form, answer);
  });
  const responses = Object.entries(operation.responses).map(([status, { description, content: kinds = {} }]) => {
    const schema = kinds["application/json"]?.schema;
    return element("li", {}, element("b", {}, `${status} `), `${description} `, schema ? typeOf(schema) : null);
  });
  return element(
    "details",
    { className: "card operation" },
    element("summary", {}, element("span", { className: "badge" }, method.toUpperCase()), element("span", { className: "code" }, path)),
    element("p", {}, operation.description ?? operation.summary),
    form,
    answer,
    element("ul", { className: "responses" }, ...responses),
  );
}

function show({ info, paths, components: { schemas } }) {
  byId("about").textContent = `${info.description} Version ${info.version}.`;
  const operations = Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => operationCard(path, method, operation, schemas)),
  );
  byId("operations").replaceChildren(...operations);
  operations[0].open = true;
  const tables = Object.entries(schemas).map(([name, schema]) =>
    element("details", { className: "card", id: name }, element("summary", {}, element("b", {}, name), ` ${schema.description ?? ""}`), propertyTable(schema)),
  );
  byId("schemas").replaceChildren(...tables);
}

/** Opens the table that the address names. */
function openLinked() {
  const linked = byId(location.hash.slice(1));
  if (linked) linked.open = true;
}

addEventListener("hashchange", openLinked);
try {
  show(await (await fetch("openapi.json")).json());
  openLinked();
} catch {
  showProblem(byId("failure"), { title: "The description cannot be read", detail: "openapi.json did not answer as it should." });
}
