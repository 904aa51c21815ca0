/** The API documentation at /docs: generated from openapi.json, with forms that call the API; loads nothing from elsewhere. */

import { byId, element, showProblem } from "./render.js";

const refName = (schema) => schema.$ref?.split("/").pop();

/** Returns a schema's type in words; a named schema is a link to its table. */
function typeOf(schema) {
  const name = refName(schema);
  if (name) return element("a", { href: `#${name}` }, name);
  const any = schema.anyOf ?? schema.oneOf;
  if (any) return element("span", {}, ...any.flatMap((one, index) => (index ? [" or ", typeOf(one)] : [typeOf(one)])));
  if (schema.items) return element("span", {}, "list of ", typeOf(schema.items));
  return element("span", {}, schema.enum?.map((value) => JSON.stringify(value)).join(" or ") ?? schema.type ?? "anything");
}

/** Returns the limits and the default of a schema in words. */
function limitsOf(schema) {
  const texts = {
    minimum: (value) => `at least ${value}`,
    maximum: (value) => `at most ${value}`,
    maxItems: (value) => `at most ${value} items`,
    maxLength: (value) => `at most ${value} characters`,
  };
  const merged = Object.assign({}, ...(schema.anyOf ?? []), schema);
  const limits = Object.entries(texts).filter(([key]) => key in merged).map(([key, text]) => text(merged[key]));
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

/** Returns a request body from a schema's examples and defaults. */
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
  return element("label", {}, element("span", { className: "code" }, "body"), element("textarea", { name: "body", rows: 11, value: text, spellcheck: false }));
}

/** Returns the URL of a filled-in form, without empty query parameters. */
function addressOf(path, parameters, form) {
  const query = new URLSearchParams();
  let filled = path.slice(1);
  for (const { name, in: kind } of parameters) {
    const { value } = form.elements[name];
    if (kind === "path") filled = filled.replace(`{${name}}`, encodeURIComponent(value));
    else if (value !== "") query.set(name, value);
  }
  return query.size ? `${filled}?${query}` : filled;
}

/** Returns JSON text indented. It is not parsed: a JavaScript number would round a 64-bit integer. */
function indent(text) {
  let depth = 0;
  const newline = () => `\n${"  ".repeat(depth)}`;
  return text.replace(/"(?:\\.|[^"\\])*"|\{\s*\}|\[\s*\]|[{}[\],:]|\s+/g, (token) => {
    if (/^\s/.test(token)) return "";
    if (/^[{[]$/.test(token)) {
      depth += 1;
      return token + newline();
    }
    if (/^[}\]]$/.test(token)) {
      depth -= 1;
      return newline() + token;
    }
    return { ",": `,${newline()}`, ":": ": " }[token] ?? token;
  });
}

async function send(method, path, operation, form, answer) {
  const body = form.elements.body?.value;
  const started = performance.now();
  try {
    const headers = body === undefined ? {} : { "Content-Type": "application/json" };
    const response = await fetch(addressOf(path, operation.parameters ?? [], form), { method, headers, body });
    const text = await response.text();
    const isJson = /json/.test(response.headers.get("Content-Type") ?? "");
    const status = `${response.status} in ${(performance.now() - started).toFixed(1)} ms`;
    answer.replaceChildren(element("p", { className: "sub" }, status), element("pre", { tabIndex: 0 }, isJson ? indent(text) : text));
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

/** Opens the table named in the address. */
function openLinked() {
  const linked = byId(location.hash.slice(1));
  if (linked) linked.open = true;
}

addEventListener("hashchange", openLinked);
try {
  show(await (await fetch("openapi.json")).json());
  openLinked();
} catch {
  showProblem(byId("failure"), { title: "The API description cannot be loaded", detail: "openapi.json is missing or invalid." });
}
