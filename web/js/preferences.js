// @ts-check
/** Keep or reject: verdicts on results, written to a local folder that `omnirefiner train dpo` reads. */

import { api } from "/scripts/api.js";
import { button, element } from "./dom.js";
import { say } from "./messages.js";

let on = false;
/** Where verdicts are written; "" while the setting is off. */
let folder = "";
/** @type {Set<VerdictBar>} */
const bars = new Set();

/**
 * ComfyUI's setting; off by default.
 * @returns {any}
 */
export function preferenceSetting() {
  return {
    id: "OmniRefiner.Preferences",
    category: ["OmniRefiner", "Reference Refine", "Keep or reject"],
    name: say("verdictSetting"),
    tooltip: say("verdictSettingTip"),
    type: "boolean",
    defaultValue: false,
    onChange: (/** @type {boolean} */ value) => void collect(Boolean(value)),
  };
}

/** @param {boolean} wanted */
async function collect(wanted) {
  if (wanted === on) return;
  const answer = await post("/omnirefiner/preferences", { on: wanted });
  on = Boolean(answer.on);
  folder = answer.folder ?? "";
  for (const bar of bars) bar.arrange();
}

/**
 * @param {string} route
 * @param {any} body
 * @returns {Promise<any>}
 */
async function post(route, body) {
  try {
    const answer = await api.fetchApi(route, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    return await answer.json();
  } catch (error) {
    return { error: String(error) };
  }
}

/** Two buttons and the file that was written. */
export class VerdictBar {
  /** @param {() => {node: string, picture: number}} shown What the buttons judge. */
  constructor(shown) {
    this.shown = shown;
    this.status = element("span", { class: "omnirefiner-status", role: "status" }, folder);
    this.root = element(
      "div",
      { class: "omnirefiner-bar", hidden: !on },
      button(say("keep"), say("keepTip"), () => void this.send(true)),
      button(say("reject"), say("rejectTip"), () => void this.send(false)),
      this.status,
    );
    bars.add(this);
  }

  /** Ready for a verdict on another picture: what was said of the last one is gone. */
  arrange() {
    this.root.hidden = !on;
    this.status.textContent = folder;
  }

  /** @param {boolean} kept */
  async send(kept) {
    const answer = await post("/omnirefiner/verdict", { ...this.shown(), kept });
    this.status.textContent = answer.file ?? answer.error ?? "";
  }
}
