// @ts-check
/** Pairs of boxes: the value of the widget as text, and what editing does to them. No DOM. */

/** @typedef {import("./geometry.js").Box} Box */
/** @typedef {{draft: Box, reference: Box | null}} Pair */
/** @typedef {"draft" | "reference"} Side */

/** As many as one run repairs (`refiner_core.images.masks.MAX_REGIONS`). */
export const MOST_BOXES = 64;
/** Shortest side of a box, as a fraction of the picture. */
export const SMALLEST = 0.001;

/**
 * @param {any} value
 * @returns {value is Box}
 */
function isBox(value) {
  return (
    Array.isArray(value) &&
    value.length === 4 &&
    value.every((v) => typeof v === "number" && v >= 0 && v <= 1) &&
    value[0] < value[2] &&
    value[1] < value[3]
  );
}

/**
 * @param {any} entry
 * @returns {Pair | null}
 */
function toPair(entry) {
  if (!entry || !isBox(entry.draft)) return null;
  const reference = entry.reference ?? null;
  return reference === null || isBox(reference) ? { draft: entry.draft, reference } : null;
}

/**
 * Reads a widget's text; null if it is not such text, which is then the user's to keep.
 * @param {unknown} text
 * @returns {Pair[] | null}
 */
export function parsePairs(text) {
  if (typeof text !== "string") return text == null ? [] : null;
  if (!text.trim()) return [];
  try {
    const entries = JSON.parse(text);
    if (!Array.isArray(entries)) return null;
    const pairs = entries.map(toPair);
    return pairs.includes(null) ? null : /** @type {Pair[]} */ (pairs);
  } catch {
    return null;
  }
}

/**
 * @param {Pair[]} pairs
 * @returns {string}
 */
export function formatPairs(pairs) {
  if (!pairs.length) return "";
  const rounded = (/** @type {Box | null} */ box) => box && box.map((v) => Number(v.toFixed(5)));
  return JSON.stringify(
    pairs.map((p) => ({ draft: rounded(p.draft), reference: rounded(p.reference) })),
  );
}

/**
 * The box between two points, inside the picture and not too small to hold.
 * @param {number} ax
 * @param {number} ay
 * @param {number} bx
 * @param {number} by
 * @returns {Box}
 */
export function boxBetween(ax, ay, bx, by) {
  const [x0, x1] = span(ax, bx);
  const [y0, y1] = span(ay, by);
  return [x0, y0, x1, y1];
}

/**
 * @param {number} a
 * @param {number} b
 * @returns {[number, number]}
 */
function span(a, b) {
  const low = Math.min(Math.max(Math.min(a, b), 0), 1 - SMALLEST);
  return [low, Math.min(Math.max(Math.max(a, b), low + SMALLEST), 1)];
}

/**
 * The box moved as far as the picture goes.
 * @param {Box} box
 * @param {number} dx
 * @param {number} dy
 * @returns {Box}
 */
export function movedBox(box, dx, dy) {
  const mx = Math.min(Math.max(dx, -box[0]), 1 - box[2]);
  const my = Math.min(Math.max(dy, -box[1]), 1 - box[3]);
  return [box[0] + mx, box[1] + my, box[2] + mx, box[3] + my];
}

/**
 * The box with some of its edges (letters of "nesw") moved; edges that cross change places.
 * @param {Box} box
 * @param {string} edges
 * @param {number} dx
 * @param {number} dy
 * @returns {Box}
 */
export function resizedBox(box, edges, dx, dy) {
  return boxBetween(
    box[0] + (edges.includes("w") ? dx : 0),
    box[1] + (edges.includes("n") ? dy : 0),
    box[2] + (edges.includes("e") ? dx : 0),
    box[3] + (edges.includes("s") ? dy : 0),
  );
}

/**
 * Adds a drawn box. On the draft it starts a new pair; on the reference it completes the selected
 * pair, or the first that has no partner yet, or replaces the selected pair's partner.
 * @param {Pair[]} pairs
 * @param {Side} side
 * @param {Box} box
 * @param {number} selected Index or -1.
 * @returns {{pairs: Pair[], selected: number} | null} null if there is no room or nothing to pair.
 */
export function withDrawn(pairs, side, box, selected) {
  if (side === "draft") {
    if (pairs.length >= MOST_BOXES) return null;
    return { pairs: [...pairs, { draft: box, reference: null }], selected: pairs.length };
  }
  const lone = pairs.findIndex((p) => p.reference === null);
  const at = pairs[selected]?.reference === null || lone < 0 ? selected : lone;
  return pairs[at] ? { pairs: withBox(pairs, at, side, box), selected: at } : null;
}

/**
 * @param {Pair[]} pairs
 * @param {number} at
 * @param {Side} side
 * @param {Box} box
 * @returns {Pair[]}
 */
export function withBox(pairs, at, side, box) {
  return pairs.map((p, i) => (i === at ? { ...p, [side]: box } : p));
}

/**
 * Deletes a pair by its box on the draft, only the partner by its box on the reference.
 * @param {Pair[]} pairs
 * @param {number} at
 * @param {Side} side
 * @returns {Pair[]}
 */
export function without(pairs, at, side) {
  if (side === "reference" && pairs[at]?.reference) {
    return pairs.map((p, i) => (i === at ? { ...p, reference: null } : p));
  }
  return pairs.filter((_, i) => i !== at);
}
