// The image panel: choose, drop, paste, draw, replace, remove.

import { drawing, prepare } from "./picture.js";

const at = (id) => document.getElementById(id);

/** The image that is shown, or null. */
export let picture = null;

/** Starts listening; `onChange` is called whenever there is another image, or none any more. */
export function listen(onChange) {
  const show = (taken) => {
    picture = taken;
    render();
    onChange();
    (taken ? at("question") : at("file")).focus();
  };
  const take = async (file) => {
    at("picture-error").hidden = true;
    try {
      show(await prepare(file));
    } catch (error) {
      at("picture-error").textContent = error.message;
      at("picture-error").hidden = false;
    }
  };
  const file = at("file");
  file.addEventListener("change", () => {
    if (file.files.length) take(file.files[0]);
    file.value = ""; // so that the same file can be chosen again
  });
  at("draw").addEventListener("click", () => show(drawing()));
  at("replace").addEventListener("click", () => file.click());
  at("remove").addEventListener("click", () => show(null));
  addEventListener("paste", (event) => {
    const image = imageIn(event.clipboardData);
    if (!image || at("picture").hidden) return;
    // Of a file its name comes along; other text is what is meant, and the image a picture of it.
    const text = event.clipboardData.getData("text/plain").trim();
    if (!text || text.endsWith(image.name)) take(image);
  });
  dropping(take);
}

function render() {
  at("picture-error").hidden = true;
  at("preview").hidden = !picture;
  at("drop").hidden = at("draw").hidden = at("file").hidden = Boolean(picture);
  if (!picture) return at("image").removeAttribute("src");
  const { url, name, width, height, scaled } = picture;
  at("image").src = url;
  at("image").alt = `The image you ask about: ${name}`;
  at("caption").textContent = `${name}, ${width} × ${height}${scaled ? ", sent smaller" : ""}`;
}

/** Anywhere on the page: whoever misses the panel must not have the file opened instead. */
function dropping(take) {
  const over = (on) => document.body.classList.toggle("over", on);
  addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    over(!at("picture").hidden);
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) over(false);
  });
  addEventListener("drop", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    over(false);
    if (at("picture").hidden) return;
    const dropped = imageIn(event.dataTransfer) ?? event.dataTransfer.files[0];
    if (dropped) take(dropped);
  });
}

function imageIn(transfer) {
  return [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/"));
}
