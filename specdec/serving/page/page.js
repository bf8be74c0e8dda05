// The playground: what is on the page, wired together.

import { model } from "./api.js";
import { element } from "./answer.js";
import { Conversation } from "./conversation.js";
import * as frame from "./frame.js";
import * as policy from "./policy.js";
import { calm, complain } from "./trouble.js";

const at = (id) => document.getElementById(id);
const EXAMPLES = {
  drawing: ["What color is the cross?", "Where is the circle?", "Which shape is at the center?"],
  demo: ["Read row 1, column 1.", "What color is the circle?", "Read bar A.", "What does milk cost?"],
  other: ["Describe this image.", "What text is in this image?", "What stands out here?"],
};
const TALLEST = 160; // pixels of the question's field

let served = null;
let meeting = null;

const conversation = new Conversation({
  request: () => ({
    model: served?.id,
    max_tokens: Number(at("max-tokens").value),
    temperature: Number(at("temperature").value),
    ...(at("seed").value === "" ? {} : { seed: Number(at("seed").value) }),
    specdec: { ...policy.chosen(), origins: true },
  }),
  key: () => at("key").value,
  image: () => (served?.specdec.images ? frame.picture?.url : null),
  budget: policy.budget,
  comparing: () => at("compare").checked && Boolean(served?.specdec.drafter),
  change: refresh,
  failure: (error, question) => {
    if (!at("question").value) at("question").value = question;
    fit();
    if (error) complain(error, () => start(question));
  },
});

/** Asks what model there is, once for all who want to know. */
function meet() {
  meeting ??= greet().finally(() => (meeting = null));
  return meeting;
}

async function greet() {
  try {
    served = await model(at("key").value);
  } catch (error) {
    at("model").textContent = "No model yet";
    complain(error, meet);
    return;
  }
  const { id, specdec } = served;
  const drafter = specdec.drafter ? `drafts by ${specdec.drafter}` : "no drafter";
  at("model").textContent = `${id} · ${drafter}`;
  at("knows").hidden = id !== "demo";
  at("picture").hidden = !specdec.images;
  limit(at("max-tokens"), [specdec.max_tokens, specdec.max_model_len].filter(Boolean));
  policy.allow(specdec.policy);
  refresh();
}

/** A number's field takes no more than the least of these. */
function limit(field, most) {
  if (!most.length) return;
  field.max = Math.min(...most);
  if (Number(field.value) > Number(field.max)) field.value = field.max;
}

/** What follows from the state of the conversation. */
function refresh() {
  const answering = Boolean(conversation.answering);
  const focused = document.activeElement;
  at("stop").hidden = !answering;
  at("send").hidden = answering;
  if (focused === at("send") || focused === at("stop")) at("question").focus();
  at("conversation").setAttribute("aria-busy", String(answering));
  at("empty").hidden = !conversation.empty;
  at("fresh").hidden = conversation.empty;
  at("examples").hidden = !served || !conversation.empty || (served.specdec.images && !frame.picture);
  const kind = frame.picture?.drawn ? "drawing" : served?.id === "demo" ? "demo" : "other";
  at("examples").replaceChildren(...EXAMPLES[kind].map(example));
}

function example(question) {
  const button = element("button", { type: "button", className: "example" }, question);
  button.addEventListener("click", () => {
    at("question").focus();
    start(question);
  });
  return button;
}

async function start(question) {
  if (!question || conversation.answering) return;
  if (!served) await meet();
  if (!served || conversation.answering) return; // asked twice while the model was not known
  if (!at("settings").checkValidity()) {
    at("options").open = at("more").open = true;
    at("settings").reportValidity();
    return;
  }
  calm();
  if (at("question").value.trim() === question) at("question").value = "";
  fit();
  conversation.ask(question);
}

function restart() {
  conversation.clear();
  calm();
  refresh();
}

function fit() {
  const field = at("question");
  field.style.blockSize = "auto";
  field.style.blockSize = `${Math.min(field.scrollHeight + 2, TALLEST)}px`;
}

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  start(at("question").value.trim());
});
at("settings").addEventListener("submit", (event) => event.preventDefault());
at("question").addEventListener("input", fit);
at("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  at("composer").requestSubmit();
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape") conversation.stop();
});
at("stop").addEventListener("click", () => conversation.stop());
at("fresh").addEventListener("click", () => {
  restart();
  at("question").focus();
});
frame.listen(restart); // another image, another conversation
// On a wide screen the settings are always in view, without a summary to open them by.
const wide = matchMedia("(min-width: 56.01rem)");
const unfold = () => (at("options").open = wide.matches);
wide.addEventListener("change", unfold);
unfold();
meet();
