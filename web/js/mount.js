// @ts-check
/**
 * Which panel belongs to which node, and where it stands in the page.
 *
 * ComfyUI makes new nodes on undo, redo, a change of tabs and a conversion to a subgraph, but Vue keeps
 * the elements of a node whose id it has seen before. So a widget's element is only the place where a
 * panel stands: a panel outlives an undo and moves to its new node's place, places are put where the
 * page shows their node, and a place that shows another node takes no input.
 */

import { app } from "/scripts/app.js";
import { forwardToCanvas, isVue } from "./canvas.js";
import { element } from "./dom.js";
import { Panel, PANELS } from "./panel.js";

const LEAST_HEIGHT = 290; // px of the widget
const LOOK_EVERY = 700; // ms between two looks at what ComfyUI has no event for
const INPUT = ["pointerdown", "click", "dblclick", "keydown", "wheel", "drop"];

/**
 * @typedef {object} Mount
 * @property {Panel} panel
 * @property {HTMLElement} place The widget's element.
 * @property {() => void} changed Tells ComfyUI of a new value.
 * @property {boolean} fresh Whether the graph that the node came with is not complete yet.
 */

/** @type {Map<any, Mount>} by node */
const mounts = new Map();

/** @type {Map<string, Panel>} panels of nodes that are gone, until a new graph is complete */
const left = new Map();

/** Whether a node is in the workflow, and not left over from before an undo. @param {any} node */
function isAlive(node) {
  const root = app.rootGraph ?? app.graph;
  const { graph } = node;
  const known = graph === root || root?.subgraphs?.get(graph?.id) === graph;
  return Boolean(known && graph?.getNodeById?.(node.id) === node);
}

/** Names a node as an undo will find it again. @param {any} node */
function keyOf(node) {
  const { graph } = node;
  return [graph?.isRootGraph === false ? graph.id : "", node.id, node.comfyClass].join("/");
}

/**
 * Whether what is seen and pointed at in a place is this node: Vue may show the place as part of
 * another one. A subgraph's node may show the widgets inside it.
 * @param {any} node
 * @param {HTMLElement} place
 */
function showsNode(node, place) {
  if (!isAlive(node)) return false;
  const body = /** @type {HTMLElement | null} */ (place.closest("[data-node-id]"));
  if (!body) return true;
  const shown = app.canvas?.graph?.getNodeById(body.dataset.nodeId);
  return shown === node || Boolean(shown?.isSubgraphNode?.());
}

/**
 * Puts a place where the page shows its node, instead of another node's that Vue has kept.
 * @param {any} node
 * @param {HTMLElement} place
 */
function seat(node, place) {
  if (place.isConnected || !isVue() || node.graph !== app.canvas?.graph) return;
  const body = document.querySelector(`[data-node-id="${CSS.escape(String(node.id))}"]`);
  body?.querySelector(".omnirefiner-place")?.replaceWith(place);
}

function seatAll() {
  for (const [node, { place }] of mounts) if (isAlive(node)) seat(node, place);
}

/**
 * @param {any} node
 * @param {HTMLElement} place
 */
function refuseStaleInput(node, place) {
  const guard = (/** @type {Event} */ event) => {
    if (mounts.get(node)?.place === place && showsNode(node, place)) return;
    event.stopImmediatePropagation();
    event.preventDefault();
    settleGraph();
  };
  for (const type of INPUT) place.addEventListener(type, guard, { capture: true });
}

/**
 * Gives a node its panel as a widget.
 * @param {any} node
 * @param {string} name The widget's name; its value is the text of the boxes.
 * @param {boolean} stored Whether the value belongs to the node's inputs.
 */
