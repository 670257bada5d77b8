// @ts-check
/** One picture, zoomed as one likes, with boxes on it that can be drawn, moved, resized and deleted. */

import { DrawnSize, followDrag, pointerIn, prepareCanvas } from "./dom.js";
import { drawHint } from "./hint.js";
import { partAt } from "./hit.js";
import { drawBrush, drawCrop, drawMask, drawShape } from "./paint.js";
import { boxBetween, cornersOf, isQuad, movedShape, reshaped, turned } from "./shapes.js";
import { Viewport } from "./viewport.js";

/** @typedef {import("./geometry.js").Box} Box */
/** @typedef {import("./geometry.js").Extent} Extent */
/** @typedef {import("./shapes.js").Shape} Shape */
/**
 * @typedef {object} PaneModel What a pane shows and whom it tells.
 * @property {() => (Shape | null)[]} boxes One per pair; null where this picture has none.
 * @property {() => number} selected
 * @property {(index: number) => void} select
 * @property {(box: Box) => void} draw A new box was drawn.
 * @property {(index: number, box: Shape, done: boolean) => void} change
 * @property {(index: number) => void} remove
 * @property {() => {crop: Box, label: string, index: number}[]} crops Outlines, fractions.
 * @property {() => boolean} locked
 * @property {(box: Box | null) => void} sketch What is being drawn, until it is done.
 * @property {() => {size: number, erase: boolean} | null} brush What a drag paints with; null: it draws boxes.
 * @property {(by: number) => void} resizeBrush
 * @property {(at: import("./shapes.js").Point) => Painter | null} startStroke null: there is nothing to erase from.
 */
/** @typedef {(stroke: import("./shapes.js").Stroke | null, done: boolean) => void} Painter A stroke so far; null: none. */

const LEAST_DRAG = 5; // CSS px below which a drag is a click
const MARGIN = 4; // CSS px around the whole picture
const LEAST_STEP = 2; // CSS px between two points of a stroke

export class Pane {
  /**
   * @param {PaneModel} model
   * @param {string} label
   */
  constructor(model, label) {
    this.model = model;
    this.canvas = document.createElement("canvas");
    Object.assign(this.canvas, { className: "omnirefiner-pane", tabIndex: 0, title: "" });
    this.canvas.setAttribute("aria-label", label);
    this.canvas.dataset.captureWheel = "true"; // Vue nodes leave the wheel to what has the focus
    this.drawn = new DrawnSize(this.canvas, () => this.redraw());
    this.label = label;
    /** @type {CanvasImageSource | null} */
    this.picture = null;
    /** @type {CanvasImageSource | null} */
    this.mask = null;
    /** @type {Extent} */
    this.size = [1, 1];
    this.viewport = new Viewport();
    this.hint = "";
    /** @type {Box | null} */
    this.drawing = null;
    /** Whether a drag moves the picture instead of drawing: Space is held. */
    this.moving = false;
    /** Where the brush is, CSS px. @type {import("./shapes.js").Point | null} */
    this.pointer = null;
    this.canvas.addEventListener("pointerdown", (e) => this.onPointerDown(e));
    this.canvas.addEventListener("pointermove", (e) => this.onHover(e));
    this.canvas.addEventListener("pointerleave", () => this.showBrush(null));
    this.canvas.addEventListener("wheel", (e) => this.onWheel(e), { passive: false });
    this.canvas.addEventListener("keydown", (e) => this.onKey(e));
    this.canvas.addEventListener("keyup", (e) => this.onKeyUp(e));
    this.canvas.addEventListener("focus", () => this.redraw());
    this.canvas.addEventListener("blur", () => this.release());
    this.observer = new ResizeObserver(() => this.redraw());
    this.observer.observe(this.canvas);
  }

  /**
   * @param {CanvasImageSource | null} picture
   * @param {Extent} size The picture's true size, px.
   */
  show(picture, size) {
    if (this.size[0] !== size[0] || this.size[1] !== size[1]) this.viewport.fit();
    this.picture = picture;
    this.size = this.viewport.size = size;
    this.canvas.dataset.shows = picture ? size.join("x") : "";
    this.redraw();
  }

  /** Where the picture lies in the canvas, CSS px: x, y, width, height. */
  frame() {
    const { clientWidth: w, clientHeight: h } = this.canvas;
    this.viewport.view = [Math.max(1, w - 2 * MARGIN), Math.max(1, h - 2 * MARGIN)];
    const [x, y] = this.viewport.origin;
    const { scale } = this.viewport;
    return [x + MARGIN, y + MARGIN, this.size[0] * scale, this.size[1] * scale];
  }

  /**
   * Zoom by a factor around a point of the canvas, never smaller than the whole picture.
   * @param {number} factor
   * @param {number} x
   * @param {number} y
   */
  zoom(factor, x, y) {
    const { viewport } = this;
    viewport.zoomAt(viewport.scale * factor, x - MARGIN, y - MARGIN, viewport.fitting);
    this.redraw();
  }

