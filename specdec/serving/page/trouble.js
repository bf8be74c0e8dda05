// The box that says what went wrong and offers what may help.

import { element } from "./answer.js";

const box = document.getElementById("trouble");
const key = document.getElementById("key");

/**
 * @param {import("./api.js").Trouble} error
 * @param {() => void} again does once more what failed
 */
export function complain(error, again) {
  const retry = () => {
    calm();
    again();
  };
  const remedy = error.status === 401 ? keyForm(retry) : againButton(error.retryAfter, retry);
  const said = element("p", {}, error.message);
  said.setAttribute("role", "alert"); // the box is none: it counts down
  box.replaceChildren(said, remedy);
  box.hidden = false;
  box.scrollIntoView({ block: "nearest" });
  if (error.status === 401) box.querySelector("input").focus();
}

export function calm() {
  box.hidden = true;
  box.replaceChildren();
}

function keyForm(retry) {
  const field = element("input", {
    id: "asked-key",
    type: "password",
    autocomplete: "off",
    required: true,
  });
  const label = element("label", { htmlFor: field.id }, key.value ? "Another API key" : "API key");
  const form = element("form", { className: "key" }, label, field, element("button", {}, "Use it"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    key.value = field.value;
    document.getElementById("question").focus();
    retry();
  });
  return form;
}

function againButton(seconds, retry) {
  const button = element("button", { type: "button" }, "Try again");
  button.addEventListener("click", retry);
  if (!seconds) return button;
  const until = performance.now() + 1000 * seconds;
  const tick = () => {
    const left = Math.ceil((until - performance.now()) / 1000);
    button.disabled = left > 0;
    button.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
    if (left <= 0 || !button.isConnected) clearInterval(ticking);
  };
  const ticking = setInterval(tick, 250);
  button.disabled = true;
  button.textContent = `Try again in ${Math.ceil(seconds)} s`;
  return button;
}
