// @ts-check
/** The region picker: draft and reference side by side, with boxes that belong together. */

import { formatPairs, parsePairs, strokeTarget, withBox, withDrawn, without, MOST_BOXES } from "./boxes.js";
import { Brush } from "./brush.js";
import { button, element } from "./dom.js";
import { howToMark } from "./hint.js";
import { grown, isWhole, planCrop, toPixels, touchedPixels } from "./geometry.js";
import { say } from "./messages.js";
import { openMaskEditor } from "./mask_editor.js";
import { maskVeil } from "./paint.js";
import { Pane } from "./pane.js";
import { boundsOf, cornersOf, isPainting, isQuad } from "./shapes.js";
import { isConnected, loadPicture, planningOf, rememberChange, sourceOf, viewUrl } from "./sources.js";

/** @typedef {import("./geometry.js").Box} Box */
/** @typedef {import("./geometry.js").Extent} Extent */
/** @typedef {import("./boxes.js").Side} Side */
/** @typedef {import("./boxes.js").Pair} Pair */
/** @typedef {import("./shapes.js").Shape} Shape */

/** @type {Side[]} */
const SIDES = ["draft", "reference"];
const SHARES = { draft: 1.4 / 2.4, reference: 1 / 2.4 }; // of the room, as in the style sheet
const CAPTION = 18; // CSS px
const [NARROW, CLEARLY] = [300, 1.15]; // CSS px; how much larger pictures have to become
/** A region that the model sees at a smaller scale comes back blurred, as `repair/marking.py` says. */
const BLURRED = 0.5;

export class Picker {
  /**
   * @param {any} node
   * @param {{draft: string[], reference: string[]}} inputs Names of the inputs with the pictures.
   * @param {() => void} changed Called when the user changed the boxes.
   */
  constructor(node, inputs, changed) {
    this.node = node;
    this.inputs = inputs;
    this.changed = changed;
    /** @type {Pair[]} */
    this.pairs = [];
    this.text = "";
    this.selected = -1;
    /** @type {Record<Side, any>} pictures of the last run */
    this.ran = { draft: null, reference: null };
    /** @type {Record<Side, string>} what each pane shows or is loading */
    this.shown = { draft: "", reference: "" };
    /** @type {Record<Side, boolean>} */
    this.gone = { draft: false, reference: false };
    /** What the last drawing depended on besides boxes and pictures. */
    this.drawn = "";
    /** A word on what the user just tried, until they do something else. */
    this.note = "";
    this.brush = new Brush(() => {
      this.note = "";
      this.redraw();
    });
    /** A box that is being drawn. @type {{side: Side, box: Box} | null} */
    this.sketched = null;
    /** Which picture was used last. @type {Side} */
    this.active = "draft";
    this.panes = { draft: this.makePane("draft"), reference: this.makePane("reference") };
    this.status = element("span", { class: "omnirefiner-status", role: "status" });
    this.both = element(
      "div",
      { class: "omnirefiner-panes" },
      ...SIDES.map((side) =>
        element("figure", {}, this.panes[side].canvas, element("figcaption", {}, say(side))),
      ),
    );
    this.root = element("div", { class: "omnirefiner-picker" }, this.both, this.makeBar());
  }

  makeBar() {
    return element(
      "div",
      { class: "omnirefiner-bar" },
      this.status,
      ...this.brush.controls,
      button(say("maskEditor"), say("maskEditorTip"), () => this.openMaskEditor()),
      button(say("corners"), say("cornersTip"), () => this.toggleCorners()),
      button(say("delete"), say("deleteTip"), () => this.removeSelected()),
      button(say("clear"), say("clearTip"), () => this.set([], -1)),
    );
  }

  /** @param {Side} side */
  makePane(side) {
    const model = {
      boxes: () => this.pairs.map((p) => p[side]),
      selected: () => this.selected,
      select: (/** @type {number} */ i) => this.select(i),
      draw: (/** @type {Box} */ box) => this.draw(side, box),
      change: (/** @type {number} */ i, /** @type {Shape} */ box, /** @type {boolean} */ done) =>
        this.set(withBox(this.pairs, i, side, box), i, done),
      remove: (/** @type {number} */ i) => this.set(without(this.pairs, i, side), -1),
      crops: () => this.crops(side),
      locked: () => this.locked,
      sketch: (/** @type {Box | null} */ box) => this.sketch(side, box),
      brush: () => this.brush.value,
      resizeBrush: (/** @type {number} */ by) => this.brush.step(by),
      startStroke: (/** @type {import("./shapes.js").Point} */ at) => this.startStroke(side, at),
    };
    const pane = new Pane(model, say(side));
    pane.canvas.addEventListener("focus", () => {
      this.active = side;
    });
    return pane;
  }

  /** Whether the boxes come from another node. */
  get locked() {
    return isConnected(this.node, "boxes");
  }

  get howTo() {
    return howToMark(this.node, this.brush.value, this.panes.reference.picture);
  }

