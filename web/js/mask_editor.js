// @ts-check
/** ComfyUI's mask editor, opened for the picture of a node's input. */

import { app } from "/scripts/app.js";
import { isConnected, originOf } from "./sources.js";

/**
 * Opens the mask editor for the *Load Image* that an input gets its picture from, and connects the
 * mask of that node if nothing else is connected.
 * @param {any} node
 * @param {string | undefined} name The input with the picture; undefined: none is connected.
 * @param {string} maskName The input for the mask.
 * @returns {string} the message that says what was done
 */
export function openMaskEditor(node, name, maskName) {
  const origin = name ? originOf(node, name) : null;
  const loader = origin?.node;
  const kind = String(loader?.comfyClass ?? loader?.type ?? "");
  const { canvas } = app;
  if (!kind.startsWith("LoadImage") || loader.graph !== canvas?.graph || !loader.imgs?.length) return "noMaskEditor";
  const output = loader.outputs.findIndex((/** @type {any} */ o) => o.type === "MASK");
  const input = node.inputs?.findIndex((/** @type {any} */ i) => i.name === maskName) ?? -1;
  const connects = output >= 0 && input >= 0 && !isConnected(node, maskName) && node.graph === loader.graph;
  if (connects) loader.connect(output, node, input);
  canvas.selectNode?.(loader);
  void app.extensionManager?.command?.execute?.("Comfy.MaskEditor.OpenMaskEditor");
  return connects ? "maskConnected" : "maskOpened";
}
