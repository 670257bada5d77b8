// @ts-check
/** Pairs of boxes: the value of the widget as text, and what editing does to them. No DOM. */

import { isConvex, isQuad } from "./shapes.js";

/** @typedef {import("./geometry.js").Box} Box */
/** @typedef {import("./shapes.js").Shape} Shape A box, or an outline of four corners. */
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

/** @param {Shape} shape */
function rounded(shape) {
  const round = (/** @type {number} */ v) => Number(v.toFixed(5));
  return isQuad(shape) ? shape.map((p) => p.map(round)) : shape.map(round);
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
