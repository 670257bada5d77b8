// @ts-check
/** What the classic canvas would have got if the widget did not lie over it. */

import { app } from "/scripts/app.js";

/** Whether nodes are drawn by Vue, which hands such events on by itself. */
export function isVue() {
  return Boolean(/** @type {any} */ (globalThis).LiteGraph?.vueNodesMode);
}

/**
 * The wheel zooms the graph and the middle button pans it, also over the widget.
 * @param {HTMLElement} over
 */
export function forwardToCanvas(over) {
  over.addEventListener("wheel", (event) => {
    if (isVue() || event.defaultPrevented) return;
    app.canvas?.canvas?.dispatchEvent(new WheelEvent(event.type, event));
    event.preventDefault();
  });
  /** @type {[string, string][]} */
  const panning = [
    ["pointerdown", "processMouseDown"],
    ["pointermove", "processMouseMove"],
    ["pointerup", "processMouseUp"],
  ];
  for (const [type, method] of panning) {
    over.addEventListener(type, (/** @type {any} */ event) => {
      const middle = type === "pointermove" ? event.buttons & 4 : event.button === 1;
      if (middle && !isVue()) app.canvas?.[method]?.(event);
    });
  }
}
