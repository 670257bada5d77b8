// @ts-check
/** Workflows saved by an earlier version of the pack, brought up to date as they are opened. */

/**
 * Mask Builder once had one box as four numbers in front of its other values.
 * @param {any} node
 */
function migrateMaskBuilder(node) {
  const values = node.widgets_values;
  if (!Array.isArray(values) || values.length !== 10) return;
  if (typeof values[4] !== "number" || typeof values[5] !== "boolean") return;
  const [x, y, width, height, ...rest] = values;
  const box = [x, y, Math.min(1, x + width), Math.min(1, y + height)];
  const drawn = width > 0 && height > 0 && box[0] < box[2] && box[1] < box[3];
  node.widgets_values = [...rest, drawn ? JSON.stringify([{ draft: box, reference: null }]) : ""];
}

/** @param {any} graph */
export function migrateGraph(graph) {
  const subgraphs = graph?.definitions?.subgraphs ?? [];
  for (const part of [graph, ...subgraphs]) {
    for (const node of part?.nodes ?? []) {
      if (node.type === "OmniRefiner_MaskBuilder") migrateMaskBuilder(node);
    }
  }
}
