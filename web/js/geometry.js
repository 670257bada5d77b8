// @ts-check
/**
 * The crop plan of `refiner_core/images/geometry.py` and the pixels of `boxes.py` beside it, so
 * that the page outlines the crop that will really be used. Tests hold both to the same numbers.
 */

/** @typedef {[number, number]} Extent Width and height in pixels. */
/** @typedef {[number, number, number, number]} Box x0, y0, x1, y1; half-open, or fractions 0..1. */
/**
 * @typedef {object} RecipeSizes
 * @property {Extent[]} sizes Resolutions the model works at.
 * @property {number} multiple What its codec needs sides to be a multiple of.
 * @property {number} context The recipe's own crop size over region size.
 * @property {boolean} [native_detail] Whether details are laid over at the draft's own resolution.
 * @property {string[]} [inputs] The inputs of Load Refiner that it reads.
 */
/**
 * @typedef {object} Plan
 * @property {Box} box The crop in pixels; may reach outside the picture.
 * @property {Extent} target The size the model sees it at.
 */

/**
 * Python's round: halves go to the even neighbour.
 * @param {number} value
 */
export function roundHalfEven(value) {
  const low = Math.floor(value);
  const rest = value - low;
  if (rest !== 0.5) return Math.round(value);
  return low % 2 === 0 ? low : low + 1;
}

/**
 * @param {number} a
 * @param {number} b
 * @returns {number}
 */
function gcd(a, b) {
  return b === 0 ? a : gcd(b, a % b);
}

/**
 * @param {number} low
 * @param {number} high
 * @param {number} length
 * @returns {[number, number]}
 */
function interval(low, high, length) {
  const start = Math.min(Math.floor(low * length + 0.5), length - 1);
  return [start, Math.min(Math.max(Math.floor(high * length + 0.5), start + 1), length)];
}

/**
 * A box in fractions of a picture in whole pixels of it, at least 1x1.
 * @param {Box} box
 * @param {Extent} size
 * @returns {Box}
 */
export function toPixels(box, size) {
  const [x0, x1] = interval(box[0], box[2], size[0]);
  const [y0, y1] = interval(box[1], box[3], size[1]);
  return [x0, y0, x1, y1];
}

/**
 * The whole pixels that an outline touches, at least 1x1.
 * @param {Box} bounds The upright box around it, fractions.
 * @param {Extent} size
 * @returns {Box}
 */
export function touchedPixels([x0, y0, x1, y1], [width, height]) {
  const left = Math.min(Math.floor(x0 * width), width - 1);
  const top = Math.min(Math.floor(y0 * height), height - 1);
  return [left, top, Math.max(left + 1, Math.ceil(x1 * width)), Math.max(top + 1, Math.ceil(y1 * height))];
}

/**
 * A box grown (or shrunk) by whole pixels as the node grows a full box; null if nothing is left.
 * @param {Box} box
 * @param {number} grow
 * @param {Extent} size
 * @returns {Box | null}
 */
export function grown(box, grow, size) {
  // Shrinking starts from the box's own edges, not from those that are edges of the picture.
  const at = (/** @type {boolean} */ edge) => (grow < 0 && edge ? 0 : grow);
  /** @type {Box} */
  const out = [
    Math.max(0, box[0] - at(box[0] === 0)),
    Math.max(0, box[1] - at(box[1] === 0)),
    Math.min(size[0], box[2] + at(box[2] === size[0])),
    Math.min(size[1], box[3] + at(box[3] === size[1])),
  ];
  return out[0] < out[2] && out[1] < out[3] ? out : null;
}

/**
 * @param {RecipeSizes} recipe
 * @param {number | null} megapixels
 * @returns {Extent[]}
 */
function scaledSizes(recipe, megapixels) {
  if (!megapixels) return recipe.sizes;
  const seen = new Map();
  for (const size of recipe.sizes) {
    const factor = Math.sqrt((megapixels * 1e6) / (size[0] * size[1]));
    const m = recipe.multiple;
    /** @type {number[]} */
    const sides = size.map((v) => Math.max(m, roundHalfEven((v * factor) / m) * m));
    seen.set(sides.join("x"), sides);
  }
  return [...seen.values()];
}

/**
 * The smallest multiple of `target`'s unit rectangle that covers `need`.
 * @param {Extent} target
 * @param {Extent} need
 * @returns {Extent}
 */
