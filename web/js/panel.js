// @ts-check
/** The widget inside a node: tabs for regions, result and report, and the line of a running node. */

import { isVue } from "./canvas.js";
import { button, element } from "./dom.js";
import { LiveLine } from "./live.js";
import { say } from "./messages.js";
import { Picker } from "./picker.js";
import { VerdictBar } from "./preferences.js";
import { ReportView } from "./report.js";
import { arrangeSettings, hasAdvanced, toggleAdvanced } from "./settings.js";
import { Viewer } from "./viewer.js";

/**
 * @typedef {object} PanelKind
 * @property {{draft: string[], reference: string[]} | null} inputs With a picker: its pictures.
 * @property {boolean} result With a comparison and, if the run sends one, a report.
 * @property {[string, string]} labels Names of the two pictures compared.
 */

/** @type {Record<string, PanelKind>} */
export const PANELS = {
  OmniRefiner_ReferenceRefine: {
    inputs: { draft: ["draft"], reference: ["reference"] },
    result: true,
    labels: ["before", "after"],
  },
  OmniRefiner_MaskBuilder: {
    inputs: { draft: ["image"], reference: ["reference", "compare_with"] },
    result: false,
    labels: ["before", "after"],
  },
  OmniRefiner_Compare: { inputs: null, result: true, labels: ["A", "B"] },
};

export class Panel {
  /**
   * @param {any} node
   * @param {PanelKind} kind
   * @param {() => void} changed Called when the user changed the boxes.
   */
  constructor(node, kind, changed) {
    this.node = node;
    this.changed = changed;
    this.picker =
      kind.inputs &&
      new Picker(node, kind.inputs, () => {
        if (!this.live.running) this.live.end(""); // what was said of the last run is dealt with
        this.changed();
      });
    const labels = /** @type {[string, string]} */ (kind.labels.map((l) => say(l)));
    this.viewer = kind.result ? new Viewer(labels) : null;
    this.report = kind.result && this.picker ? new ReportView() : null;
    this.verdict =
      this.report &&
      new VerdictBar(() => ({ node: String(this.node.id), picture: this.viewer?.index ?? 0 }));
    if (this.verdict && this.viewer) {
      this.viewer.root.append(this.verdict.root);
      this.viewer.changed = () => this.verdict?.arrange();
    }
    this.live = new LiveLine();
    /** @type {[string, {root: HTMLElement}][]} */
    this.pages = [];
    if (this.picker) this.pages.push(["regions", this.picker]);
    if (this.viewer) this.pages.push(["result", this.viewer]);
    if (this.report) this.pages.push(["report", this.report]);
    /** @type {string} */
    this.page = "";
    this.livePicture = element("img", { class: "omnirefiner-livepicture", hidden: true, alt: "" });
    this.tabs = element("div", { class: "omnirefiner-tabs", role: "tablist" }, ...this.makeTabs());
    this.more = button("⚙", say("advancedTip"), () => toggleAdvanced(this.node));
    this.more.hidden = true;
    this.head = element("div", { class: "omnirefiner-head" }, this.tabs, this.more);
    /** @type {boolean | undefined} which renderer the node was last seen in */
    this.vue = undefined;
    this.root = element(
      "div",
      { class: "omnirefiner-panel" },
      ...(this.pages.length > 1 ? [this.head] : []),
      ...this.pages.map(([, page]) => page.root),
      this.livePicture,
      this.live.root,
    );
    /** @type {HTMLElement | null} what had the focus when the node went */
    this.focused = null;
    this.open(this.pages[0][0]);
  }

  /**
   * @param {any} node The node whose panel this is from now on.
   * @param {() => void} changed
   */
  bind(node, changed) {
    this.node = node;
    this.changed = changed;
    if (this.picker) this.picker.node = node;
  }

  /** The node is gone: nothing is taken from the user until `resume`. */
  rest() {
    const active = document.activeElement;
    this.focused = active instanceof HTMLElement && this.root.contains(active) ? active : null;
    this.root.inert = true;
  }

  resume() {
    this.root.inert = false;
    this.focused?.focus({ preventScroll: true });
    this.look();
  }

  makeTabs() {
    return this.pages.map(([name]) =>
      element(
        "button",
        { type: "button", role: "tab", title: say(`${name}Tip`), onclick: () => this.open(name) },
        say(name),
      ),
    );
  }

  /** @param {string} name */
  open(name) {
    this.page = name;
    this.livePicture.hidden = true;
    this.pages.forEach(([page, { root }], i) => {
      root.hidden = page !== name;
      this.tabs.children[i].setAttribute("aria-selected", String(page === name));
    });
    if (name === "regions") {
      this.picker?.refresh();
      this.picker?.redraw();
    }
    if (name === "result") this.viewer?.redraw();
  }

  /** Notices connections and settings of other nodes, for which ComfyUI has no event. */
  look() {
    this.followRenderer();
    if (!this.root.isConnected || document.hidden) return;
    if (this.page === "regions") this.picker?.refresh();
    this.picker?.catchUp();
    this.viewer?.drawn.catchUp();
  }

  /** Vue nodes have a button of their own for the advanced inputs. */
  followRenderer() {
    const vue = isVue();
    if (vue === this.vue) return;
    this.vue = vue;
    this.more.hidden = vue || !hasAdvanced(this.node);
    arrangeSettings(this.node);
  }

  /** @param {any} inputs Pictures that a run was given. */
  showInputs(inputs) {
    void this.picker?.showRun(inputs);
  }

  /**
   * @param {any} shown What the node's run sent for the page.
   * @param {boolean} [news] false for a run of before, whose result need not come to the front.
   */
  showRun(shown, news = true) {
    this.live.end("");
    this.showLive(null);
    if (shown.inputs) void this.picker?.showRun(shown.inputs, shown.mask);
    if (shown.reports.length) this.report?.show(shown.reports);
    if (shown.unmarked) {
      this.open("regions");
      this.live.end(say("unmarked"));
    }
    if (shown.reports.some((/** @type {any} */ r) => r.mismatches?.length)) this.live.end(say("poorMatch"));
    if (shown.pairs && this.viewer) {
      if (news) this.open("result");
      void this.viewer.show(shown.pairs);
    }
  }

  /** @param {any} event */
  showStage(event) {
    this.live.show(event);
  }

  /** @param {string | null} url The whole picture with the estimate in its place; null: none. */
  showLive(url) {
    this.livePicture.hidden = !url;
    if (url) this.livePicture.src = url;
    for (const [name, { root }] of this.pages) root.hidden = Boolean(url) || name !== this.page;
  }

  /**
   * @param {string} text Why the run ended without a result; "" for no word.
   * @param {boolean} [failed]
   */
  stopped(text, failed = false) {
    this.showLive(null);
    this.live.end(text, failed);
  }

  dispose() {
    this.root.inert = true;
    this.picker?.dispose();
    this.viewer?.dispose();
  }
}
