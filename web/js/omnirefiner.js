// @ts-check
/** OmniRefiner's part of ComfyUI's page: registers the widget of its nodes and hands on events. */

import { api } from "/scripts/api.js";
import { app } from "/scripts/app.js";
import { showWords } from "./auto.js";
import { addStyle } from "./dom.js";
import { loadMessages, say } from "./messages.js";
import { migrateGraph } from "./migrate.js";
import { addPanel, allPanels, graphCompleted, panelFor, panelNamed, watchPage } from "./mount.js";
import { preferenceSetting } from "./preferences.js";
import { rankCompleteRepair } from "./search.js";
import { arrangeSettings, settlePrompt, watchChoices } from "./settings.js";
import { loadRecipes } from "./sources.js";

// Of a new node, px: its pictures are large enough to point at a detail.
const FIRST_WIDTH = 540;
const FIRST_ROOM = 90; // for the widget, beyond its least height

const NOTE = "$$node-text-preview"; // ComfyUI's widget for the text that a running node sends

/** Nodes with more settings than most runs need. */
const TIDY = ["OmniRefiner_LoadRefiner", "OmniRefiner_ReferenceRefine"];

/**
 * @param {any} node
 * @param {string} name
 * @param {boolean} stored
 */
function addPicturePanel(node, name, stored) {
  const widget = addPanel(node, name, stored);
  node.hideOutputImages = true;
  // The classic canvas would draw previews a second time, below the widget.
  node.onDrawBackground = () => {};
  const { onExecuted } = node;
  node.onExecuted = function (/** @type {any} */ output) {
    onExecuted?.apply(this, arguments);
    const shown = joined(output);
    if (shown) panelFor(node)?.showRun(shown);
    const noted = shown?.reports.some((/** @type {any} */ report) => report.notes?.length);
    if (shown?.reports.length && !noted) removeNote(node);
  };
  return widget;
}

/**
 * Removes the note below a node, which ComfyUI leaves there when a later run has nothing to say.
 * @param {any} node
 */
function removeNote(node) {
  const at = node.widgets?.findIndex((/** @type {any} */ w) => w.name === NOTE) ?? -1;
  if (at < 0) return;
  node.widgets[at].onRemove?.();
  node.widgets.splice(at, 1);
}

/**
 * What a node sent for the page; a node that was given a list ran, and sent, once for each entry.
 * @param {any} output
 */
function joined(output) {
  const runs = /** @type {any[]} */ (output?.omnirefiner ?? []);
  if (!runs.length) return null;
  const reports = runs.flatMap((run) => run.report ?? []);
  const pairs = runs.some((run) => run.pairs) && runs.flatMap((run) => run.pairs ?? []);
  return { ...runs[0], pairs, reports };
}

/** @param {string} text @param {boolean} [failed] */
function stopAll(text, failed = false) {
  for (const [, panel] of allPanels()) {
    const { live, livePicture } = panel;
    if (live.running || live.failed || !livePicture.hidden) panel.stopped(text, failed);
  }
}

/** @type {string} */
let liveUrl = "";

/** @param {any} detail `{blob, nodeId}` of a preview. */
function showPreview({ blob, displayNodeId, nodeId }) {
  const panel = panelNamed(displayNodeId ?? nodeId);
  if (!panel) return;
  const before = liveUrl;
  liveUrl = URL.createObjectURL(blob);
  panel.showLive(liveUrl);
  if (before) URL.revokeObjectURL(before);
}

/** @param {[any, import("./panel.js").Panel][]} nodes */
function showEarlierRuns(nodes) {
  for (const [node, panel] of nodes) {
    const outputs = app.nodeOutputs?.[node.id] ?? app.nodeOutputs?.[`${node.graph?.id}:${node.id}`];
    const shown = joined(outputs);
    if (shown) panel.showRun(shown, false);
  }
}

function listen() {
  const on = (/** @type {string} */ name, /** @type {(detail: any) => void} */ act) =>
    api.addEventListener(name, (/** @type {any} */ event) => act(event.detail));
  on("omnirefiner.pictures", (detail) => panelNamed(detail.node)?.showInputs(detail));
  on("omnirefiner.stage", (detail) => panelNamed(detail.node)?.showStage(detail));
  on("b_preview_with_metadata", showPreview);
  on("execution_interrupted", () => stopAll(say("stopped")));
  on("execution_error", (detail) => {
    stopAll("");
    const message = say("failed", { message: detail.exception_message ?? "" });
    panelNamed(detail.node_id)?.stopped(message, true);
  });
  on("execution_success", () => stopAll(""));
  on("reconnecting", () => stopAll(say("lost"), true));
}

app.registerExtension({
  name: "OmniRefiner",

  async init() {
    addStyle();
    await Promise.all([loadMessages(), loadRecipes()]);
    app.ui.settings.addSetting(preferenceSetting());
    listen();
    watchPage();
  },

  getCustomWidgets() {
    return {
      OMNIREFINER_REGIONS: (/** @type {any} */ node, /** @type {string} */ name) => ({
        widget: addPicturePanel(node, name, true),
      }),
    };
  },

  /** @param {any[]} defs The node definitions, to be changed in place. */
  beforeRegisterVueAppNodeDefs(defs) {
    rankCompleteRepair(defs);
  },

  /** @param {any} node */
  nodeCreated(node) {
    showWords(node);
    if (node.comfyClass === "OmniRefiner_Compare") addPicturePanel(node, "view", false);
    if (node.comfyClass === "OmniRefiner_LoadRefiner") watchChoices(node);
    if (TIDY.includes(node.comfyClass)) arrangeSettings(node);
    if (!panelFor(node)) return;
    settlePrompt(node);
    const size = node.computeSize();
    node.setSize([Math.max(FIRST_WIDTH, size[0]), Math.max(node.size[1], size[1]) + FIRST_ROOM]);
  },

  /** @param {any} node A node whose saved values have just been set. */
  loadedGraphNode(node) {
    if (TIDY.includes(node.comfyClass)) arrangeSettings(node, true);
  },

  /** @param {any} graph A workflow that is about to be loaded. */
  beforeConfigureGraph(graph) {
    migrateGraph(graph);
  },

  /** Undoing and changing tabs make new nodes; ComfyUI gives their outputs back a moment later. */
  afterConfigureGraph() {
    const fresh = graphCompleted();
    setTimeout(() => showEarlierRuns(fresh), 150);
  },
});
