// @ts-check
/** What a pane without a picture says. */

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
