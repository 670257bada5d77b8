// @ts-check
/** The brush and the eraser: their buttons and their size. */

import { button, element } from "./dom.js";
import { say } from "./messages.js";

/** Diameters, as fractions of the picture's width. */
const [LEAST, FIRST, MOST] = [0.005, 0.04, 0.25];
const STEP = 1.2;

export class Brush {
  /** @param {() => void} changed */
  constructor(changed) {
    this.changed = changed;
    this.size = FIRST;
    /** What is in use; null: neither brush nor eraser. @type {boolean | null} */
    this.erase = null;
    this.paintButton = button(say("brush"), say("brushTip"), () => this.take(false));
    this.eraseButton = button(say("eraser"), say("eraserTip"), () => this.take(true));
    this.slider = element("input", {
      ...{ type: "range", min: 0, max: 1, step: 0.01, hidden: true },
      ...{ title: say("brushSizeTip"), "aria-label": say("brushSizeTip") },
      oninput: () => this.resize(LEAST * (MOST / LEAST) ** Number(this.slider.value)),
    });
    this.controls = [this.slider, this.paintButton, this.eraseButton];
    this.resize(FIRST);
  }

  /** What a drag paints with; null: it draws boxes. */
  get value() {
    return this.erase === null ? null : { size: this.size, erase: this.erase };
  }

  /**
   * Takes the brush or the eraser, or puts it away if it is in use.
   * @param {boolean} erase
   */
  take(erase) {
    this.erase = this.erase === erase ? null : erase;
    this.paintButton.setAttribute("aria-pressed", String(this.erase === false));
    this.eraseButton.setAttribute("aria-pressed", String(this.erase === true));
    this.slider.hidden = this.erase === null;
    this.changed();
  }

  /** @param {number} size */
  resize(size) {
    this.size = Math.min(MOST, Math.max(LEAST, size));
    this.slider.value = String(Math.log(this.size / LEAST) / Math.log(MOST / LEAST));
    if (this.erase !== null) this.changed();
  }

  /** @param {number} by */
  step(by) {
    this.resize(this.size * STEP ** by);
  }
}
