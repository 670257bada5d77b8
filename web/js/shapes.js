// @ts-check
/**
 * Boxes, outlines of four corners and painted shapes, and what dragging does to them. Everything in
 * fractions of the picture; no DOM.
 */

/** @typedef {import("./geometry.js").Box} Box */
/** @typedef {import("./geometry.js").Extent} Extent */
/** @typedef {[number, number]} Point */
/** @typedef {[Point, Point, Point, Point]} Quad A convex outline, its corners in order round it. */
/**
 * @typedef {object} Stroke The path of a round brush.
 * @property {number} size Its diameter, as a fraction of the picture's width.
 * @property {Point[]} points
 * @property {boolean} [erase]
 */
/** @typedef {{strokes: Stroke[], from?: Box | Quad}} Painting Strokes on nothing, a box or an outline. */
/** @typedef {Box | Quad | Painting} Shape */

/** Corners of a box in the order of `cornersOf`. */
const CORNERS = ["nw", "ne", "se", "sw"];
/** Least distance of an outline's corner from the line between its neighbours: far above rounding. */
const LEAST_BEND = 0.0005;
/** Shortest side of a box. */
const SMALLEST = 0.001;

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
 * @param {Shape} shape
 * @returns {shape is Painting}
 */
export function isPainting(shape) {
  return !Array.isArray(shape);
}

/**
 * @param {Shape} shape
 * @returns {shape is Quad}
 */
export function isQuad(shape) {
  return Array.isArray(shape) && typeof shape[0] !== "number";
}

/**
 * @param {Shape} shape
 * @param {number} [aspect] Width over height of the picture, which only painted shapes need.
 * @returns {Quad}
 */
export function cornersOf(shape, aspect = 1) {
  if (isQuad(shape)) return shape;
  const [x0, y0, x1, y1] = boundsOf(shape, aspect);
  return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]];
}

/**
 * The upright box around a shape.
 * @param {Shape} shape
 * @param {number} [aspect] Width over height of the picture, which only painted shapes need.
 * @returns {Box}
 */
export function boundsOf(shape, aspect = 1) {
  if (isPainting(shape)) return boundsOfPainting(shape, aspect);
  if (!isQuad(shape)) return shape;
  return boxAround(shape);
}

/**
 * @param {Point[]} points
 * @returns {Box}
 */
function boxAround(points) {
  const [xs, ys] = [points.map((p) => p[0]), points.map((p) => p[1])];
  return boxBetween(Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys));
}

/**
 * @param {Painting} painting
 * @param {number} aspect
 * @returns {Box}
 */
function boundsOfPainting({ strokes, from }, aspect) {
  const reached = strokes.flatMap(({ size, points, erase }) => {
    if (erase) return [];
    const [rx, ry] = [size / 2, (size / 2) * aspect];
    return points.flatMap(([x, y]) => /** @type {Point[]} */ ([[x - rx, y - ry], [x + rx, y + ry]]));
  });
  return boxAround([...reached, ...(from ? cornersOf(from) : [])]);
}

/**
 * A shape with another stroke on it.
 * @param {Shape | null} shape null: on nothing.
 * @param {Stroke} stroke
 * @returns {Painting}
 */
export function painted(shape, stroke) {
  if (!shape) return { strokes: [stroke] };
  if (isPainting(shape)) return { ...shape, strokes: [...shape.strokes, stroke] };
  return { strokes: [stroke], from: shape };
}

/**
 * @param {Painting} painting
 * @param {number} dx
 * @param {number} dy
 * @returns {Painting} moved as far as its points stay in the picture
 */
function movedPainting({ strokes, from }, dx, dy) {
  const points = [...strokes.flatMap((s) => s.points), ...(from ? cornersOf(from) : [])];
  const before = boxAround(points);
  const after = movedBox(before, dx, dy);
  const by = /** @type {Point} */ ([after[0] - before[0], after[1] - before[1]]);
  const inside = (/** @type {number} */ v) => Math.min(1, Math.max(0, v));
  const moved = strokes.map((stroke) => ({
    ...stroke,
    points: stroke.points.map(([x, y]) => /** @type {Point} */ ([inside(x + by[0]), inside(y + by[1])])),
  }));
  if (!from) return { strokes: moved };
  return { strokes: moved, from: /** @type {Box | Quad} */ (movedShape(from, ...by)) };
}

