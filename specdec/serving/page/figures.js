// What speculation gained and spent on one answer, and how plain decoding fared beside it.

import { element, figure, plural } from "./answer.js";

const UNLIKELY = 1.1; // times τ: a step that checks drafts takes as long as a plain one, or longer
const BUSY = "That is more than τ can give: something else kept the server busy meanwhile.";
const FEWEST = 8; // tokens after the first, below which a time per token says little

/**
 * The figures of an answer; the speedup is not among them yet.
 *
 * @param {object} answer as `ask` gives it
 * @param {{greedy: boolean, lossless: boolean, budget: ?number}} terms that it was given on
 */
export class Figures {
  constructor(answer, terms) {
    this.answer = answer;
    this.terms = terms;
    this.tau = answer.metrics.speculative_decoding.mean_acceptance_length;
    const { bound_spent: spent } = answer.metrics.speculative_decoding;
    this.speedup = tile("…", "as fast as plain decoding", "speedup");
    this.race = element("div", { className: "race" });
    this.element = element(
      "div",
      {},
      element(
        "dl",
        { className: "figures" },
        tile(this.tau.toFixed(2), "tokens per step (τ)", "tau"),
        this.speedup,
        tile(figure(spent), spentOn(terms), "spent"),
      ),
      this.race,
      details(answer),
    );
    this.without();
  }

  /** No comparison; `why`, if that needs saying. */
  without(why = "") {
    this.speedup.hidden = true;
    this.race.replaceChildren(...(why ? [element("p", { className: "note" }, why)] : []));
  }

  comparing() {
    this.speedup.hidden = false;
    this.race.replaceChildren(element("p", { className: "note" }, "Timing plain decoding…"));
  }

  /** What plain decoding took for the same. Returns it as a sentence. */
  compare(plain) {
    const same = sameness(this.answer, plain, this.terms);
    const [ours, theirs] = [this.answer, plain].map(timePerToken);
    if (ours === null || theirs === null) {
      this.without(`Too short to time: that takes ${FEWEST + 1} tokens. ${same}`);
      return same;
    }
    const ratio = `${(theirs / ours).toFixed(theirs < 10 * ours ? 2 : 1)}×`;
    this.speedup.querySelector("dd").textContent = ratio;
    const longest = Math.max(ours, theirs);
    const doubt = theirs / ours > UNLIKELY * this.tau ? BUSY : "";
    this.race.replaceChildren(
      bar("with drafts", ours, longest, "ours"),
      bar("plain", theirs, longest, "theirs"),
      element(
        "p",
        { className: "note" },
        "The same question to this server, just now, on its clock; the time until the first token " +
          `is left out. ${doubt} ${same}`,
      ),
    );
    return `${ratio} as fast as plain decoding. ${doubt} ${same}`;
  }
}

function spentOn({ greedy, lossless, budget }) {
  if (lossless) return "bound spent: lossless";
  const unit = greedy ? "nats of regret" : "total variation";
  return budget === null ? `bound spent, in ${unit}` : `bound spent, of ${budget} ${unit}`;
}

/** Seconds, on the server's clock; null for an answer too short to time. */
function timePerToken({ metrics, usage }) {
  const after = usage.completion_tokens - 1; // the first one ends the time until the first
  return after < FEWEST || !metrics.generation_time_s ? null : metrics.generation_time_s / after;
}

function sameness(answer, plain, { greedy, lossless }) {
  if (!greedy) return "Both answers were sampled, so their words may differ.";
  const texts = [answer, plain].map(({ tokens }) => tokens.map(({ text }) => text));
  const [ours, theirs] = texts;
  if (ours.length === theirs.length && ours.every((text, at) => text === theirs[at])) {
    return "Both answers are the same, token by token.";
  }
  const first = ours.findIndex((text, at) => text !== theirs[at]);
  const where = `from token ${(first < 0 ? ours.length : first) + 1} on`;
  return lossless
    ? `The plain answer differs ${where}; only rounding at a near tie may cause that.`
    : `The plain answer differs ${where}.`;
}

function tile(value, label, name) {
  return element(
    "div",
    { className: name },
    element("dt", {}, label),
    element("dd", {}, value),
  );
}

function bar(label, seconds, longest, name) {
  const filled = element("span", { className: `bar ${name}` });
  filled.style.inlineSize = `${(100 * seconds) / longest}%`;
  const value = `${figure(1000 * seconds)} ms per token`;
  return element(
    "div",
    { className: "lane" },
    element("span", { className: "who" }, label),
    element("span", { className: "track" }, filled),
    element("span", { className: "time" }, value),
  );
}

function details({ metrics, usage }) {
  const counts = metrics.speculative_decoding;
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  const kept = `${counts.num_accepted_draft_tokens} of ${counts.num_draft_tokens}`;
  const rows = [
    ["Steps", `${counts.num_spec_steps}, each one pass of the model`],
    ["Draft tokens kept", `${kept} (${figure(100 * counts.draft_acceptance_rate)} %)`],
    ["Kept per step", histogram(counts.acceptance_histogram)],
    ["Until the first token", `${figure(1000 * metrics.time_to_first_token_s)} ms`],
    ["Prompt", `${plural(usage.prompt_tokens, "token")}, ${cached} of them cached`],
  ];
  const list = element("dl");
  for (const [term, value] of rows) list.append(element("dt", {}, term), element("dd", {}, value));
  return element("details", {}, element("summary", {}, "More figures"), list);
}

function histogram(counts) {
  return counts
    .map((steps, kept) => (steps ? `${kept} in ${plural(steps, "step")}` : ""))
    .filter(Boolean)
    .join(", ");
}
