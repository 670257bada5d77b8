// @ts-check
/** Numbers that stand for a word: a widget shows "auto" where its value lets the recipe decide. */

import { say } from "./messages.js";

/** Values by node and widget, and the message that is shown for them. */
const WORDS = /** @type {Record<string, Record<string, [number, "auto" | "all"]>>} */ ({
  OmniRefiner_ReferenceRefine: {
    steps: [0, "auto"],
    guidance: [0, "auto"],
    context: [0, "auto"],
    megapixels: [0, "auto"],
    color_match: [-1, "auto"],
    prune_at: [-1, "auto"],
  },
  OmniRefiner_CropForRefine: { megapixels: [0, "auto"] },
  OmniRefiner_RefineConditioning: { guidance: [0, "auto"], steps: [0, "auto"] },
  OmniRefiner_DreamSimScore: { heat_scale: [0, "auto"] },
  OmniRefiner_LoadFolder: { most: [0, "all"] },
});

/**
 * Lets a node's number widgets show words on the classic canvas. The widgets of Nodes 2.0 offer no
 * way to do this; there the tooltips explain the numbers.
 * @param {any} node
 */
export function showWords(node) {
  const words = WORDS[node.comfyClass] ?? {};
  for (const widget of node.widgets ?? []) {
    if (widget.name in words) showWord(widget, ...words[widget.name]);
  }
}

/**
 * @param {any} widget
 * @param {number} value
 * @param {"auto" | "all"} word
 */
function showWord(widget, value, word) {
  const kind = Object.getPrototypeOf(widget);
  Object.defineProperty(widget, "_displayValue", {
    configurable: true,
    get() {
      if (!this.computedDisabled && this.value === value) return word === "all" ? say("all") : say("auto");
      return Reflect.get(kind, "_displayValue", this);
    },
  });
}
