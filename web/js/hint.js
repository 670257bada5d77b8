// @ts-check
/** What a pane without a picture says, and how to mark the detail while there are no boxes. */

import { isConnected } from "./sources.js";

/**
 * The name of the message that says how to mark the detail.
 * @param {any} node
 * @param {any} brush The brush in use, or null.
 * @param {any} reference The reference that is shown, or null.
 */
export function howToMark(node, brush, reference) {
  if (brush) return "howToPaint";
  const takesMasks = node.inputs?.some((/** @type {any} */ i) => i.name === "reference_mask");
  if (!takesMasks || !reference || !isConnected(node, "mask")) return "howTo";
  return isConnected(node, "reference_mask") ? "bothMasks" : "maskAlone";
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {string} text
 * @param {number} width
 * @param {number} height
 */
export function drawHint(context, text, width, height) {
  context.fillStyle = getComputedStyle(context.canvas).color;
  context.font = "12px sans-serif";
  context.textAlign = "center";
  const lines = wrap(context, text, width - 24);
  lines.forEach((line, i) =>
    context.fillText(line, width / 2, height / 2 + (i - (lines.length - 1) / 2) * 17),
  );
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {string} text
 * @param {number} width
 */
function wrap(context, text, width) {
  /** @type {string[]} */
  const lines = [];
  // Chinese and Japanese have no spaces: break after any character there.
  for (const word of text.split(/(?<=\s)|(?<=[\u3000-\u9fff\uff00-\uffef])/u)) {
    const last = lines.length - 1;
    if (last >= 0 && context.measureText(lines[last] + word).width <= width) lines[last] += word;
    else lines.push(word);
  }
  return lines;
}
