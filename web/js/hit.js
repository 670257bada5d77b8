// @ts-check
/** What of a box or an outline lies under the pointer. In CSS pixels; no DOM. */

import { cornersOf, isPainting, isQuad } from "./shapes.js";

/** @typedef {import("./shapes.js").Point} Point */
/** @typedef {import("./shapes.js").Shape} Shape */

const INSIDE = 7; // px from an edge, inside, that take hold of it
const OUTSIDE = 3; // px, outside: as far as the line and its handles are drawn
const CORNER_OUTSIDE = 5; // px around the corner of an outline, along the diagonal of its handle
const TURN_REACH = 8; // px around the round handle
const TURN_DISTANCE = 20; // px from the shape to its round handle

/**
 * A shape's corners on the canvas.
 * @param {Shape} shape
 * @param {number[]} frame x, y, width, height of the picture
 * @returns {Point[]}
 */
export function cornersIn(shape, frame) {
  return cornersOf(shape, frame[2] / frame[3]).map(([x, y]) => [frame[0] + x * frame[2], frame[1] + y * frame[3]]);
}

/**
 * The line to the round handle that turns a shape: from the middle of its first side outwards, or of
 * the opposite side where that has no room.
 * @param {Point[]} corners
 * @returns {[Point, Point]}
 */
export function turnHandle(corners) {
  const [a, b, c, d] = corners;
  const above = outwards(a, b, c);
  return above[1][1] >= TURN_REACH ? above : outwards(c, d, a);
}

/**
 * @param {Point} a
 * @param {Point} b
 * @param {Point} inner A corner on the other side of the shape.
 * @returns {[Point, Point]}
 */
function outwards(a, b, inner) {
  const [x, y] = [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
  const length = Math.hypot(b[0] - a[0], b[1] - a[1]) || 1;
  let [nx, ny] = [(b[1] - a[1]) / length, (a[0] - b[0]) / length];
  if (nx * (inner[0] - x) + ny * (inner[1] - y) > 0) [nx, ny] = [-nx, -ny];
  return [[x, y], [x + nx * TURN_DISTANCE, y + ny * TURN_DISTANCE]];
}

/**
 * The part of a shape under a point; null: none.
 * @param {Shape} shape
 * @param {Point} at
 * @param {number[]} frame
 * @param {boolean} selected Whether its handles are shown.
 * @returns {string | null} "" inside, "n", "se" and the like at a box's edges, "corner 2" and "side 1"
 *   of an outline, "turn" at the round handle
 */
export function partAt(shape, at, frame, selected) {
  if (isPainting(shape)) return isPaintedAt(shape, at, frame) ? "" : null;
  const corners = cornersIn(shape, frame);
  if (selected && distance(at, turnHandle(corners)[1]) <= TURN_REACH) return "turn";
  return isQuad(shape) ? partOfQuad(corners, at, selected) : partOfBox(corners, at);
}

/**
 * @param {import("./shapes.js").Painting} painting
 * @param {Point} at
 * @param {number[]} frame
 */
function isPaintedAt({ strokes, from }, at, frame) {
  if (from && isInside(cornersIn(from, frame), at)) return true;
  return strokes.some(({ size, points, erase }) => {
    const path = points.map(([x, y]) => /** @type {Point} */ ([frame[0] + x * frame[2], frame[1] + y * frame[3]]));
    return !erase && path.some((p, i) => distanceToSide(at, path[Math.max(0, i - 1)], p) <= (size / 2) * frame[2]);
  });
}

/** @param {Point[]} corners @param {Point} at */
function partOfBox([[x0, y0], , [x1, y1]], [x, y]) {
  const horizontal = partOfSpan(x, x0, x1, "w", "e");
  const vertical = partOfSpan(y, y0, y1, "n", "s");
  return horizontal === null || vertical === null ? null : vertical + horizontal;
}

/**
 * @param {number} v
 * @param {number} low
 * @param {number} high
 * @param {string} first
 * @param {string} second
 */
function partOfSpan(v, low, high, first, second) {
  if (v < low - OUTSIDE || v > high + OUTSIDE) return null;
  const near = Math.min(INSIDE, (high - low) / 3); // a small box can be moved, too
  if (v < low + near) return first;
  return v > high - near ? second : "";
}

/** @param {Point[]} corners @param {Point} at @param {boolean} selected */
function partOfQuad(corners, at, selected) {
  const inside = isInside(corners, at);
  const corner = nearest(corners.map((c) => distance(at, c)));
  if (selected && corner.distance <= (inside ? INSIDE : CORNER_OUTSIDE)) return `corner ${corner.index}`;
  const side = nearest(corners.map((c, i) => distanceToSide(at, c, corners[(i + 1) % 4])));
  if (side.distance <= (inside ? INSIDE : OUTSIDE)) return `side ${side.index}`;
  return inside ? "" : null;
}

/** @param {number[]} distances */
function nearest(distances) {
  const least = Math.min(...distances);
  return { distance: least, index: distances.indexOf(least) };
}

/** @param {Point[]} corners @param {Point} at */
function isInside(corners, at) {
  const sides = corners.map(([x, y], i) => {
    const [bx, by] = corners[(i + 1) % 4];
    return (bx - x) * (at[1] - y) - (by - y) * (at[0] - x);
  });
  return sides.every((s) => s >= 0) || sides.every((s) => s <= 0);
}

/** @param {Point} a @param {Point} b */
function distance(a, b) {
  return Math.hypot(a[0] - b[0], a[1] - b[1]);
}

/** @param {Point} at @param {Point} a @param {Point} b */
function distanceToSide(at, a, b) {
  const [dx, dy] = [b[0] - a[0], b[1] - a[1]];
  const along = ((at[0] - a[0]) * dx + (at[1] - a[1]) * dy) / (dx * dx + dy * dy || 1);
  const t = Math.min(1, Math.max(0, along));
  return distance(at, [a[0] + t * dx, a[1] + t * dy]);
}
