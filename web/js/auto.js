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
 * Lets a node's number widgets show words.
 * @param {any} node
 */
export function showWords(node) {
  const words = WORDS[node.comfyClass] ?? {};
  for (const widget of node.widgets ?? []) {
    if (!(widget.name in words)) continue;
    const [value, word] = words[widget.name];
    const text = word === "all" ? say("all") : say("auto");
    showOnCanvas(widget, value, text);
    for (const label of new Set([widget.name, widget.label ?? widget.name])) {
      showInVue(node.comfyClass, label, value, text);
    }
  }
}

/**
 * The classic canvas draws what a widget says is its displayed value.
 * @param {any} widget
 * @param {number} value
 * @param {string} text
 */
function showOnCanvas(widget, value, text) {
  const kind = Object.getPrototypeOf(widget);
  Object.defineProperty(widget, "_displayValue", {
    configurable: true,
    get() {
      if (!this.computedDisabled && this.value === value) return text;
      return Reflect.get(kind, "_displayValue", this);
    },
  });
}

/** Rules that are there already, by their selector. @type {Set<string>} */
const styled = new Set();
/** @type {CSSStyleSheet | null} */
let sheet = null;

/**
 * Nodes 2.0 have an input with the number, which is covered by the word until it is edited.
 * @param {string} type The node's.
 * @param {string} label The widget's.
 * @param {number} value
 * @param {string} text
 */
function showInVue(type, label, value, text) {
  const input =
    `[node-type="${CSS.escape(type)}"] [aria-label="${CSS.escape(label)}"] ` +
    `input[role="spinbutton"][aria-valuenow="${value}"]:not(:focus)`;
  if (styled.has(input)) return;
  styled.add(input);
  if (!sheet) {
    sheet = new CSSStyleSheet();
    document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
  }
  sheet.insertRule(`${input} { color: transparent }`);
  sheet.insertRule(`${input} + *::after { content: ${JSON.stringify(text)}; ${COVER} }`);
}

const COVER = "position: absolute; inset: 0; display: flex; align-items: center; padding: 0 4px";
