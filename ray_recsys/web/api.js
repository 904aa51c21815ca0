/** Talks to the API: JSON in and out, one request a channel at a time, problems as `Problem`. Knows nothing of the page. */

const TIMEOUT_MS = 20_000;

/** What went wrong, in the words of the server's problem+json where there is one. */
export class Problem extends Error {
  constructor({ title, detail = "", status = 0, field, value, limit }) {
    super(title);
    Object.assign(this, { title, detail, status, field, value, limit });
  }
}

const inFlight = new Map();

/**
 * Returns the JSON of an answer. A newer request of the same channel aborts the older one, so that answers never
 * overtake each other; `isSuperseded` tells that from a failure.
 */
export async function request(channel, path, body) {
  cancel(channel);
  const controller = new AbortController();
  inFlight.set(channel, controller);
  const timer = setTimeout(() => controller.abort(new DOMException("no answer", "TimeoutError")), TIMEOUT_MS);
  try {
    const post = { method: "POST", headers: { "Content-Type": "application/json" }, body: stringify(body) };
    const response = await fetch(path, { ...(body === undefined ? {} : post), signal: controller.signal });
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

/** Aborts what a channel still waits for. */
export function cancel(channel) {
  inFlight.get(channel)?.abort();
}

/** Whether a newer request took the place of the one that threw this. */
export function isSuperseded(error) {
  return error?.name === "AbortError";
}

/** JSON.stringify that writes integers beyond 2^53 (as BigInt) digit for digit. */
export function stringify(value, space) {
  const exact = (_, inner) => (typeof inner === "bigint" ? JSON.rawJSON(String(inner)) : inner);
  return JSON.stringify(value, exact, space);
}

/** JSON.parse that reads integers beyond 2^53 as BigInt. */
export function parse(text) {
  try {
    // Ids may be 64-bit integers, which a JavaScript number would round.
    return JSON.parse(text, (_, value, context) =>
      typeof value === "number" && /^-?\d{16,}$/.test(context?.source ?? "") && !Number.isSafeInteger(value) && JSON.rawJSON
        ? BigInt(context.source)
        : value,
    );
  } catch {
    throw new Problem({ title: "The server's answer is not JSON", detail: text.slice(0, 200) });
  }
}

function describe(response, text) {
  const fallback = { title: `The server answered ${response.status} ${response.statusText}`.trim(), status: response.status };
  if (!/json/.test(response.headers.get("Content-Type") ?? "")) return new Problem(fallback);
  const { title, detail, field, value, limit } = parse(text) ?? {};
  return new Problem({ ...fallback, ...(title ? { title } : {}), ...(typeof detail === "string" ? { detail } : {}), field, value, limit });
}

function unreachable(error) {
  const late = error.name === "TimeoutError";
  return new Problem({
    title: late ? "The server took too long" : "The server cannot be reached",
    detail: late ? `There was no answer within ${TIMEOUT_MS / 1000} s.` : "Is ray-recsys serve still running?",
  });
}
