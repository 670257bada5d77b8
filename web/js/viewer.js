// @ts-check
/** Before and after in one view: slider, zoom, pan, hold to flip, batches, outlines and overlay. */

import { DrawnSize, button, element, followDrag, pointerIn, prepareCanvas, shownScale } from "./dom.js";
import { showImageMenu } from "./menu.js";
import { say } from "./messages.js";
import { colourOf, drawSlider } from "./paint.js";
import { PreviousRun } from "./previous.js";
import { loadPicture, viewUrl } from "./sources.js";
import { sharedFrame, Viewport } from "./viewport.js";

/** @typedef {{filename: string, subfolder: string, type: string, width: number, height: number}} File */
/**
 * @typedef {object} Comparison
 * @property {File} before
 * @property {File} after
 * @property {{crop: number[], region: number[]}[]} [regions] In pixels of `before`.
 * @property {File} [overlay]
 */

const NEAR_SLIDER = 12; // CSS px

export class Viewer {
  /** @param {[string, string]} labels Names of the two pictures. */
  constructor(labels) {
    this.labels = labels;
    /** What the second image is called now. */
    this.second = labels[1];
    this.note = "";
    /** Whether the run sent no second image, so that the run before stands in for it. */
    this.alone = false;
    this.previous = new PreviousRun();
    /** @type {Comparison[]} */
    this.pairs = [];
    this.index = 0;
    /** @type {{before: HTMLImageElement, after: HTMLImageElement, overlay: HTMLImageElement | null} | null} */
    this.pictures = null;
    /** Which region was zoomed to last; -1: none. */
    this.region = -1;
    this.frame = sharedFrame([1, 1], [1, 1]);
    this.viewport = new Viewport();
    this.split = 0.5;
    this.flipped = false;
    this.outlined = true;
    this.opacity = 0.5;
    this.message = "";
    /** Called when another result or another image of the batch is shown. @type {() => void} */
    this.changed = () => {};
    this.canvas = element("canvas", { class: "omnirefiner-view", tabindex: 0 });
    this.canvas.setAttribute("aria-label", say("compare"));
    this.canvas.dataset.captureWheel = "true"; // Vue nodes leave the wheel to what has the focus
    this.drawn = new DrawnSize(this.canvas, () => this.redraw());
    this.status = element("span", { class: "omnirefiner-status", role: "status" });
    this.count = element("span", { class: "omnirefiner-count" });
    this.batch = this.makeBatch();
    this.strength = element("input", {
      ...{ type: "range", min: 0, max: 1, step: 0.05, value: this.opacity },
      ...{ title: say("overlayTip"), "aria-label": say("overlayTip") },
      oninput: () => this.setOpacity(),
    });
    this.overlayLabel = element("label", { hidden: true }, say("overlay"), this.strength);
    this.toRegion = button(say("zoomRegion"), say("zoomRegionTip"), () => this.act("r", true));
    this.root = element("div", { class: "omnirefiner-viewer" }, this.canvas, this.makeBar());
    this.canvas.addEventListener("pointerdown", (e) => this.onPointerDown(e));
    this.canvas.addEventListener("wheel", (e) => this.onWheel(e), { passive: false });
    this.canvas.addEventListener("keydown", (e) => this.onKey(e, true));
    this.canvas.addEventListener("keyup", (e) => this.onKey(e, false));
    this.canvas.addEventListener("contextmenu", (e) => this.onMenu(e));
    this.canvas.addEventListener("dblclick", () => this.act("0", true));
    this.observer = new ResizeObserver(() => this.redraw());
    this.observer.observe(this.canvas);
  }

  makeBar() {
    const flip = button(say("hold", { name: this.labels[0] }), say("holdTip"), () => {});
    flip.classList.add("omnirefiner-hold");
    flip.addEventListener("pointerdown", () => this.flip(true));
    for (const event of ["pointerup", "pointerleave", "pointercancel"]) {
      flip.addEventListener(event, () => this.flip(false));
    }
    return element(
      "div",
      { class: "omnirefiner-bar" },
      this.status,
      this.overlayLabel,
      this.batch,
      flip,
      button(say("outline"), say("outlineTip"), () => this.act("o", true)),
      this.toRegion,
      button(say("fit"), say("fitTip"), () => this.act("0", true)),
      button("1:1", say("oneTip"), () => this.act("1", true)),
    );
  }

  makeBatch() {
    return element(
      "span",
      { hidden: true },
      button("‹", say("previous"), () => void this.go(-1)),
      this.count,
      button("›", say("next"), () => void this.go(1)),
    );
  }

  setOpacity() {
    this.opacity = Number(this.strength.value);
    this.redraw();
  }

  /** @param {boolean} on */
  flip(on) {
    if (this.flipped === on) return;
    this.flipped = on;
    this.redraw();
  }

  /**
   * @param {import("./previous.js").Shown[]} pairs
   */
  async show(pairs) {
    this.pairs = this.previous.complete(pairs);
    this.alone = pairs.some((p) => !p.after);
    this.index = Math.min(this.index, Math.max(0, pairs.length - 1));
    await this.load();
  }

