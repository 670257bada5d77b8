// @ts-check
/** Small helpers to build the pack's widgets out of plain DOM, in the colours of ComfyUI's theme. */

/** @typedef {Record<string, string | number | boolean | undefined | ((event: any) => void)>} Props */

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Props} [props] Attributes; a function under `onclick` and the like is a listener.
 * @param {(Node | string)[]} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function element(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (typeof value === "function") made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== undefined) made.setAttribute(key, String(value));
  }
  made.append(...children);
  return made;
}

/**
 * @param {string} label
 * @param {string} title
 * @param {() => void} action
 */
export function button(label, title, action) {
  return element("button", { type: "button", title, "aria-label": title, onclick: action }, label);
}

/** How much larger the graph's zoom shows an element than its layout says. */
export function shownScale(/** @type {HTMLElement} */ of) {
  return of.clientWidth ? of.getBoundingClientRect().width / of.clientWidth : 1;
}

/**
 * Gives a canvas as many pixels as it has on the screen and a context that draws in CSS pixels.
 * @param {HTMLCanvasElement} canvas
 * @returns {{context: CanvasRenderingContext2D, width: number, height: number, density: number}}
 */
export function prepareCanvas(canvas) {
  const density = Math.min(4, Math.max(1, window.devicePixelRatio * shownScale(canvas)));
  const { clientWidth: width, clientHeight: height } = canvas;
  const [w, h] = [Math.round(width * density), Math.round(height * density)];
  if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.setTransform(density, 0, 0, density, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height, density };
}

/**
 * Remembers the size at which a canvas was last drawn, and draws it again where that is outdated. A
 * ResizeObserver does not notice an element that is taken out and put back, or that has another size
 * for a moment, between two frames, as happens while a graph is loaded.
 */
export class DrawnSize {
  /** @param {HTMLCanvasElement} canvas @param {() => void} redraw */
  constructor(canvas, redraw) {
    this.canvas = canvas;
    this.redraw = redraw;
    this.width = this.height = 0;
  }

  /** To be called with each drawing; out of the page the size is 0. */
  note() {
    this.width = this.canvas.clientWidth;
    this.height = this.canvas.clientHeight;
  }

  /** Draws a canvas in the page again that was last drawn out of it or at another size. */
  catchUp() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (width > 0 && (this.width !== width || this.height !== height)) this.redraw();
  }
}

/**
 * Where a pointer is in an element, in its own CSS pixels whatever the graph's zoom.
 * @param {HTMLElement} inside
 * @param {{clientX: number, clientY: number}} event
 * @returns {[number, number]}
 */
export function pointerIn(inside, event) {
  const box = inside.getBoundingClientRect();
  const scale = shownScale(inside) || 1;
  return [(event.clientX - box.left) / scale, (event.clientY - box.top) / scale];
}

/**
 * Follows a drag to its end, wherever the pointer goes.
 * @param {HTMLElement} from
 * @param {PointerEvent} start
 * @param {(event: PointerEvent) => void} move
 * @param {(cancelled: boolean) => void} end
 */
export function followDrag(from, start, move, end) {
  const stop = new AbortController();
  const { signal } = stop;
  const finish = (/** @type {boolean} */ cancelled) => {
    stop.abort();
    end(cancelled);
  };
  from.setPointerCapture?.(start.pointerId);
  from.addEventListener("pointermove", move, { signal });
  from.addEventListener("pointerup", () => finish(false), { signal });
  from.addEventListener("pointercancel", () => finish(true), { signal });
  from.addEventListener(
    "keydown",
    (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      finish(true);
    },
    { signal },
  );
}

/** The pack's style sheet, once. */
export function addStyle() {
  if (document.getElementById("omnirefiner-style")) return;
  const href = new URL("./omnirefiner.css", import.meta.url).href;
  document.head.append(element("link", { id: "omnirefiner-style", rel: "stylesheet", href }));
}