  /** As in the comparison: the wheel zooms the picture once it was clicked, before that the graph. */
  onWheel(/** @type {WheelEvent} */ event) {
    if (document.activeElement !== this.canvas || !this.picture) return;
    event.preventDefault();
    event.stopPropagation();
    this.zoom(1.2 ** -Math.sign(event.deltaY), ...pointerIn(this.canvas, event));
  }

  /** @param {{clientX: number, clientY: number}} event @returns {[number, number]} fractions */
  at(event) {
    const [x, y] = pointerIn(this.canvas, event);
    const [left, top, width, height] = this.frame();
    return [(x - left) / width, (y - top) / height];
  }

  /**
   * What is under the pointer: the index of a box and which part of it (see `partAt`).
   * @param {{clientX: number, clientY: number}} event
   * @returns {{index: number, part: string} | null}
   */
  hit(event) {
    const at = pointerIn(this.canvas, event);
    const frame = this.frame();
    const chosen = this.model.selected();
    const boxes = this.model.boxes();
    const order = [chosen, ...boxes.keys()].filter((i) => boxes[i]);
    order.sort((a, b) => Number(b === chosen) - Number(a === chosen) || b - a);
    for (const index of order) {
      const part = partAt(/** @type {Shape} */ (boxes[index]), at, frame, index === chosen);
      if (part !== null) return { index, part };
    }
    return null;
  }

  /** @param {PointerEvent} event */
  onHover(event) {
    if (event.buttons) return;
    if (this.moving) return;
    if (this.usesBrush) {
      this.canvas.style.cursor = "none";
      this.showBrush(event);
      return;
    }
    const usable = this.picture && !this.model.locked();
    const hit = usable && !event.shiftKey ? this.hit(event) : null;
    this.canvas.style.cursor = usable ? cursorOf(hit?.part ?? null) : "default";
  }

  get usesBrush() {
    return Boolean(this.picture && this.model.brush() && !this.model.locked());
  }

  /** @param {{clientX: number, clientY: number} | null} event */
  showBrush(event) {
    if (!event && !this.pointer) return;
    this.pointer = event && pointerIn(this.canvas, event);
    this.redraw();
  }

  /** @param {PointerEvent} event */
  onPointerDown(event) {
    if (event.button !== 0) return;
    event.stopPropagation();
    this.canvas.focus({ preventScroll: true });
    if (!this.picture) return;
    if (this.moving) {
      this.pan(event);
      return;
    }
    if (this.model.locked()) return;
    if (this.usesBrush) {
      this.paint(event);
      return;
    }
    const hit = event.shiftKey ? null : this.hit(event); // Shift draws, also inside another box
    this.model.select(hit ? hit.index : -1);
    if (hit) this.edit(event, hit);
    else this.drawNew(event);
  }

  /** @param {PointerEvent} start */
  pan(start) {
    let last = pointerIn(this.canvas, start);
    followDrag(
      this.canvas,
      start,
      (event) => {
        const [x, y] = pointerIn(this.canvas, event);
        this.viewport.pan(x - last[0], y - last[1]);
        last = [x, y];
        this.redraw();
      },
      () => {},
    );
  }

  /**
   * @param {PointerEvent} start
   * @param {{index: number, part: string}} hit
   */
  edit(start, { index, part }) {
    const from = this.at(start);
    const before = /** @type {Shape} */ (this.model.boxes()[index]);
    let shape = before;
    followDrag(
      this.canvas,
      start,
      (event) => {
        const [x, y] = this.at(event);
        if (part === "turn") shape = turned(before, this.angle(before, from, [x, y]), this.size);
        else shape = reshaped(before, part, x - from[0], y - from[1], event.altKey);
        this.model.change(index, shape, false);
      },
      (cancelled) => this.model.change(index, cancelled ? before : shape, true),
    );
  }

  /**
   * How far a drag between two points turns around a shape's middle, clockwise, radians.
   * @param {Shape} shape
   * @param {[number, number]} from
   * @param {[number, number]} to
   */
  angle(shape, from, to) {
    const corners = cornersOf(shape);
    const middle = [0, 1].map((i) => corners.reduce((sum, p) => sum + p[i], 0) / 4);
    const towards = (/** @type {[number, number]} */ [x, y]) =>
      Math.atan2((y - middle[1]) * this.size[1], (x - middle[0]) * this.size[0]);
    return towards(to) - towards(from);
  }

  /** @param {PointerEvent} start */
  paint(start) {
    const brush = this.model.brush();
    const paint = brush && this.model.startStroke(this.at(start));
    if (!brush || !paint) return;
    const inside = (/** @type {number} */ v) => Math.min(1, Math.max(0, v));
    /** @type {import("./shapes.js").Stroke} */
    const stroke = { size: brush.size, points: [], ...(brush.erase ? { erase: true } : {}) };
    let last = [-LEAST_STEP, -LEAST_STEP];
    const add = (/** @type {PointerEvent} */ event) => {
      const here = pointerIn(this.canvas, event);
      this.pointer = here;
      if (Math.hypot(here[0] - last[0], here[1] - last[1]) < LEAST_STEP) return;
      last = here;
      const [x, y] = this.at(event);
      stroke.points = [...stroke.points, [inside(x), inside(y)]];
      paint({ ...stroke }, false);
    };
    add(start);
    followDrag(this.canvas, start, add, (cancelled) => paint(cancelled ? null : { ...stroke }, true));
  }