  /** @param {number} step */
  async go(step) {
    if (!this.pairs.length) return;
    this.index = (this.index + step + this.pairs.length) % this.pairs.length;
    await this.load();
  }

  async load() {
    const pair = this.pairs[this.index];
    if (!pair) return;
    this.changed();
    this.nameSecond(pair);
    const before = this.viewport.size;
    try {
      const [a, b, o] = await Promise.all(
        [pair.before, pair.after, pair.overlay].map((file) =>
          file ? loadPicture({ url: viewUrl(file) }) : null,
        ),
      );
      if (this.pairs[this.index] !== pair || !a || !b) return;
      this.pictures = { before: a.picture, after: b.picture, overlay: o?.picture ?? null };
      this.message = "";
    } catch {
      this.pictures = null;
      this.message = say("pictureGone");
    }
    this.frame = sharedFrame(
      [pair.before.width, pair.before.height],
      [pair.after.width, pair.after.height],
    );
    this.viewport.size = this.frame.size;
    if (before[0] !== this.frame.size[0] || before[1] !== this.frame.size[1]) this.start();
    this.overlayLabel.hidden = !pair.overlay;
    this.toRegion.hidden = !pair.regions?.length;
    this.region = -1;
    this.batch.hidden = this.pairs.length < 2;
    this.count.textContent = `${this.index + 1} / ${this.pairs.length}`;
    this.redraw();
  }

  /** @param {Comparison} pair */
  nameSecond(pair) {
    const itself = pair.after === pair.before;
    const other = this.alone ? say("previousRun") : this.labels[1];
    this.second = itself ? this.labels[0] : other;
    this.note = itself ? say("firstRun") : "";
  }

  /** Shows the whole picture, with the line through the first region. */
  start() {
    this.viewport.fit();
    this.viewport.view = [this.canvas.clientWidth, this.canvas.clientHeight];
    const region = this.pairs[this.index].regions?.[0]?.region;
    if (!region || !this.canvas.clientWidth) return;
    const x = this.viewport.origin[0] + ((region[0] + region[2]) / 2) * this.viewport.scale;
    this.slideTo(x / this.canvas.clientWidth);
  }

  /** Zooms to the crop of the first region, of the next when asked again; the line through it. */
  showNextRegion() {
    const regions = this.pairs[this.index]?.regions ?? [];
    if (!regions.length) return;
    this.region = (this.region + 1) % regions.length;
    const unit = this.unit;
    this.viewport.showPart(regions[this.region].crop.map((v) => v * unit));
    this.slideTo(0.5);
  }

  /** Frame px per px of the first picture. */
  get unit() {
    return this.frame.a[0] / (this.pairs[this.index].before.width || 1);
  }

  /** @param {PointerEvent} event */
  onPointerDown(event) {
    if (event.button !== 0) return;
    event.stopPropagation();
    this.canvas.focus({ preventScroll: true });
    const [x, y] = pointerIn(this.canvas, event);
    const sliding = Math.abs(x - this.split * this.canvas.clientWidth) < NEAR_SLIDER;
    let last = [x, y];
    followDrag(
      this.canvas,
      event,
      (move) => {
        const [mx, my] = pointerIn(this.canvas, move);
        if (sliding || !this.viewport.zoom) this.slideTo(mx / this.canvas.clientWidth);
        else this.viewport.pan(mx - last[0], my - last[1]);
        last = [mx, my];
        this.redraw();
      },
      () => {},
    );
    if (!this.viewport.zoom) this.slideTo(x / this.canvas.clientWidth);
    this.redraw();
  }

  /** @param {MouseEvent} event */
  onMenu(event) {
    const { pictures } = this;
    if (!pictures) return;
    const { before, after } = this.pairs[this.index];
    const entry = (/** @type {string} */ name, /** @type {File} */ file, /** @type {HTMLImageElement} */ shown) =>
      ({ name, file, width: shown.naturalWidth, height: shown.naturalHeight });
    const first = entry(this.labels[0], before, pictures.before);
    const rest = after === before ? [] : [entry(this.second, after, pictures.after)];
    showImageMenu(event, [first, ...rest]);
  }

  /** @param {number} split */
  slideTo(split) {
    this.split = Math.min(1, Math.max(0, split));
  }

  /** The wheel zooms the picture once the view was clicked; before, it zooms the graph as always. */
  onWheel(/** @type {WheelEvent} */ event) {
    if (document.activeElement !== this.canvas) return;
    event.preventDefault();
    event.stopPropagation();
    const [x, y] = pointerIn(this.canvas, event);
    this.viewport.zoomAt(this.viewport.scale * 1.2 ** -Math.sign(event.deltaY), x, y);
    this.redraw();
  }

  /**
   * @param {KeyboardEvent} event
   * @param {boolean} down
   */
  onKey(event, down) {
    if (event.ctrlKey || event.metaKey || !this.act(event.key, down)) return;
    event.preventDefault();
    event.stopPropagation();
  }

