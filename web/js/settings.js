// @ts-check
/** Which settings of a node are shown: not the advanced ones, nor what a recipe does not use. */

import { recipeNamed, widgetValue } from "./sources.js";

/** Every recipe reads this one itself. */
const ALWAYS = "recipe";

/** Strengths, and the files without which they mean nothing. @type {Record<string, string>} */
const STRENGTH_OF = { lora_strength: "refiner_lora", accelerator_strength: "accelerator_lora" };
const NONE = "none";

const PROMPT_HEIGHT = 56; // px

/** @param {any} node */
export function hasAdvanced(node) {
  return node.widgets?.some((/** @type {any} */ w) => w.options?.advanced) ?? false;
}

/**
 * Whether a widget is of use now. A connected one always is: its link would be cut with it.
 * @param {any} node
 * @param {any} widget
 * @param {string[] | undefined} used Names of the inputs that are read; undefined: all.
 */
function isShown(node, widget, used) {
  const linked = node.inputs?.some(
    (/** @type {any} */ i) => i.widget?.name === widget.name && i.link != null,
  );
  if (linked || widget.name === ALWAYS) return true;
  if (used && !used.includes(widget.name)) return false;
  if (widgetValue(node, STRENGTH_OF[widget.name]) === NONE) return false;
  return Boolean(node.showAdvanced) || !widget.options?.advanced;
}

/**
 * Shows and hides a node's widgets; the node's height follows, unless it was saved with them.
 * @param {any} node
 * @param {boolean} [saved]
 */
export function arrangeSettings(node, saved = false) {
  const loader = node.comfyClass === "OmniRefiner_LoadRefiner";
  const used = loader ? recipeNamed(widgetValue(node, "recipe"))?.inputs : undefined;
  const before = node.computeSize()[1];
  let changed = false;
  for (const widget of node.widgets ?? []) {
    if (widget.type === "OMNIREFINER_REGIONS") continue;
    const hidden = !isShown(node, widget, used);
    if (Boolean(widget.hidden) === hidden) continue;
    changed = true;
    widget.hidden = hidden; // for the classic canvas; Vue nodes fold the advanced away themselves
    if (loader) widget.options.hidden = hidden;
  }
  if (!changed) return;
  const after = node.computeSize()[1];
  const height = saved ? node.size[1] : node.size[1] + after - before;
  node.setSize([node.size[0], Math.max(after, height)]);
  node.setDirtyCanvas?.(true, true);
}

/**
 * Keeps a Load Refiner's settings arranged as its recipe and its LoRAs are changed.
 * @param {any} node
 */
export function watchChoices(node) {
  const deciding = [ALWAYS, ...Object.values(STRENGTH_OF)];
  for (const widget of node.widgets ?? []) {
    if (!deciding.includes(widget.name)) continue;
    const { callback } = widget;
    widget.callback = function () {
      const answer = callback?.apply(this, arguments);
      arrangeSettings(node);
      return answer;
    };
  }
}

/**
 * A prompt of a few lines, so that what a node has of room goes to its pictures.
 * @param {any} node
 */
export function settlePrompt(node) {
  const prompt = node.widgets?.find((/** @type {any} */ w) => w.name === "prompt");
  if (!prompt) return;
  prompt.computeLayoutSize = undefined; // Vue nodes stretch what has it
  prompt.computeSize = (/** @type {number} */ width) => [width, PROMPT_HEIGHT];
}

/** @param {any} node */
export function toggleAdvanced(node) {
  node.showAdvanced = !node.showAdvanced;
  arrangeSettings(node);
}