  /** @param {PointerEvent} start */
  drawNew(start) {
    const [ax, ay] = this.at(start);
    const [sx, sy] = pointerIn(this.canvas, start);
    let far = false;
    followDrag(
      this.canvas,
      start,
      (event) => {
        const [px, py] = pointerIn(this.canvas, event);
        far = far || Math.hypot(px - sx, py - sy) >= LEAST_DRAG;
        this.drawing = far ? boxBetween(ax, ay, ...this.at(event)) : null;
        this.model.sketch(this.drawing);
        this.redraw();
      },
      (cancelled) => {
        const box = this.drawing;
        this.drawing = null;
        this.model.sketch(null);
        if (box && !cancelled) this.model.draw(box);
        this.redraw();
      },
    );
  }

  /** @param {KeyboardEvent} event */
  onKey(event) {
    if (event.ctrlKey || event.metaKey || !this.picture) return;
    if (!this.look(event.key) && (this.model.locked() || !this.act(event))) return;
    event.stopPropagation();
    event.preventDefault();
  }

  /** @param {KeyboardEvent} event */
  onKeyUp(event) {
    if (event.key === " ") this.release();
  }

  release() {
    this.moving = false;
    this.redraw();
  }

  /**
   * Keys that change what is seen and nothing else.
   * @param {string} key
   * @returns {boolean} whether the key is one
   */
  look(key) {
    const { clientWidth: w, clientHeight: h } = this.canvas;
    if (key === " ") {
      this.moving = true;
      this.canvas.style.cursor = "grab";
    } else if (key === "+") this.zoom(1.25, w / 2, h / 2);
    else if (key === "-") this.zoom(0.8, w / 2, h / 2);
    else if (key === "0") this.zoom(0, w / 2, h / 2);
    else return false;
    return true;
  }

  /**
   * @param {KeyboardEvent} event
   * @returns {boolean} whether the key means something here
   */
  act(event) {
    const index = this.model.selected();
    const box = this.model.boxes()[index];
    const count = this.model.boxes().length;
    if (event.key === "Enter") this.model.draw([0.35, 0.35, 0.65, 0.65]);
    else if (event.key === "Escape") this.model.select(-1);
    else if (event.key.toLowerCase() === "n" && count) this.model.select((index + 1) % count);
    else if (event.key === "Delete" || event.key === "Backspace") {
      if (box) this.model.remove(index);
    } else if (event.key.startsWith("Arrow")) this.nudge(event, index, box);
    else if (event.key === "[" || event.key === "]") {
      const by = event.key === "]" ? 1 : -1;
      if (this.usesBrush) this.model.resizeBrush(by);
      else this.turn(by, index, box);
    } else return false;
    return true;
  }

  /**
   * Arrows move the selected box by one pixel of the picture, ten with Shift; with Alt they move its
   * lower right corner.
   * @param {KeyboardEvent} event
   * @param {number} index
   * @param {Shape | null | undefined} box
   */
  nudge(event, index, box) {
    if (!box) return;
    const step = event.shiftKey ? 10 : 1;
    const right = Number(event.key === "ArrowRight") - Number(event.key === "ArrowLeft");
    const down = Number(event.key === "ArrowDown") - Number(event.key === "ArrowUp");
    const [dx, dy] = [(right * step) / this.size[0], (down * step) / this.size[1]];
    const corner = isQuad(box) ? "corner 2" : "se";
    const moved = event.altKey ? reshaped(box, corner, dx, dy, false) : movedShape(box, dx, dy);
    this.model.change(index, moved, true);
  }

  /**
   * @param {number} degrees Clockwise.
   * @param {number} index
   * @param {Shape | null | undefined} box
   */
  turn(degrees, index, box) {
    if (box) this.model.change(index, turned(box, (degrees * Math.PI) / 180, this.size), true);
  }

  redraw() {
    this.drawn.note();
    if (!this.canvas.clientWidth) return;
    const { context, width, height } = prepareCanvas(this.canvas);
    if (!this.picture) {
      drawHint(context, this.hint, width, height);
      return;
    }
    const frame = this.frame();
    context.drawImage(this.picture, frame[0], frame[1], frame[2], frame[3]);
    if (this.mask) drawMask(context, this.mask, frame);
    const chosen = this.model.selected();
    for (const outline of this.model.crops()) drawCrop(context, frame, outline, chosen);
    this.model.boxes().forEach((box, i) => {
      if (box) drawShape(context, frame, box, i, i === chosen && !this.model.locked());
    });
    if (this.drawing) drawShape(context, frame, this.drawing, this.model.boxes().length, false);
    const brush = this.model.brush();
    if (brush && this.pointer) drawBrush(context, this.pointer, brush.size * frame[2]);
  }
}

/** @param {string | null} part See `partAt`. */
function cursorOf(part) {
  if (part === null) return "crosshair";
  if (part === "") return "move";
  if (part === "turn") return "grab";
  return part.includes(" ") ? "pointer" : `${part}-resize`;
}