  get value() {
    return this.text;
  }

  set value(text) {
    const next = typeof text === "string" ? text : "";
    if (next !== this.text) this.panes.draft.mask = null; // it was made of other boxes
    this.text = next;
    this.pairs = parsePairs(this.text) ?? [];
    this.selected = Math.min(this.selected, this.pairs.length - 1);
    this.redraw();
  }

  /**
   * @param {Pair[]} pairs
   * @param {number} selected
   * @param {boolean} [done] false in the middle of a drag
   */
  set(pairs, selected, done = true) {
    if (this.locked) return;
    this.pairs = pairs;
    const text = formatPairs(pairs);
    if (text !== this.text) this.panes.draft.mask = null; // it was made of other boxes
    this.select(selected);
    if (!done || text === this.text) return;
    this.text = text;
    this.changed();
    rememberChange();
  }

  /** @param {number} index */
  select(index) {
    this.selected = index;
    this.note = "";
    this.redraw();
  }

  removeSelected() {
    if (this.pairs[this.selected]) this.set(without(this.pairs, this.selected, "draft"), -1);
  }

  /** Makes outlines of four corners of the selected pair, or upright boxes again. */
  toggleCorners() {
    if (!this.pairs[this.selected]) return;
    const { draft, reference } = this.pairs[this.selected];
    const shapes = [draft, reference].filter((s) => s !== null && !isPainting(s));
    const quads = shapes.every((s) => s && isQuad(s));
    const change = (/** @type {Shape} */ shape) => {
      if (isPainting(shape)) return shape;
      return quads ? boundsOf(shape) : cornersOf(shape);
    };
    const next = { draft: change(draft), reference: reference && change(reference) };
    this.set(this.pairs.map((p, i) => (i === this.selected ? next : p)), this.selected);
  }

  /**
   * @param {Side} side
   * @param {Box} box
   */
  draw(side, box) {
    const next = withDrawn(this.pairs, side, box, this.selected);
    if (next) this.set(next.pairs, next.selected);
    else this.note = side === "draft" ? say("tooMany", { most: MOST_BOXES }) : say("draftFirst");
    this.redraw();
  }

  /**
   * What a stroke that begins at a point changes; null: nothing, and a note says why.
   * @param {Side} side
   * @param {import("./shapes.js").Point} at
   * @returns {import("./pane.js").Painter | null}
   */
  startStroke(side, at) {
    const erase = Boolean(this.brush.value?.erase);
    const { pairs, selected } = this;
    const target = strokeTarget(pairs, side, selected, { at, erase, size: this.panes[side].size });
    if (target.note) {
      this.note = say(target.note, { most: MOST_BOXES });
      this.redraw();
      return null;
    }
    return (stroke, done) => {
      if (stroke) this.set(target.with(stroke), target.index, done);
      else this.set(pairs, selected, done);
    };
  }

  /** Opens the picture that was used last in ComfyUI's mask editor. */
  openMaskEditor() {
    const name = this.inputs[this.active].find((n) => isConnected(this.node, n));
    const mask = this.active === "draft" ? "mask" : "reference_mask";
    this.note = say(openMaskEditor(this.node, name, mask));
    this.redraw();
  }

  /**
   * @param {Side} side
   * @param {Box | null} box
   */
  sketch(side, box) {
    this.sketched = box && { side, box };
    this.describeAll();
  }

  /**
   * The whole pixels of a shape on a picture, grown as the node grows it; null if nothing is left.
   * @param {Side} side
   * @param {Shape} shape
   * @param {import("./sources.js").Planning} planning
   */
  regionOf(side, shape, planning) {
    const { size } = this.panes[side];
    const upright = !isQuad(shape) && !isPainting(shape);
    const pixels = upright ? toPixels(shape, size) : touchedPixels(boundsOf(shape, size[0] / size[1]), size);
    return grown(pixels, side === "draft" ? planning.grow : 0, size);
  }

  /** What is to be said of the first box that is too large for the model; null: none is. */
  largeNote() {
    const planning = planningOf(this.node);
    const { picture, size } = this.panes.draft;
    if (!planning || !picture) return null;
    const shapes = this.pairs.map((p) => p.draft);
    if (this.sketched?.side === "draft") shapes.push(this.sketched.box);
    for (const [i, shape] of shapes.entries()) {
      const region = this.regionOf("draft", shape, planning);
      if (!region) continue;
      const { box, target } = planCrop(size, region, planning.recipe, 1, planning.megapixels);
      const scale = target[0] / (box[2] - box[0]);
      if (scale < BLURRED && (!planning.recipe.native_detail || isWhole(region, size)))
        return say("tooLarge", { number: i + 1, percent: Math.round(100 * scale) });
    }
    return null;
  }

