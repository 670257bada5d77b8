// @ts-check
/** OmniRefiner's part of ComfyUI's page: registers the widget of its nodes and hands on events. */

import { api } from "/scripts/api.js";
import { app } from "/scripts/app.js";
import { forwardToCanvas } from "./canvas.js";
import { addStyle } from "./dom.js";
import { loadMessages, say } from "./messages.js";
import { migrateGraph } from "./migrate.js";
import { Panel, PANELS } from "./panel.js";
import { arrangeSettings, settlePrompt, watchChoices } from "./settings.js";
import { loadRecipes } from "./sources.js";

const LEAST_HEIGHT = 290; // px of the widget
// Of a new node, px: its pictures are large enough to point at a detail.
const FIRST_WIDTH = 540;
const FIRST_ROOM = 90; // for the widget, beyond its least height

/** Nodes with more settings than most runs need. */
const TIDY = ["OmniRefiner_LoadRefiner", "OmniRefiner_ReferenceRefine"];

/** @type {Map<any, Panel>} panels by node */
const panels = new Map();

/**
 * @param {any} node
 * @param {string} name The widget's name; its value is the text of the boxes.
 * @param {boolean} stored Whether the value belongs to the node's inputs.
 */
function addPanel(node, name, stored) {
  const kind = PANELS[node.comfyClass ?? node.constructor?.comfyClass] ?? PANELS.OmniRefiner_MaskBuilder;
  const panel = new Panel(node, kind, () => widget.callback?.(widget.value));
  const widget = node.addDOMWidget(name, "OMNIREFINER_REGIONS", panel.root, {
    getValue: () => panel.picker?.value ?? "",
    setValue: (/** @type {unknown} */ text) => {
      if (panel.picker) panel.picker.value = /** @type {any} */ (text);
    },
    getMinHeight: () => LEAST_HEIGHT,
    hideOnZoom: false,
    hideInPanel: true, // the side panel cannot show it a second time
    serialize: stored,
  });
  widget.serialize = stored;
  forwardToCanvas(panel.root);
  panels.set(node, panel);
  node.hideOutputImages = true;
  // The classic canvas would draw previews a second time, below the widget.
  node.onDrawBackground = () => {};
  const { onRemoved, onExecuted } = node;
  node.onRemoved = function () {
    onRemoved?.apply(this, arguments);
    panels.delete(node);
    panel.dispose();
  };
  node.onExecuted = function (/** @type {any} */ output) {
    onExecuted?.apply(this, arguments);
    const shown = joined(output);
    if (shown) panel.showRun(shown);
  };
  return widget;
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

/**
 * The panel of the node that an event is about; nodes in subgraphs are named "3:7".
 * @param {unknown} id
 * @returns {Panel | undefined}
 */
function panelOf(id) {
  /** @type {any} */
  let graph = app.rootGraph ?? app.graph;
  let node;
  for (const part of String(id).split(":")) {
    // Ids are numbers or text, by version.
    node = graph?.getNodeById?.(part) ?? graph?.getNodeById?.(Number(part));
    graph = node?.subgraph;
  }
  return panels.get(node);
}

/** @param {string} text @param {boolean} [failed] */
function stopAll(text, failed = false) {
  for (const panel of panels.values()) {
    if (!panel.live.root.hidden || !panel.livePicture.hidden) panel.stopped(text, failed);
  }
}

/** @type {string} */
let liveUrl = "";

/** @param {any} detail `{blob, nodeId}` of a preview. */
function showPreview({ blob, displayNodeId, nodeId }) {
  const panel = panelOf(displayNodeId ?? nodeId);
  if (!panel) return;
  const before = liveUrl;
  liveUrl = URL.createObjectURL(blob);
  panel.showLive(liveUrl);
  if (before) URL.revokeObjectURL(before);
}

function showEarlierRuns() {
  for (const [node, panel] of panels) {
    const outputs = app.nodeOutputs?.[node.id] ?? app.nodeOutputs?.[`${node.graph?.id}:${node.id}`];
    const shown = joined(outputs);
    if (shown) panel.showRun(shown, false);
  }
}

function listen() {
  const on = (/** @type {string} */ name, /** @type {(detail: any) => void} */ act) =>
    api.addEventListener(name, (/** @type {any} */ event) => act(event.detail));
  on("omnirefiner.pictures", (detail) => panelOf(detail.node)?.showInputs(detail));
  on("omnirefiner.stage", (detail) => panelOf(detail.node)?.showStage(detail));
  on("b_preview_with_metadata", showPreview);
  on("execution_interrupted", () => stopAll(say("stopped")));
  on("execution_error", (detail) => {
    stopAll("");
    const message = say("failed", { message: detail.exception_message ?? "" });
    panelOf(detail.node_id)?.stopped(message, true);
  });
  on("execution_success", () => stopAll(""));
  on("reconnecting", () => stopAll(say("lost"), true));
}

app.registerExtension({
  name: "OmniRefiner",

  async init() {
    addStyle();
    await Promise.all([loadMessages(), loadRecipes()]);
    listen();
  },

  getCustomWidgets() {
    return {
      OMNIREFINER_REGIONS: (/** @type {any} */ node, /** @type {string} */ name) => ({
        widget: addPanel(node, name, true),
      }),
    };
  },

  /** @param {any} node */
  nodeCreated(node) {
    if (node.comfyClass === "OmniRefiner_Compare") addPanel(node, "view", false);
    if (node.comfyClass === "OmniRefiner_LoadRefiner") watchChoices(node);
    if (TIDY.includes(node.comfyClass)) arrangeSettings(node);
    if (!panels.has(node)) return;
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
    setTimeout(showEarlierRuns, 150);
  },
});
