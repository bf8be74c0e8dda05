// The questions and answers about one image.

import { ask } from "./api.js";
import { Turn } from "./answer.js";
import { Figures } from "./figures.js";
import * as voice from "./voice.js";

const UNDRAFTED =
  "Nothing was drafted, since that would not have paid here and now; so there is nothing to compare.";
const list = document.getElementById("turns");

export class Conversation {
  /**
   * @param {object} on
   * @param {() => object} on.request the body of a chat completion without its messages, as the
   *   settings have it
   * @param {() => string} on.key the API key
   * @param {() => ?string} on.image the image's URL
   * @param {() => ?{budget: ?number}} on.comparing what plain decoding is compared on; null: not
   * @param {() => void} on.change called when an answer begins or has ended
   * @param {(error: Error, question: string) => void} on.failure
   */
  constructor(on) {
    this.on = on;
    this.turns = [];
    this.answering = null;
    this.timing = null;
  }

  get empty() {
    return !this.turns.length;
  }

  clear() {
    this.stop();
    this.answering = null;
    this.timing?.abort();
    this.turns = [];
    list.replaceChildren();
  }

  stop() {
    this.answering?.abort();
  }

  async ask(question) {
    this.timing?.abort();
    const request = { ...this.on.request(), messages: this.messages(question) };
    const turn = new Turn(question);
    const answering = (this.answering = new AbortController());
    this.turns.push(turn);
    list.append(turn.element);
    voice.begin("Answering.");
    this.on.change();
    scroll();
    let answer;
    try {
      const onTokens = (tokens) => arrive(turn, tokens);
      answer = await ask(request, { ...this.call(answering), onTokens });
    } catch (error) {
      this.done(answering);
      this.fail(turn, error, answering.signal.aborted);
      return;
    }
    keepingUp(() => turn.end(cut(answer)));
    voice.finish(turn.text);
    this.done(answering);
    await this.weigh(turn, answer, request);
  }

  /** The answers so far, as the server wants them; the image stands in the first question. */
  messages(question) {
    const answered = this.turns.filter((turn) => turn.text && !turn.failed);
    const messages = answered.flatMap((turn) => [
      { role: "user", content: turn.question },
      { role: "assistant", content: turn.text },
    ]);
    messages.push({ role: "user", content: question });
    const url = this.on.image();
    if (url) {
      const text = { type: "text", text: messages[0].content };
      messages[0].content = [{ type: "image_url", image_url: { url } }, text];
    }
    return messages;
  }

  call(controller) {
    return { key: this.on.key(), signal: controller.signal };
  }

  done(answering) {
    if (this.answering !== answering) return; // another conversation has begun meanwhile
    this.answering = null;
    this.on.change();
  }

  fail(turn, error, stopped) {
    if (!this.turns.includes(turn)) return;
    turn.end(stopped ? "Stopped." : "Not finished.");
    voice.finish("", stopped ? "Stopped." : "");
    if (!turn.text) {
      this.turns = this.turns.filter((other) => other !== turn);
      turn.element.remove();
    }
    turn.failed = !stopped;
    this.on.change();
    if (!stopped || !turn.text) this.on.failure(stopped ? null : error, turn.question);
  }

  /** The answer's figures, and how plain decoding fares with the same request. */
  async weigh(turn, answer, request) {
    const terms = {
      greedy: request.temperature === 0,
      lossless: request.specdec.policy === "lossless",
      budget: this.on.budget(),
    };
    const figures = new Figures(answer, terms);
    keepingUp(() => turn.figures.append(figures.element));
    if (!this.on.comparing()) return;
    if (!answer.metrics.speculative_decoding.num_draft_tokens) {
      keepingUp(() => figures.without(UNDRAFTED));
      return;
    }
    keepingUp(() => figures.comparing());
    const timing = (this.timing = new AbortController());
    const plainly = { policy: "lossless", drafts: false, origins: true };
    try {
      const plain = await ask({ ...request, specdec: plainly }, this.call(timing));
      keepingUp(() => voice.say(figures.compare(plain)));
    } catch (error) {
      figures.without(timing.signal.aborted ? "" : `Not compared: ${error.message}`);
    }
  }
}

/** Why an answer is not whole, if it is not. */
function cut({ finish, cause }) {
  if (finish !== "length") return "";
  return cause === "timeout" ? "Cut at this server’s time limit." : "Cut at the most tokens allowed.";
}

function arrive(turn, tokens) {
  keepingUp(() => turn.add(tokens));
  voice.follow(turn.text);
}

/** Whoever reads at the end stays there; whoever has scrolled up is left alone. */
function keepingUp(change) {
  const following = innerHeight + scrollY >= document.documentElement.scrollHeight - 64;
  change();
  if (following) scroll();
}

function scroll() {
  scrollTo(0, document.documentElement.scrollHeight);
}