/**
 * How far each corner lies off the line between its neighbours, to one side or the other.
 * @param {Point[]} points
 */
function bends(points) {
  return points.map(([x, y], i) => {
    const [ax, ay] = points[(i + 3) % 4];
    const [bx, by] = points[(i + 1) % 4];
    const doubleArea = (x - ax) * (by - y) - (y - ay) * (bx - x);
    return doubleArea / (Math.hypot(bx - ax, by - ay) || 1);
  });
}

/**
 * @param {Point[]} points
 * @param {number} [least] Distance by which every corner must stand out.
 */
export function isConvex(points, least = 0) {
  const all = bends(points);
  return all.every((b) => b > least) || all.every((b) => b < -least);
}

/**
 * The shape moved as far as the picture goes.
 * @param {Shape} shape
 * @param {number} dx
 * @param {number} dy
 * @returns {Shape}
 */
export function movedShape(shape, dx, dy) {
  if (isPainting(shape)) return movedPainting(shape, dx, dy);
  if (!isQuad(shape)) return movedBox(shape, dx, dy);
  const from = boundsOf(shape);
  const to = movedBox(from, dx, dy);
  return shifted(shape, to[0] - from[0], to[1] - from[1]);
}

/**
 * @param {Quad} quad
 * @param {number} dx
 * @param {number} dy
 */
function shifted(quad, dx, dy) {
  return /** @type {Quad} */ (quad.map(([x, y]) => [x + dx, y + dy]));
}

/**
 * The outline with some of its corners moved, each inside the picture; as it was where it would
 * cross itself or be dented.
 * @param {Shape} shape
 * @param {number[]} which
 * @param {number} dx
 * @param {number} dy
 * @returns {Shape}
 */
function withCorners(shape, which, dx, dy) {
  const inside = (/** @type {number} */ v) => Math.min(1, Math.max(0, v));
  const points = cornersOf(shape).map(([x, y], i) =>
    which.includes(i) ? [inside(x + dx), inside(y + dy)] : [x, y],
  );
  return isConvex(/** @type {Point[]} */ (points), LEAST_BEND) ? /** @type {Quad} */ (points) : shape;
}

/**
 * The shape after a part of it was dragged.
 * @param {Shape} shape
 * @param {string} part As `partAt` names it.
 * @param {number} dx
 * @param {number} dy
 * @param {boolean} alone Whether a box's corner moves without the others, which makes an outline.
 * @returns {Shape}
 */
export function reshaped(shape, part, dx, dy, alone) {
  if (!part || isPainting(shape)) return part ? shape : movedShape(shape, dx, dy);
  const [kind, number] = part.split(" ");
  const corner = kind === "corner" ? Number(number) : CORNERS.indexOf(part);
  if (corner >= 0 && (alone || isQuad(shape))) return withCorners(shape, [corner], dx, dy);
  if (kind === "side") return withCorners(shape, [Number(number), (Number(number) + 1) % 4], dx, dy);
  return isQuad(shape) ? shape : resizedBox(shape, part, dx, dy);
}

/**
 * The shape turned around its middle, moved inside the picture; as it was where it has no room.
 * @param {Shape} shape
 * @param {number} angle Clockwise, radians.
 * @param {Extent} size Of the picture, px: an angle is one of pixels, not of fractions.
 * @returns {Shape}
 */
export function turned(shape, angle, [width, height]) {
  if (isPainting(shape)) return shape;
  const points = cornersOf(shape);
  const mx = points.reduce((sum, p) => sum + p[0], 0) / 4;
  const my = points.reduce((sum, p) => sum + p[1], 0) / 4;
  const [c, s] = [Math.cos(angle), Math.sin(angle)];
  const quad = /** @type {Quad} */ (
    points.map(([x, y]) => {
      const [px, py] = [(x - mx) * width, (y - my) * height];
      return [mx + (px * c - py * s) / width, my + (px * s + py * c) / height];
    })
  );
  const low = [0, 1].map((i) => Math.min(...quad.map((p) => p[i])));
  const high = [0, 1].map((i) => Math.max(...quad.map((p) => p[i])));
  if (low.some((v, i) => high[i] - v > 1)) return shape;
  const [dx, dy] = low.map((v, i) => Math.max(0, -v) + Math.min(0, 1 - high[i]));
  return shifted(quad, dx, dy);
}