  /**
   * @param {string} key
   * @param {boolean} down
   * @returns {boolean} whether the key means something here
   */
  act(key, down) {
    const middle = /** @type {[number, number]} */ (this.viewport.view.map((v) => v / 2));
    const { viewport } = this;
    const pixel = 1 / (window.devicePixelRatio * shownScale(this.canvas)); // of the screen, in CSS px
    /** @type {Record<string, () => void>} */
    const actions = {
      ArrowLeft: () => this.slideTo(this.split - 0.01),
      ArrowRight: () => this.slideTo(this.split + 0.01),
      "+": () => viewport.zoomAt(viewport.scale * 1.25, ...middle),
      "-": () => viewport.zoomAt(viewport.scale / 1.25, ...middle),
      0: () => viewport.fit(),
      1: () => viewport.zoomAt(pixel, ...middle, pixel),
      o: () => (this.outlined = !this.outlined),
      r: () => this.showNextRegion(),
      PageUp: () => void this.go(-1),
      PageDown: () => void this.go(1),
    };
    if (key === " ") this.flip(down);
    else if (!actions[key]) return false;
    else if (down) actions[key]();
    this.redraw();
    return true;
  }

  redraw() {
    this.drawn.note();
    if (!this.canvas.clientWidth) return;
    const { context, width, height } = prepareCanvas(this.canvas);
    this.viewport.view = [width, height];
    if (!this.pictures) {
      context.fillStyle = getComputedStyle(this.canvas).color;
      context.font = "12px sans-serif";
      context.textAlign = "center";
      context.fillText(this.message || say("noResult"), width / 2, height / 2);
      this.status.textContent = this.message;
      return;
    }
    const line = this.split * width;
    context.imageSmoothingEnabled = this.viewport.scale < 2;
    const [left, right] = this.flipped ? [width, width] : [line, line];
    this.drawSide(context, this.pictures.before, this.frame.a, 0, left);
    this.drawSide(context, this.pictures.after, this.frame.b, right, width);
    this.drawOverlay(context);
    if (this.outlined) this.drawRegions(context);
    if (!this.flipped) drawSlider(context, line, height);
    this.drawLabels(context, line, width);
    this.status.textContent = this.describe();
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {HTMLImageElement} picture
   * @param {[number, number]} size
   * @param {number} from
   * @param {number} to
   */
  drawSide(context, picture, size, from, to) {
    const { origin, scale } = this.viewport;
    context.save();
    context.beginPath();
    context.rect(from, 0, to - from, this.viewport.view[1]);
    context.clip();
    context.drawImage(picture, origin[0], origin[1], size[0] * scale, size[1] * scale);
    context.restore();
  }

  /** @param {CanvasRenderingContext2D} context */
  drawOverlay(context) {
    if (!this.pictures?.overlay) return;
    const { origin, scale } = this.viewport;
    context.globalAlpha = this.opacity;
    const [w, h] = this.frame.a;
    context.drawImage(this.pictures.overlay, origin[0], origin[1], w * scale, h * scale);
    context.globalAlpha = 1;
  }

  /** @param {CanvasRenderingContext2D} context */
  drawRegions(context) {
    const { origin, scale } = this.viewport;
    const at = (/** @type {number[]} */ b) => {
      const s = scale * this.unit;
      return [origin[0] + b[0] * s, origin[1] + b[1] * s, (b[2] - b[0]) * s, (b[3] - b[1]) * s];
    };
    (this.pairs[this.index].regions ?? []).forEach((region, i) => {
      const [x, y, w, h] = at(region.region);
      context.lineWidth = 1;
      context.strokeStyle = "rgba(0, 0, 0, 0.6)";
      context.strokeRect(x - 1, y - 1, w + 2, h + 2);
      context.strokeStyle = colourOf(i);
      context.strokeRect(x, y, w, h);
      const [cx, cy, cw, ch] = at(region.crop);
      context.setLineDash([4, 4]);
      context.globalAlpha = 0.6;
      context.strokeRect(cx, cy, cw, ch);
      context.setLineDash([]);
      context.globalAlpha = 1;
    });
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {number} line
   * @param {number} width
   */
  drawLabels(context, line, width) {
    context.font = "11px sans-serif";
    const label = (/** @type {string} */ text, /** @type {number} */ x) => {
      context.fillStyle = "rgba(0, 0, 0, 0.6)";
      const w = context.measureText(text).width + 10;
      context.fillRect(x, 5, w, 17);
      context.fillStyle = "#fff";
      context.textAlign = "left";
      context.fillText(text, x + 5, 17);
      return w;
    };
    const last = context.measureText(this.second).width + 10;
    if (this.flipped || line > 40) label(this.labels[0], 5);
    if (!this.flipped && width - line > 40) label(this.second, width - last - 5);
  }

  describe() {
    const { before, after } = this.pairs[this.index];
    const zoom = `${Math.round(this.viewport.scale * 100)} %`;
    const size = `${before.width}×${before.height}`;
    if (this.note) return `${size} · ${zoom} · ${this.note}`;
    if (this.frame.same) return `${size} · ${zoom}`;
    const note = say(this.frame.exact ? "scaledAlike" : "cornerToCorner");
    return `${size} | ${after.width}×${after.height} · ${zoom} · ${note}`;
  }

  dispose() {
    this.observer.disconnect();
  }
}
