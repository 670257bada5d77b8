// @ts-check
/** Pairs of boxes: the value of the widget as text, and what editing does to them. No DOM. */

import { partAt } from "./hit.js";
import { isConvex, isPainting, isQuad, painted } from "./shapes.js";

/** @typedef {import("./geometry.js").Box} Box */
/** @typedef {import("./shapes.js").Stroke} Stroke */
/** @typedef {import("./shapes.js").Shape} Shape A box, an outline of four corners, or a painted shape. */
/** @typedef {{draft: Shape, reference: Shape | null}} Pair */
/** @typedef {"draft" | "reference"} Side */

/** As many as one run repairs (`refiner_core.images.masks.MAX_REGIONS`). */
export const MOST_BOXES = 64;

/**
 * @param {any} value
 * @param {number} length
 */
function areFractions(value, length) {
  return (
    Array.isArray(value) &&
    value.length === length &&
    value.every((v) => typeof v === "number" && v >= 0 && v <= 1)
  );
}

/**
 * @param {any} value
 * @returns {value is Shape}
 */
function isShape(value) {
  if (value && Array.isArray(value.strokes)) {
    return value.strokes.every(isStroke) && (value.from === undefined || isOutline(value.from));
  }
  return isOutline(value);
}

/** @param {any} value */
function isStroke(value) {
  const { size, points } = value ?? {};
  return size > 0 && size <= 1 && Array.isArray(points) && points.length > 0 && points.every((p) => areFractions(p, 2));
}

/** @param {any} value */
function isOutline(value) {
  if (areFractions(value, 4)) return value[0] < value[2] && value[1] < value[3];
  const corners = Array.isArray(value) && value.length === 4 && value.every((p) => areFractions(p, 2));
  return corners && isConvex(value);
}

/**
 * @param {any} entry
 * @returns {Pair | null}
 */
function toPair(entry) {
  if (!entry || !isShape(entry.draft)) return null;
  const reference = entry.reference ?? null;
  return reference === null || isShape(reference) ? { draft: entry.draft, reference } : null;
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
  return JSON.stringify(
    pairs.map((p) => ({ draft: rounded(p.draft), reference: p.reference && rounded(p.reference) })),
  );
}

/** @param {number} v */
const round = (v) => Number(v.toFixed(5));

/**
 * @param {Shape} shape
 * @returns {any}
 */
function rounded(shape) {
  if (isQuad(shape)) return shape.map((p) => p.map(round));
  if (!isPainting(shape)) return shape.map(round);
  const strokes = shape.strokes.map((stroke) => ({
    ...stroke,
    size: round(stroke.size),
    points: stroke.points.map((p) => p.map(round)),
  }));
  return shape.from ? { strokes, from: rounded(shape.from) } : { strokes };
}

/**
 * Adds a drawn box. On the draft it starts a new pair; on the reference it completes the selected
 * pair, or the first that has no partner yet, or replaces the selected pair's partner.
 * @param {Pair[]} pairs
 * @param {Side} side
 * @param {Shape} box
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
 * @param {Shape} box
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

/**
 * What a stroke changes: the selected painted shape, or the shape that it begins in; otherwise it makes
 * a new one.
 * @param {Pair[]} pairs
 * @param {Side} side
 * @param {number} selected
 * @param {{at: import("./shapes.js").Point, erase: boolean, size: import("./geometry.js").Extent}} stroke
 *   Where it begins, whether it erases, and the size of the picture in px.
 * @returns {{index: number, note: string, with: (stroke: Stroke) => Pair[]}} the index of the pair, the
 *   message that says why nothing is changed, and the pairs with a stroke
 */
export function strokeTarget(pairs, side, selected, { at, erase, size }) {
  const chosen = pairs[selected]?.[side];
  const continued = chosen && (isPainting(chosen) || erase);
  const index = continued ? selected : shapeAt(pairs, side, at, size);
  const shape = pairs[index]?.[side];
  if (shape) return { index, note: "", with: (stroke) => withBox(pairs, index, side, painted(shape, stroke)) };
  const none = { index: -1, with: () => pairs };
  if (erase) return { ...none, note: "eraseWhat" };
  const drawn = withDrawn(pairs, side, { strokes: [] }, selected);
  if (!drawn) return { ...none, note: side === "draft" ? "tooMany" : "draftFirst" };
  const made = (/** @type {Stroke} */ stroke) => withBox(drawn.pairs, drawn.selected, side, painted(null, stroke));
  return { index: drawn.selected, note: "", with: made };
}

/**
 * @param {Pair[]} pairs
 * @param {Side} side
 * @param {import("./shapes.js").Point} at
 * @param {import("./geometry.js").Extent} size
 */
function shapeAt(pairs, side, [x, y], [w, h]) {
  for (let i = pairs.length - 1; i >= 0; i--) {
    const shape = pairs[i][side];
    if (shape && partAt(shape, [x * w, y * h], [0, 0, w, h], false) !== null) return i;
  }
  return -1;
}
