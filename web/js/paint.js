// @ts-check
/** How boxes, crops and masks look on a picture. */

import { cornersIn, turnHandle } from "./hit.js";
import { boundsOf, isPainting, isQuad } from "./shapes.js";

/** @typedef {import("./geometry.js").Box} Box */
/** @typedef {import("./shapes.js").Point} Point */
/** @typedef {import("./shapes.js").Shape} Shape */

// Told apart by eye also with the common colour blindnesses, on dark and light pictures.
const COLOURS = ["#ffb000", "#3aa0ff", "#ff5f8a", "#5fd38d", "#c38bff", "#ff7f3f", "#2fd3d3", "#e8e337"];

/** Shortest side of a box that has handles between its corners, CSS px. */
const ROOM_FOR_HANDLES = 44;

/** Height of a crop that has its label inside, CSS px. */
const ROOM_FOR_LABEL = 100;

/** @param {number} index */
export function colourOf(index) {
  return COLOURS[index % COLOURS.length];
}

/**
 * @param {number[]} frame x, y, width, height of the picture
 * @param {Box} box fractions
 */
function place(frame, box) {
  return [
    frame[0] + box[0] * frame[2],
    frame[1] + box[1] * frame[3],
    (box[2] - box[0]) * frame[2],
    (box[3] - box[1]) * frame[3],
  ];
}

/**
 * A box, an outline of four corners or a painted shape.
 * @param {CanvasRenderingContext2D} context
 * @param {number[]} frame
 * @param {Shape} shape
 * @param {number} index
 * @param {boolean} selected Whether its handles are shown.
 */
export function drawShape(context, frame, shape, index, selected) {
  const corners = cornersIn(shape, frame);
  const colour = colourOf(index);
  const [, , w, h] = place(frame, boundsOf(shape, frame[2] / frame[3]));
  const numberSize = Math.min(w, h) < 28 ? 9 : 12;
  if (isPainting(shape)) {
    drawPainting(context, frame, shape, colour, selected);
    drawNumber(context, ...corners[0], String(index + 1), colour, numberSize);
    return;
  }
  const path = pathOf(corners);
  context.lineWidth = 4;
  context.strokeStyle = "rgba(0, 0, 0, 0.55)";
  context.stroke(path);
  context.lineWidth = 2;
  context.strokeStyle = colour;
  context.stroke(path);
  if (selected) {
    context.globalAlpha = 0.14;
    context.fillStyle = colour;
    context.fill(path);
    context.globalAlpha = 1;
    drawHandles(context, corners, !isQuad(shape));
  }
  drawNumber(context, ...corners[0], String(index + 1), colour, numberSize);
}

/** @param {Point[]} corners */
function pathOf(corners) {
  const path = new Path2D();
  corners.forEach(([x, y], i) => (i ? path.lineTo(x, y) : path.moveTo(x, y)));
  path.closePath();
  return path;
}

/** Where painted shapes are put together before they are drawn. @type {HTMLCanvasElement | null} */
let layer = null;

/**
 * @param {CanvasRenderingContext2D} context
 * @param {number[]} frame
 * @param {import("./shapes.js").Painting} painting
 * @param {string} colour
 * @param {boolean} selected
 */
function drawPainting(context, frame, { strokes, from }, colour, selected) {
  layer ??= document.createElement("canvas");
  const { width, height } = context.canvas;
  Object.assign(layer, { width, height }); // also empties it
  const on = /** @type {CanvasRenderingContext2D} */ (layer.getContext("2d"));
  on.setTransform(context.getTransform());
  on.fillStyle = on.strokeStyle = colour;
  on.lineCap = on.lineJoin = "round";
  if (from) on.fill(pathOf(cornersIn(from, frame)));
  for (const { size, points, erase } of strokes) {
    on.globalCompositeOperation = erase ? "destination-out" : "source-over";
    on.lineWidth = size * frame[2];
    on.beginPath();
    for (const [x, y] of [points[0], ...points]) on.lineTo(frame[0] + x * frame[2], frame[1] + y * frame[3]);
    on.stroke();
  }
  context.save();
  context.resetTransform();
  context.globalAlpha = selected ? 0.55 : 0.4;
  context.drawImage(layer, 0, 0);
  context.restore();
}

/**
 * The ring that shows where the brush would paint.
 * @param {CanvasRenderingContext2D} context
 * @param {Point} at CSS px
 * @param {number} diameter CSS px
 */
export function drawBrush(context, [x, y], diameter) {
  for (const [style, width] of /** @type {[string, number][]} */ ([["rgba(0, 0, 0, 0.7)", 3], ["#fff", 1]])) {
    context.strokeStyle = style;
    context.lineWidth = width;
    context.beginPath();
    context.arc(x, y, Math.max(1, diameter / 2), 0, 2 * Math.PI);
    context.stroke();
  }
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Point[]} corners
 * @param {boolean} sides Whether there are handles between the corners, too.
 */
