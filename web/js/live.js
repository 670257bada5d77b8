// @ts-check
/** What a running node tells: its stage in words, how far it is, and its latest preview. */

import { api } from "/scripts/api.js";
import { element, button } from "./dom.js";
import { say } from "./messages.js";

const STAGES = ["plan", "encode", "sample", "decode", "register", "stitch"];

/**
 * @param {any} event An `omnirefiner.stage` event's detail.
 * @returns {{text: string, share: number}} in words, and how much of the run is done, 0..1
 */
function progressOf(event) {
  const steps = event.stage === "sample" ? ` ${event.step}/${event.steps}` : "";
  const parts = [say(event.stage) + steps];
  if (event.regions > 1) parts.push(say("regionOf", { i: event.region + 1, n: event.regions }));
  if (event.pictures > 1) parts.push(say("pictureOf", { i: event.picture + 1, n: event.pictures }));
  const done = event.picture * event.regions + event.region;
  // Sampling is nearly all of the time of a region.
  const early = ["plan", "encode"].includes(event.stage) ? 0.02 : 0.95;
  const within = event.stage === "sample" ? 0.05 + 0.9 * (event.step / event.steps) : early;
  return { text: parts.join(" · "), share: (done + within) / (event.regions * event.pictures) };
}

export class LiveLine {
  constructor() {
    this.text = element("span", { class: "omnirefiner-status", role: "status" });
    this.bar = element("progress", { max: 1, value: 0 });
    this.stop = button(say("stop"), say("stopTip"), () => void api.interrupt(null));
    this.root = element(
      "div",
      { class: "omnirefiner-bar omnirefiner-live", hidden: true },
      this.bar,
      this.text,
      this.stop,
    );
    this.setRunning(false);
  }

  /** @param {any} event */
  show(event) {
    if (!STAGES.includes(event.stage)) return;
    const { text, share } = progressOf(event);
    this.text.textContent = text;
    this.bar.value = share;
    this.root.hidden = false;
    this.setRunning(true);
  }

  /**
   * @param {string} text A last word, or "" for none.
   * @param {boolean} [failed]
   */
  end(text, failed = false) {
    this.text.textContent = text;
    this.text.classList.toggle("omnirefiner-failed", failed);
    this.root.hidden = !text;
    this.setRunning(false);
  }

  get running() {
    return !this.stop.hidden;
  }

  get failed() {
    return this.text.classList.contains("omnirefiner-failed");
  }

  /** @param {boolean} running */
  setRunning(running) {
    if (running) this.text.classList.remove("omnirefiner-failed");
    else this.bar.value = 0;
    this.bar.hidden = this.stop.hidden = !running;
  }
}
