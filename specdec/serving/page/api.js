// Speaks to the server's HTTP surface. Knows nothing of the page.

/** Why there is no answer, or only a part of one: what to say, and what to do about it. */
export class Trouble extends Error {
  /**
   * @param {string} message for the reader
   * @param {{status?: number, retryAfter?: number}} about HTTP status, 0 where there was none;
   *   seconds after which to try again
   */
  constructor(message, { status = 0, retryAfter } = {}) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

const NO_KEY = "This API key has characters that no key can have.";
const AFTER = "The connection ended before the answer did.";

/** The model that this server serves, as `GET /v1/models` describes it. */
export async function model(key) {
  const response = await request("v1/models", { key });
  return (await response.json()).data[0];
}

/**
 * Asks, and hands tokens over as they arrive.
 *
 * @param {object} body of the chat completion, but for streaming
 * @param {(tokens: {text: string, origin: string, spent: number}[]) => void} onTokens
 * @returns {Promise<{tokens: object[], finish: string, cause: ?string, usage: object,
 *   metrics: object}>}
 * @throws {Trouble} once `signal` is aborted, too
 */
export async function ask(body, { key, signal, onTokens = () => {} }) {
  const streamed = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await request("v1/chat/completions", { key, signal, body: streamed });
  const answer = { tokens: [], finish: null, cause: null, usage: null, metrics: null };
  for await (const chunk of chunks(response)) {
    if (chunk.error) throw new Trouble(chunk.error.message ?? AFTER, { status: 500 });
    answer.usage = chunk.usage ?? answer.usage;
    answer.metrics = chunk.metrics ?? answer.metrics;
    const choice = chunk.choices?.[0];
    if (!choice) continue;
    answer.finish = choice.finish_reason ?? answer.finish;
    answer.cause = choice.stop_reason ?? answer.cause;
    const tokens = choice.specdec?.tokens ?? [];
    answer.tokens.push(...tokens);
    if (tokens.length) onTokens(tokens);
  }
  return answer;
}

async function request(path, { key, signal, body }) {
  const headers = {};
  if (/[^\x20-\xff]/.test(key)) throw new Trouble(NO_KEY, { status: 401 });
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET",
      headers,
      body: body && JSON.stringify(body),
      signal,
    });
  } catch {
    throw new Trouble("The server cannot be reached. Is it running, and are you online?");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const { status } = response;
  const said = await response.json().then((body) => body.error?.message, () => null);
  const retryAfter = Number(response.headers.get("Retry-After")) || undefined;
  const phrases = {
    401: "This server asks for an API key.",
    413: "The image or the conversation is larger than this server takes.",
    429: "The server is full.",
    503: "The server takes no requests right now: it is starting or shutting down.",
  };
  const shown = [400, 404].includes(status) ? said : phrases[status];
  return new Trouble(shown ?? said ?? `The server answered with status ${status}.`, {
    status,
    retryAfter,
  });
}

/** The JSON of each server-sent event, until `[DONE]`. */
async function* chunks(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read().catch(() => ({ done: true }));
      if (done) throw new Trouble(AFTER);
      const events = (rest + value).split(/\r?\n\r?\n/);
      rest = events.pop();
      for (const event of events) {
        const data = event
          .split(/\r?\n/)
          .filter((line) => line.startsWith("data:"))
          .map((line) => line.slice(5).trim())
          .join("\n");
        if (data === "[DONE]") return;
        if (data) yield JSON.parse(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