export function addPanel(node, name, stored) {
  const kind = PANELS[node.comfyClass ?? node.constructor?.comfyClass] ?? PANELS.OmniRefiner_MaskBuilder;
  const changed = () => widget.callback?.(widget.value);
  const panel = new Panel(node, kind, changed);
  const place = element("div", { class: "omnirefiner-place" }, panel.root);
  mounts.set(node, { panel, place, changed, fresh: true });
  refuseStaleInput(node, place);
  const widget = node.addDOMWidget(name, "OMNIREFINER_REGIONS", place, {
    getValue: () => panelFor(node)?.picker?.value ?? "",
    setValue: (/** @type {unknown} */ text) => {
      const picker = panelFor(node)?.picker;
      if (picker) picker.value = /** @type {any} */ (text);
    },
    getMinHeight: () => LEAST_HEIGHT,
    hideOnZoom: false,
    hideInPanel: true, // the side panel cannot show it a second time
    serialize: stored,
  });
  widget.serialize = stored;
  forwardToCanvas(place);
  const { onRemoved } = node;
  node.onRemoved = function () {
    onRemoved?.apply(this, arguments);
    leave(node);
  };
  return widget;
}

/** @param {any} node @returns {Panel | undefined} */
export function panelFor(node) {
  return mounts.get(node)?.panel;
}

/** @returns {[any, Panel][]} */
export function allPanels() {
  return [...mounts].map(([node, { panel }]) => [node, panel]);
}

/**
 * The panel of the node that an event is about; nodes in subgraphs are named "3:7".
 * @param {unknown} id
 * @returns {Panel | undefined}
 */
export function panelNamed(id) {
  /** @type {any} */
  let graph = app.rootGraph ?? app.graph;
  let node;
  for (const part of String(id).split(":")) {
    // Ids are numbers or text, by version.
    node = graph?.getNodeById?.(part) ?? graph?.getNodeById?.(Number(part));
    graph = node?.subgraph;
  }
  return panelFor(node);
}

/** The node is gone; an undo may bring it back. @param {any} node */
function leave(node) {
  const mount = mounts.get(node);
  if (!mount) return;
  mounts.delete(node);
  mount.panel.rest();
  left.get(keyOf(node))?.dispose();
  left.set(keyOf(node), mount.panel);
}

/**
 * Gives a node the panel that it had before the undo.
 * @param {any} node
 * @param {Mount} mount
 * @returns {boolean} whether it had one
 */
function takeBack(node, mount) {
  const earlier = left.get(keyOf(node));
  if (!earlier) return false;
  left.delete(keyOf(node));
  const text = mount.panel.picker?.value;
  mount.panel.dispose();
  mount.panel = earlier;
  earlier.bind(node, mount.changed);
  if (earlier.picker && text !== undefined) earlier.picker.value = text;
  mount.place.replaceChildren(earlier.root);
  earlier.resume();
  return true;
}

/** Whether ComfyUI is loading the graph for an undo or redo. It has no event that says so. */
function isUndoing() {
  return Boolean(app.extensionManager?.workflow?.activeWorkflow?.changeTracker?._restoringState);
}

/** Settles what stands where; nodes inside a subgraph go without being removed. */
function settleGraph() {
  for (const node of [...mounts.keys()]) if (node.graph && !isAlive(node)) leave(node);
  seatAll();
}

/**
 * A graph is complete.
 * @returns {[any, Panel][]} the nodes and panels that came with it and know nothing of earlier runs
 */
export function graphCompleted() {
  settleGraph();
  const undoing = isUndoing();
  /** @type {[any, Panel][]} */
  const unknowing = [];
  for (const [node, mount] of mounts) {
    if (!mount.fresh) continue;
    mount.fresh = false;
    if (!undoing || !takeBack(node, mount)) unknowing.push([node, mount.panel]);
  }
  for (const panel of left.values()) panel.dispose();
  left.clear();
  seatAll();
  requestAnimationFrame(seatAll);
  return unknowing;
}

/** Starts to follow what the page shows. */
export function watchPage() {
  document.addEventListener("litegraph:set-graph", () => {
    requestAnimationFrame(seatAll);
    setTimeout(seatAll, 100); // Vue has drawn the new graph by then
  });
  setInterval(() => {
    seatAll();
    for (const [node, { panel }] of mounts) if (isAlive(node)) panel.look();
  }, LOOK_EVERY);
}
