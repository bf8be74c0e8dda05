// What screen readers are told. The answer itself is no live region: they would read every token,
// and the answer again; they get each sentence once, when it is whole.

const region = document.getElementById("said");
const PAUSE = 1500; // ms between two sentences of a growing text
const KEPT = 15000; // ms after which what was said is no longer met by browsing

let told = 0; // characters of the growing text
let last = 0;
let clearing;

export function say(phrase) {
  region.textContent = phrase;
  last = performance.now();
  clearTimeout(clearing);
  clearing = setTimeout(() => (region.textContent = ""), KEPT);
}

/** A text begins to grow; one before it may not have been finished. */
export function begin(phrase) {
  told = 0;
  say(phrase);
}

/** The whole sentences of a growing text that were not said yet. */
export function follow(text) {
  const whole = Math.max(...[". ", "! ", "? ", "\n"].map((end) => text.lastIndexOf(end))) + 1;
  if (whole <= told || performance.now() - last < PAUSE) return;
  say(text.slice(told, whole));
  told = whole;
}

/** The rest of it, and a last word. */
export function finish(text, word = "") {
  say(`${text.slice(told)} ${word}`.trim());
  told = 0;
}
