// One question and its answer on the page. Knows nothing of how answers come.

export const ORIGINS = {
  drafted: "drafted, and confirmed by the model",
  relaxed: "drafted, and kept although the model leaned to another token",
  verifier: "the model’s own",
};

/** An element with properties, and children: elements or text. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Question and answer as a list item; the answer's tokens come later. */
export class Turn {
  constructor(question) {
    this.question = question;
    this.tokens = [];
    this.shown = element("p", { className: "tokens waiting" });
    this.note = element("p", { className: "note" }, "Reading the question…");
    this.figures = element("div");
    this.element = element(
      "li",
      {},
      element("h3", { className: "question" }, question),
      this.shown,
      this.note,
      this.figures,
    );
  }

  get text() {
    return this.tokens.map((token) => token.text).join("");
  }

  add(tokens) {
    this.tokens.push(...tokens);
    this.shown.classList.remove("waiting");
    for (const { text, origin, spent } of tokens) {
      const cost = spent > 0 ? `; spent ${figure(spent)} of the bound` : "";
      this.shown.append(
        element("span", { className: origin, title: ORIGINS[origin] + cost }, text),
      );
    }
    this.note.textContent = plural(this.tokens.length, "token");
  }

  /** The answer has ended, for better or worse; `why` where it is not whole. */
  end(why = "") {
    this.shown.classList.remove("waiting");
    this.shown.hidden = !this.tokens.length;
    this.note.textContent = [why, this.counts()].filter(Boolean).join(" ");
    if (this.text) this.note.append(" ", copyButton(this.text));
  }

  counts() {
    if (!this.tokens.length) return "";
    const by = (origin) => this.tokens.filter((token) => token.origin === origin).length;
    const relaxed = by("relaxed");
    const parts = [`${by("drafted")} drafted`, `${by("verifier")} the model’s own`];
    if (relaxed) parts.splice(1, 0, `${relaxed} relaxed`);
    return `${plural(this.tokens.length, "token")}: ${parts.join(", ")}.`;
  }
}

function copyButton(text) {
  const button = element("button", { className: "quiet", type: "button" }, "Copy");
  button.setAttribute("aria-label", "Copy the answer");
  button.addEventListener("click", async () => {
    button.textContent = (await copy(text, button)) ? "Copied" : "Copying failed";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  return button;
}

/** The clipboard's interface is there on https and localhost only. */
async function copy(text, button) {
  if (navigator.clipboard) {
    return navigator.clipboard.writeText(text).then(() => true, () => false);
  }
  const area = element("textarea", { value: text, className: "unseen" });
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  button.focus();
  return copied;
}

export function plural(count, thing) {
  return `${count} ${thing}${count === 1 ? "" : "s"}`;
}

/** A number with as many digits as are of use. */
export function figure(value) {
  if (value === 0 || Number.isInteger(value)) return String(value);
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  return Math.abs(value) < 0.01 ? value.toPrecision(1) : value.toFixed(digits);
}
