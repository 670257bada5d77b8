// @ts-check
/** The region picker: draft and reference side by side, with boxes that belong together. */

import { formatPairs, parsePairs, withBox, withDrawn, without, MOST_BOXES } from "./boxes.js";
import { button, element } from "./dom.js";
import { grown, planCrop, toPixels, touchedPixels } from "./geometry.js";
import { say } from "./messages.js";
import { maskVeil } from "./paint.js";
import { Pane } from "./pane.js";
import { boundsOf, cornersOf, isQuad } from "./shapes.js";
import { isConnected, loadPicture, planningOf, rememberChange, sourceOf, viewUrl } from "./sources.js";

/** @typedef {import("./geometry.js").Box} Box */
/** @typedef {import("./geometry.js").Extent} Extent */
/** @typedef {import("./boxes.js").Side} Side */
/** @typedef {import("./boxes.js").Pair} Pair */
/** @typedef {import("./shapes.js").Shape} Shape */

/** @type {Side[]} */
const SIDES = ["draft", "reference"];
/** How much of the room each pane has, as in the style sheet. */
const SHARES = { draft: 1.4 / 2.4, reference: 1 / 2.4 };
const CAPTION = 18; // CSS px
const NARROW = 300; // CSS px
const CLEARLY = 1.15;

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
    this.panes = { draft: this.makePane("draft"), reference: this.makePane("reference") };
    this.status = element("span", { class: "omnirefiner-status", role: "status" });
    this.both = element(
      "div",
      { class: "omnirefiner-panes" },
      ...SIDES.map((side) =>
        element("figure", {}, this.panes[side].canvas, element("figcaption", {}, say(side))),
      ),
    );
    this.root = element(
      "div",
      { class: "omnirefiner-picker" },
      this.both,
      element(
        "div",
        { class: "omnirefiner-bar" },
        this.status,
        button(say("corners"), say("cornersTip"), () => this.toggleCorners()),
        button(say("delete"), say("deleteTip"), () => this.removeSelected()),
        button(say("clear"), say("clearTip"), () => this.set([], -1)),
      ),
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
    };
    return new Pane(model, say(side));
  }

  /** Whether the boxes come from another node. */
  get locked() {
    return isConnected(this.node, "boxes");
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
    const pair = this.pairs[this.selected];
    if (!pair) return;
    const shapes = [pair.draft, pair.reference].filter((s) => s !== null);
    const change = shapes.every(isQuad) ? boundsOf : cornersOf;
    const { draft, reference } = pair;
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
   * The crops that the run will take, in fractions of the picture.
   * @param {Side} side
   */
  crops(side) {
    const planning = planningOf(this.node);
    const size = this.panes[side].size;
    if (!planning || !this.panes[side].picture) return [];
    const grow = side === "draft" ? planning.grow : 0;
    return this.pairs.flatMap((pair, index) => {
      const box = pair[side];
      const pixels = box && (isQuad(box) ? touchedPixels(boundsOf(box), size) : toPixels(box, size));
      const region = pixels && grown(pixels, grow, size);
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
    const key = JSON.stringify([planningOf(this.node), this.locked, hints]);
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
      if (this.shown[side] === key) pane.show(picture, size);
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
      const { picture } = await loadPicture({ url: viewUrl(mask) });
      this.panes.draft.mask = maskVeil(picture);
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

  redraw() {
    for (const side of SIDES) this.panes[side].redraw();
    this.status.textContent = this.note || this.describe();
  }

  describe() {
    if (parsePairs(this.text) === null) return say("unreadable");
    if (this.locked) return say("fromNode");
    if (this.pairs.length > MOST_BOXES) return say("tooMany", { most: MOST_BOXES });
    if (!this.pairs.length) return say("howTo");
    const lone = this.panes.reference.picture ? this.pairs.findIndex((p) => !p.reference) : -1;
    return lone < 0 ? say("count", { count: this.pairs.length }) : say("partner", { number: lone + 1 });
  }

  dispose() {
    for (const side of SIDES) this.panes[side].observer.disconnect();
  }
}
