// @ts-check
/** The images of the run before, for a comparison that is given no second image. */

/** @typedef {import("./viewer.js").File} File */
/** @typedef {import("./viewer.js").Comparison} Comparison */
/** @typedef {Omit<Comparison, "after"> & {after?: File}} Shown What a run sent. */

export class PreviousRun {
  constructor() {
    /** @type {File[]} */
    this.latest = [];
    /** @type {File[]} */
    this.earlier = [];
  }

  /**
   * @param {Shown[]} pairs
   * @returns {Comparison[]} with the run before as second image; the first run is its own
   */
  complete(pairs) {
    const files = pairs.map((p) => p.before);
    // A run that ComfyUI answers from its cache is shown again and is no new one.
    if (files[0]?.filename !== this.latest[0]?.filename) {
      this.earlier = this.latest;
      this.latest = files;
    }
    return pairs.map((p, i) => ({ ...p, after: p.after ?? this.earlier[i] ?? p.before }));
  }
}
