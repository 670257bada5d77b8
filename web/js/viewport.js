// @ts-check
/** Which part of a picture a view shows: zoom and offset, in plain numbers. */

export class Viewport {
  constructor() {
    /** CSS px per picture px; 0 = fit the view. */
    this.zoom = 0;
    this.x = 0;
    this.y = 0;
    /** @type {[number, number]} */
    this.size = [1, 1];
    /** @type {[number, number]} */
    this.view = [1, 1];
  }

  get fitting() {
    return Math.min(this.view[0] / this.size[0], this.view[1] / this.size[1]);
  }

  /** CSS px per picture px as drawn. */
  get scale() {
    return this.zoom || this.fitting;
  }

  /** Where the picture's corner is drawn. @returns {[number, number]} */
  get origin() {
    const at = (/** @type {number} */ i, /** @type {number} */ offset) => {
      const length = this.size[i] * this.scale;
      const room = this.view[i] - length;
      return room >= 0 ? room / 2 : Math.min(0, Math.max(room, offset));
    };
    return [at(0, this.x), at(1, this.y)];
  }

  fit() {
    this.zoom = 0;
  }

  /**
   * Zoom so that the picture's point under (x, y) stays there.
   * @param {number} zoom
   * @param {number} x
   * @param {number} y
   * @param {number} [least] Smallest zoom; by default the whole picture, or its own pixels.
   */
  zoomAt(zoom, x, y, least = Math.min(this.fitting, 1)) {
    const [ox, oy] = this.origin;
    const before = this.scale;
    this.zoom = Math.min(32, Math.max(least, zoom));
    this.x = x - ((x - ox) / before) * this.zoom;
    this.y = y - ((y - oy) / before) * this.zoom;
    if (this.zoom === this.fitting) this.fit();
  }

  /**
   * Show a part of the picture as large as the view allows, in its middle.
   * @param {number[]} box x0, y0, x1, y1 in picture px
   */
  showPart([x0, y0, x1, y1]) {
    const zoom = Math.min(this.view[0] / (x1 - x0), this.view[1] / (y1 - y0));
    this.zoom = Math.min(32, Math.max(this.fitting, zoom));
    this.x = this.view[0] / 2 - ((x0 + x1) / 2) * this.zoom;
    this.y = this.view[1] / 2 - ((y0 + y1) / 2) * this.zoom;
  }

  /**
   * @param {number} dx
   * @param {number} dy
   */
  pan(dx, dy) {
    const [ox, oy] = this.origin;
    this.x = ox + dx;
    this.y = oy + dy;
  }
}

/**
 * The frame two pictures share so that no offset appears that is not in their pixels: one picture
 * that is an exact multiple of the other is scaled to it; else both keep one scale and their top
 * left corners meet.
 * @param {[number, number]} a
 * @param {[number, number]} b
 * @returns {{size: [number, number], a: [number, number], b: [number, number], same: boolean, exact: boolean}}
 */
export function sharedFrame(a, b) {
  const same = a[0] === b[0] && a[1] === b[1];
  const exact = a[0] * b[1] === b[0] * a[1];
  /** @type {[number, number]} */
  const size = [Math.max(a[0], b[0]), Math.max(a[1], b[1])];
  return exact ? { size, a: size, b: size, same, exact } : { size, a, b, same, exact };
}