function fit(target, need) {
  const g = gcd(target[0], target[1]);
  const unit = [target[0] / g, target[1] / g];
  const k = Math.max(1, Math.ceil(need[0] / unit[0]), Math.ceil(need[1] / unit[1]));
  return [unit[0] * k, unit[1] * k];
}

/**
 * @param {number} center
 * @param {number} length
 * @param {[number, number]} region
 * @param {number} limit
 */
function place(center, length, region, limit) {
  let start = roundHalfEven(center - length / 2);
  if (length <= limit) return Math.min(Math.max(start, 0), limit - length);
  start = Math.min(Math.max(start, limit - length), 0);
  return Math.min(Math.max(start, region[1] - length), region[0]);
}

/**
 * The crop's extent at the aspect of `target`: as wanted, or as large as the picture allows but
 * never smaller than the region.
 * @param {Extent} image
 * @param {Extent} size
 * @param {Extent} want
 * @param {Extent} target
 * @returns {Extent}
 */
function cropExtent(image, size, want, target) {
  const extent = fit(target, want);
  if (extent[0] <= image[0] && extent[1] <= image[1]) return extent;
  const g = gcd(target[0], target[1]);
  const unit = [target[0] / g, target[1] / g];
  const room = Math.max(
    1,
    Math.min(Math.floor(image[0] / unit[0]), Math.floor(image[1] / unit[1])),
  );
  /** @type {Extent} */
  const largest = [unit[0] * room, unit[1] * room];
  const smallest = fit(target, size);
  return largest[0] > smallest[0] ? largest : smallest;
}

/**
 * @param {Extent} image
 * @param {Box} box
 * @param {Extent} want
 * @param {Extent} target
 * @returns {number[]} Padding, lost context, area, skew: lower is better, the first that differs decides.
 */
function cost(image, box, want, target) {
  const area = (box[2] - box[0]) * (box[3] - box[1]);
  const width = Math.min(box[2], image[0]) - Math.max(box[0], 0);
  const height = Math.min(box[3], image[1]) - Math.max(box[1], 0);
  const outside = 1 - (width * height) / area;
  const excess = area / (want[0] * want[1]);
  const lost = 1 - Math.min(1, (box[2] - box[0]) / want[0], (box[3] - box[1]) / want[1]);
  const skew = Math.abs(Math.log(target[0] / target[1] / (want[0] / want[1])));
  return [
    Math.ceil(1000 * outside) / 1000,
    Math.ceil(10 * lost) / 10,
    Math.max(excess, 1 / excess),
    skew,
  ];
}

/**
 * @param {number[]} a
 * @param {number[]} b
 */
function isLess(a, b) {
  const i = a.findIndex((v, k) => v !== b[k]);
  return i >= 0 && a[i] < b[i];
}

/**
 * The crop around `region` (whole pixels, inside the image).
 * @param {Extent} image
 * @param {Box} region
 * @param {RecipeSizes} recipe
 * @param {number} context
 * @param {number | null} megapixels
 * @returns {Plan}
 */
export function planCrop(image, region, recipe, context, megapixels = null) {
  /** @type {Extent} */
  const size = [region[2] - region[0], region[3] - region[1]];
  /** @type {Extent} */
  const want = [Math.ceil(size[0] * context), Math.ceil(size[1] * context)];
  /** @type {{cost: number[], plan: Plan} | null} */
  let best = null;
  for (const target of scaledSizes(recipe, megapixels)) {
    const [w, h] = cropExtent(image, size, want, target);
    const x0 = place((region[0] + region[2]) / 2, w, [region[0], region[2]], image[0]);
    const y0 = place((region[1] + region[3]) / 2, h, [region[1], region[3]], image[1]);
    /** @type {Box} */
    const box = [x0, y0, x0 + w, y0 + h];
    const found = cost(image, box, want, target);
    if (!best || isLess(found, best.cost)) best = { cost: found, plan: { box, target } };
  }
  if (!best) throw new Error("The recipe has no sizes.");
  return best.plan;
}

/** Of the area of a picture; a region from it on is no detail, as `repair/marking.py` says. */
const WHOLE = 0.8;

/**
 * Whether a region is nearly the whole picture.
 * @param {Box} region Whole pixels.
 * @param {Extent} image
 */
export function isWhole([x0, y0, x1, y1], [width, height]) {
  return (x1 - x0) * (y1 - y0) >= WHOLE * width * height;
}
