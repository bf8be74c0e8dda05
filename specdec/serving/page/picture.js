// Images on their way to the server: read, scaled down, drawn. Knows nothing of the page.

const LONGEST = 1568; // pixels of the longer side; models see no more than about that
const HEAVIEST = 3 << 20; // bytes of a file that is sent as it is
const AS_IS = ["image/png", "image/jpeg", "image/webp"];

/**
 * What is sent of a file: the file itself, or a JPEG of it where it is too large or of another kind.
 *
 * @returns {Promise<{url: string, name: string, width: number, height: number, scaled: boolean}>}
 *   `url` holds the image; width and height are those of the file
 * @throws {Error} the browser cannot read it as an image
 */
export async function prepare(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name || "This"} is not an image that the browser can read.`);
  }
  const { width, height } = bitmap;
  const factor = Math.min(1, LONGEST / Math.max(width, height));
  const asIs = factor === 1 && file.size <= HEAVIEST && AS_IS.includes(file.type);
  const url = asIs ? await dataUrl(file) : jpeg(bitmap, factor);
  bitmap.close();
  return { url, name: file.name || "pasted image", width, height, scaled: factor < 1 };
}

/** A drawing to ask about, for visitors without an image at hand. */
export function drawing() {
  const canvas = blank(192, 192, "#f6f1e4");
  const on = canvas.getContext("2d");
  const shape = (color, trace) => {
    on.fillStyle = color;
    on.beginPath();
    trace();
    on.fill();
  };
  shape("#28a03c", () => (on.rect(28, 17, 10, 32), on.rect(17, 28, 32, 10)));
  shape("#872da5", () => on.rect(83, 83, 26, 26));
  shape("#2850d7", () => on.arc(33, 159, 15, 0, 2 * Math.PI));
  shape("#f0d21e", () => (on.moveTo(159, 143), on.lineTo(174, 168), on.lineTo(144, 168)));
  const url = canvas.toDataURL("image/png");
  return { url, name: "a drawing", width: 192, height: 192, drawn: true };
}

function jpeg(bitmap, factor) {
  const width = Math.max(1, Math.round(bitmap.width * factor));
  const height = Math.max(1, Math.round(bitmap.height * factor));
  const canvas = blank(width, height, "#ffffff"); // what is transparent becomes white
  const on = canvas.getContext("2d");
  on.imageSmoothingQuality = "high";
  on.drawImage(bitmap, 0, 0, width, height);
  return canvas.toDataURL("image/jpeg", 0.92);
}

function blank(width, height, color) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const on = canvas.getContext("2d");
  on.fillStyle = color;
  on.fillRect(0, 0, width, height);
  return canvas;
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name} cannot be read: ${reader.error.message}`));
    reader.readAsDataURL(file);
  });
}
