"use strict";
// Shows one answer by one method at a time. Without it the first one stays.
const section = document.getElementById("answers");
if (section) {
  const question = document.getElementById("pick-question");
  const method = document.getElementById("pick-method");
  const show = () => {
    for (const article of section.querySelectorAll("article")) {
      article.hidden = article.dataset.question !== question.value;
      for (const said of article.querySelectorAll("[data-method]")) {
        said.hidden = said.dataset.method !== method.value;
      }
    }
  };
  question.addEventListener("change", show);
  method.addEventListener("change", show);
  section.querySelector(".controls").hidden = false;
  show();
}
