// @ts-check
/** The menu of a right click on compared images: open or save one of them. */

import { element } from "./dom.js";
import { say } from "./messages.js";
import { viewUrl } from "./sources.js";

/** @typedef {import("./viewer.js").File} File */
/** @typedef {{name: string, file: File, width: number, height: number}} Entry Size as stored, px. */

/**
 * @param {MouseEvent} event
 * @param {Entry[]} entries
 */
export function showImageMenu(event, entries) {
  event.preventDefault();
  event.stopPropagation();
  const items = entries.flatMap((entry) => {
    const name = labelOf(entry);
    return [
      { content: say("openImage", { name }), callback: () => void window.open(viewUrl(entry.file)) },
      { content: say("saveImage", { name }), callback: () => save(entry) },
    ];
  });
  const { LiteGraph } = /** @type {any} */ (globalThis);
  new LiteGraph.ContextMenu(items, { event });
}

/** Large images are sent to the page scaled down; what is saved says so. @param {Entry} entry */
function labelOf({ name, file, width, height }) {
  return width === file.width ? name : say("scaledDown", { name, size: `${width}×${height}` });
}

/** @param {Entry} entry */
function save({ name, file }) {
  element("a", { href: viewUrl(file), download: `${name}.png` }).click();
}
