/** Calls the API: JSON in and out, one request per channel at a time, errors as `Problem`. */

const TIMEOUT_MS = 20_000;

/** An error, described by the server's problem+json if there is one. */
export class Problem extends Error {
  constructor({ title, detail = "", status = 0, field, value, limit }) {
    super(title);
    Object.assign(this, { title, detail, status, field, value, limit });
  }
}

const inFlight = new Map();

/**
 * Returns the JSON of a response; with a body the request is a POST. A newer request on the same channel aborts the
 * older one, so that responses never arrive out of order; `isSuperseded` tells that apart from a failure.
 *
 * Ids come as strings: a JavaScript number would round a 64-bit integer.
 */
export async function request(channel, path, { query = {}, body } = {}) {
  cancel(channel);
  const controller = new AbortController();
  inFlight.set(channel, controller);
  const timer = setTimeout(() => controller.abort(new DOMException("no response", "TimeoutError")), TIMEOUT_MS);
  try {
    const options = body ? post({ ...body, string_ids: true }) : {};
    const url = body ? path : `${path}?${new URLSearchParams({ ...query, string_ids: true })}`;
    const response = await fetch(url, { ...options, signal: controller.signal });
    const text = await response.text();
    if (!response.ok) throw describe(response, text);
    return parse(text);
  } catch (error) {
    if (error instanceof Problem || isSuperseded(error)) throw error;
    throw unreachable(error);
  } finally {
    clearTimeout(timer);
    if (inFlight.get(channel) === controller) inFlight.delete(channel);
  }
}

/** Aborts the pending request of a channel. */
export function cancel(channel) {
  inFlight.get(channel)?.abort();
}

/** Whether a newer request replaced the one that threw this. */
export function isSuperseded(error) {
  return error?.name === "AbortError";
}

function post(body) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new Problem({ title: "The server's response is not JSON", detail: text.slice(0, 200) });
  }
}

function describe(response, text) {
  const fallback = { title: `The server answered ${response.status} ${response.statusText}`.trim(), status: response.status };
  if (!/json/.test(response.headers.get("Content-Type") ?? "")) return new Problem(fallback);
  const { title, detail, field, value, limit } = parse(text) ?? {};
  return new Problem({ ...fallback, ...(title ? { title } : {}), ...(typeof detail === "string" ? { detail } : {}), field, value, limit });
}

function unreachable(error) {
  const timedOut = error.name === "TimeoutError";
  return new Problem({
    title: timedOut ? "The server timed out" : "The server cannot be reached",
    detail: timedOut ? `No response within ${TIMEOUT_MS / 1000} s.` : "Is ray-recsys serve still running?",
  });
}