  /**
   * The crops that the run will take, in fractions of the picture.
   * @param {Side} side
   */
  crops(side) {
    const planning = planningOf(this.node);
    const size = this.panes[side].size;
    if (!planning || !this.panes[side].picture) return [];
    return this.pairs.flatMap((pair, index) => {
      const box = pair[side];
      const region = box && this.regionOf(side, box, planning);
      if (!region) return [];
      const plan = planCrop(size, region, planning.recipe, planning.context, planning.megapixels);
      const [w, h] = size;
      const [x0, y0, x1, y1] = plan.box;
      /** @type {Box} */
      const crop = [x0 / w, y0 / h, x1 / w, y1 / h];
      return [{ crop, label: plan.target.join("×"), index }];
    });
  }

  /** Looks again what is connected and loads what changed. */
  refresh() {
    for (const side of SIDES) this.refreshSide(side);
    this.arrange();
    const hints = SIDES.map((side) => this.panes[side].hint);
    const key = JSON.stringify([planningOf(this.node), this.locked, hints, this.howTo]);
    if (key === this.drawn) return;
    this.drawn = key;
    this.redraw();
  }

  /** @param {Side} side */
  refreshSide(side) {
    const name = this.inputs[side].find((n) => isConnected(this.node, n));
    const known = name ? sourceOf(this.node, name) : null;
    const ran = name && this.ran[side];
    const source = known ?? (ran ? { ...ran, url: viewUrl(ran) } : null);
    const pane = this.panes[side];
    const key = source?.url ?? "";
    if (this.shown[side] !== key) this.gone[side] = false;
    pane.hint = say(this.gone[side] ? "pictureGone" : this.hintFor(side, name));
    if (this.shown[side] === key) return;
    this.shown[side] = key;
    if (source) this.load(side, source, key);
    else pane.show(null, [1, 1]);
  }

  /**
   * @param {Side} side
   * @param {string | undefined} name The connected input.
   */
  hintFor(side, name) {
    if (name) return "runOnce";
    return side === "draft" ? "connectDraft" : "connectReference";
  }

  /**
   * @param {Side} side
   * @param {import("./sources.js").Source} source
   * @param {string} key
   */
  async load(side, source, key) {
    const pane = this.panes[side];
    try {
      const { picture, size } = await loadPicture(source);
      if (this.shown[side] !== key) return;
      pane.show(picture, size);
      this.describeAll(); // what is said of boxes depends on the pictures
    } catch {
      if (this.shown[side] !== key) return;
      this.gone[side] = true;
      pane.hint = say("pictureGone");
      pane.show(null, [1, 1]);
    }
  }

  /**
   * @param {{draft?: any, reference?: any}} inputs What a run was given.
   * @param {any} [mask] The mask it made.
   */
  async showRun(inputs, mask) {
    this.ran = { draft: inputs.draft ?? null, reference: inputs.reference ?? null };
    this.refresh();
    this.panes.draft.mask = null;
    if (!mask) return;
    try {
      this.panes.draft.mask = maskVeil((await loadPicture({ url: viewUrl(mask) })).picture);
    } catch {
      this.panes.draft.mask = null; // the server forgot its temporary files; the boxes still tell
    }
    this.redraw();
  }

  /** Puts the panes above each other where that shows the pictures clearly larger. */
  arrange() {
    const { clientWidth: width, clientHeight: height } = this.both;
    if (!width || !height) return;
    const beside = this.shownSize((share) => [width * share, height - CAPTION]);
    const above = this.shownSize((share) => [width, (height - 2 * CAPTION) * share]);
    const stacked = width < NARROW || above > CLEARLY * beside;
    this.both.classList.toggle("omnirefiner-stacked", stacked);
  }

  /**
   * The diagonals of both pictures together, CSS px, in panes of a size that depends on their share.
   * @param {(share: number) => number[]} pane
   */
  shownSize(pane) {
    return SIDES.reduce((sum, side) => {
      const [w, h] = this.panes[side].size;
      const [width, height] = pane(SHARES[side]);
      return sum + Math.min(width / w, height / h) * Math.hypot(w, h);
    }, 0);
  }

  catchUp() {
    for (const side of SIDES) this.panes[side].drawn.catchUp();
  }

  redraw() {
    for (const side of SIDES) this.panes[side].redraw();
    this.describeAll();
  }

  describeAll() {
    const large = this.note ? null : this.largeNote();
    this.status.classList.toggle("omnirefiner-warning", Boolean(large));
    this.status.textContent = this.note || this.describe(large);
  }

  /** @param {string | null} large What is to be said of a large box. */
  describe(large) {
    if (parsePairs(this.text) === null) return say("unreadable");
    if (this.locked) return say("fromNode");
    if (this.pairs.length > MOST_BOXES) return say("tooMany", { most: MOST_BOXES });
    if (large) return large;
    if (!this.pairs.length) return say(this.howTo);
    const lone = this.panes.reference.picture ? this.pairs.findIndex((p) => !p.reference) : -1;
    return lone < 0 ? say("count", { count: this.pairs.length }) : say("partner", { number: lone + 1 });
  }

  dispose() {
    for (const side of SIDES) this.panes[side].observer.disconnect();
  }
}
