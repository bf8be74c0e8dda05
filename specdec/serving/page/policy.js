// The operator's acceptance policy, and how much of it a visitor takes. Knows no conversation.

const slider = document.getElementById("epsilon");
const value = document.getElementById("epsilon-value");
const note = document.getElementById("epsilon-note");
const POSITIONS = 20;
const EXACT = "Every answer is the one that the model gives without drafts.";
const NOTES = {
  lossless: EXACT,
  relaxed:
    "Where a word hardly depends on the image, the model may give way to the drafter, by at most ε.",
  rule: "Drafts are accepted as whoever runs this server has set it.",
  fixed: `${EXACT} Whoever runs this server allows no relaxed acceptance.`,
};

let policy = { kind: "lossless" };

/** Shows what the server allows; before that the slider is disabled. */
export function allow(operators) {
  policy = operators;
  const relaxes = policy.kind !== "lossless" && policy.epsilon !== 0;
  slider.disabled = !relaxes;
  slider.max = policy.epsilon ? POSITIONS : 1; // a rule of the operator's own is taken whole or not
  slider.value = relaxes ? slider.max : 0;
  document.getElementById("loosest").textContent = !relaxes ? "" : named(policy.epsilon);
  document.getElementById("relaxed-key").hidden = !relaxes;
  show();
}

/** The `specdec` part of a request. The loosest setting is the operator's number, unrounded. */
export function chosen() {
  if (Number(slider.value) === 0) return { policy: "lossless" };
  return policy.epsilon ? { policy: "operator", epsilon: epsilon() } : { policy: "operator" };
}

/** Most that an answer may spend, or null. */
export function budget() {
  return policy.budget ?? null;
}

function epsilon() {
  const share = Number(slider.value) / Number(slider.max);
  return share === 1 ? policy.epsilon : Number((share * policy.epsilon).toPrecision(2));
}

function named(number) {
  return number ? `ε = ${number}` : "the operator’s";
}

function show() {
  const lossless = chosen().policy === "lossless";
  value.textContent = lossless ? "lossless" : named(policy.epsilon && epsilon());
  slider.setAttribute("aria-valuetext", value.textContent);
  const kind = slider.disabled ? "fixed" : lossless ? "lossless" : policy.kind;
  note.textContent = NOTES[kind] ?? NOTES.rule;
}

slider.addEventListener("input", show);