function drawHandles(context, corners, sides) {
  const [from, to] = turnHandle(corners);
  context.lineWidth = 1;
  context.strokeStyle = "#fff";
  context.beginPath();
  context.moveTo(...from);
  context.lineTo(...to);
  context.stroke();
  context.fillStyle = "#fff";
  context.strokeStyle = "#000";
  context.beginPath();
  context.arc(...to, 4.5, 0, 2 * Math.PI);
  context.fill();
  context.stroke();
  for (const [x, y] of sides ? [...corners, ...middles(corners)] : corners) {
    context.fillRect(x - 3, y - 3, 6, 6);
    context.strokeRect(x - 3, y - 3, 6, 6);
  }
}

/**
 * The middles of the sides that have room for a handle.
 * @param {Point[]} corners
 * @returns {Point[]}
 */
function middles(corners) {
  return corners.flatMap(([x, y], i) => {
    const [nx, ny] = corners[(i + 1) % 4];
    if (Math.hypot(nx - x, ny - y) < ROOM_FOR_HANDLES) return [];
    return [/** @type {Point} */ ([(x + nx) / 2, (y + ny) / 2])];
  });
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {number} x
 * @param {number} y
 * @param {string} text
 * @param {string} colour
 * @param {number} size Of the letters, CSS px.
 */
function drawNumber(context, x, y, text, colour, size) {
  context.font = `bold ${size}px sans-serif`;
  const [width, height] = [context.measureText(text).width + size * 0.8, size * 1.33];
  const top = y >= height + 1 ? y - height - 1 : y + 1;
  context.fillStyle = colour;
  context.fillRect(x - 1, top, width, height);
  context.fillStyle = "#000";
  context.textAlign = "left";
  context.fillText(text, x - 1 + size * 0.4, top + size * 1.04);
}

/**
 * The crop that will be used: dashed, with the model's resolution.
 * @param {CanvasRenderingContext2D} context
 * @param {number[]} frame
 * @param {{crop: Box, label: string, index: number}} outline
 * @param {number} selected
 */
export function drawCrop(context, frame, outline, selected) {
  const [x, y, w, h] = place(frame, outline.crop);
  context.save();
  context.globalAlpha = selected < 0 || selected === outline.index ? 0.95 : 0.45;
  context.lineWidth = 1.2;
  context.strokeStyle = "rgba(0, 0, 0, 0.7)";
  context.strokeRect(x, y, w, h);
  context.setLineDash([5, 4]);
  context.strokeStyle = colourOf(outline.index);
  context.strokeRect(x, y, w, h);
  context.setLineDash([]);
  context.font = "10px sans-serif";
  context.textAlign = "right";
  const width = context.measureText(outline.label).width + 6;
  if (width < w) {
    // Below a small crop, where its box does not lie over it.
    const below = h < ROOM_FOR_LABEL && y + h + 14 < frame[1] + frame[3];
    const bottom = y + h + (below ? 14 : 0);
    context.fillStyle = "rgba(0, 0, 0, 0.6)";
    context.fillRect(x + w - width, bottom - 14, width, 14);
    context.fillStyle = "#fff";
    context.fillText(outline.label, x + w - 3, bottom - 3.5);
  }
  context.restore();
}

/**
 * The mask the server made, as a veil over what it leaves alone.
 * @param {CanvasRenderingContext2D} context
 * @param {CanvasImageSource} mask White outside, with alpha (see `maskVeil`).
 * @param {number[]} frame
 */
export function drawMask(context, mask, frame) {
  context.drawImage(mask, frame[0], frame[1], frame[2], frame[3]);
}

/**
 * A mask picture (white = inside) turned into a veil of red where it is white.
 * @param {HTMLImageElement} picture
 * @returns {HTMLCanvasElement}
 */
export function maskVeil(picture) {
  const canvas = document.createElement("canvas");
  canvas.width = picture.naturalWidth;
  canvas.height = picture.naturalHeight;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.drawImage(picture, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    pixels.data[i + 3] = pixels.data[i] * 0.45;
    pixels.data[i] = 255;
    pixels.data[i + 1] = 40;
    pixels.data[i + 2] = 40;
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/**
 * The line between two compared images, with its handle.
 * @param {CanvasRenderingContext2D} context
 * @param {number} x
 * @param {number} height
 */
export function drawSlider(context, x, height) {
  context.fillStyle = "rgba(0, 0, 0, 0.5)";
  context.fillRect(x - 1.5, 0, 3, height);
  context.fillStyle = "#fff";
  context.fillRect(x - 0.5, 0, 1, height);
  context.beginPath();
  const y = height - 14; // at the edge, where it hides no detail
  context.arc(x, y, 8, 0, 2 * Math.PI);
  context.fill();
  context.fillStyle = "#333";
  context.font = "10px sans-serif";
  context.textAlign = "center";
  context.fillText("↔", x, y + 3.5);
}
