// @ts-check
/** Which pictures a node's inputs carry, as far as the page can know, and how its crops are planned. */

import { api } from "/scripts/api.js";
import { app } from "/scripts/app.js";

/** @typedef {import("./geometry.js").RecipeSizes} RecipeSizes */
/** @typedef {{url: string, width?: number, height?: number}} Source */
/** @typedef {{recipe: RecipeSizes, context: number, megapixels: number | null, grow: number}} Planning */

/** @type {Record<string, RecipeSizes>} */
let recipes = {};

export async function loadRecipes() {
  try {
    const answer = await api.fetchApi("/omnirefiner/recipes");
    if (answer.ok) recipes = await answer.json();
  } catch (error) {
    console.warn("OmniRefiner: no recipes, so crops are not outlined", error);
  }
}

/**
 * What the server says about the recipe of a choice such as "nano (embedded)"; undefined for a file
 * of the user's.
 * @param {unknown} choice
 * @returns {RecipeSizes | undefined}
 */
export function recipeNamed(choice) {
  return recipes[String(choice)] ?? recipes[String(choice).split(" ")[0]];
}

/**
 * @param {any} node
 * @param {string} name
 * @returns {any} the widget's value, undefined without such a widget
 */
export function widgetValue(node, name) {
  return node?.widgets?.find((/** @type {any} */ w) => w.name === name)?.value;
}

/** @param {any} graph @param {any} id A link's; null where nothing is connected. */
function linkOf(graph, id) {
  return id == null ? null : (graph?.getLink?.(id) ?? graph?.links?.[id]);
}

/** Where ComfyUI lets links begin that come into a subgraph from outside. */
const SUBGRAPH_INPUT = -10;

/**
 * The node that stands for a subgraph in the graph around it; the first if several do.
 * @param {any} subgraph
 */
function holderOf(subgraph) {
  const root = app.rootGraph ?? app.graph;
  const graphs = [root, ...(root?.subgraphs?.values?.() ?? [])];
  return graphs.flatMap((g) => g.nodes ?? []).find((n) => n.subgraph === subgraph);
}

/**
 * The node and output slot that feed an input, through reroutes, bypassed nodes and out of subgraphs.
 * @param {any} node
 * @param {string} name
 * @returns {{node: any, slot: number} | null}
 */
export function originOf(node, name) {
  let at = node;
  let slot = at?.inputs?.findIndex((/** @type {any} */ i) => i.name === name) ?? -1;
  for (let depth = 0; at && slot >= 0 && depth < 50; depth++) {
    const link = linkOf(at.graph, at.inputs?.[slot]?.link);
    if (Number(link?.origin_id) === SUBGRAPH_INPUT) {
      at = holderOf(at.graph);
      slot = link.origin_slot;
      continue;
    }
    const origin = link && at.graph?.getNodeById?.(link.origin_id);
    if (!origin) return null;
    const passes = origin.type === "Reroute" || origin.mode === 4;
    if (!passes) return { node: origin, slot: link.origin_slot };
    at = origin;
    slot = origin.inputs?.findIndex((/** @type {any} */ i) => i.type === link.type || i.type === "*") ?? -1;
  }
  return null;
}

/** @param {any} node @param {string} name */
export function isConnected(node, name) {
  return node.inputs?.some((/** @type {any} */ i) => i.name === name && i.link != null) ?? false;
}

/**
 * @param {Record<string, string>} query
 * @returns {Source}
 */
function scaled(query) {
  return { url: api.apiURL(`/omnirefiner/picture?${new URLSearchParams(query)}`) };
}

/**
 * A picture named as Load Image names it: "folder/name.png [output]".
 * @param {string} value
 * @returns {Source}
 */
function annotated(value) {
  const [, path, type] = /^(.*?)(?: \[(input|output|temp)\])?$/.exec(value) ?? [];
  const cut = (path ?? "").lastIndexOf("/");
  return scaled({
    filename: (path ?? "").slice(cut + 1),
    subfolder: cut < 0 ? "" : (path ?? "").slice(0, cut),
    type: type ?? "input",
  });
}

/**
 * The picture that an input will get, known before a run; null if only a run can tell.
 * @param {any} node
 * @param {string} name
 * @returns {Source | null}
 */
export function sourceOf(node, name) {
  const origin = originOf(node, name);
  if (!origin) return null;
  const kind = origin.node.comfyClass ?? origin.node.type;
  const output = origin.node.outputs?.[origin.slot];
  if (kind === "OmniRefiner_ExampleCase") {
    return scaled({ case: String(widgetValue(origin.node, "case")), name: output.name });
  }
  const image = widgetValue(origin.node, "image");
  if (output?.type === "IMAGE" && kind.startsWith("LoadImage") && typeof image === "string" && image) {
    return annotated(image);
  }
  return null;
}

/**
 * The address of a picture that a run wrote.
 * @param {{filename: string, subfolder: string, type: string}} file
 */
export function viewUrl(file) {
  const { filename, subfolder, type } = file;
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
}

/** The recipe of a Reference Refine that nothing is connected to. */
const WITHOUT_REFINER = "nano";
const PLANNERS = ["OmniRefiner_ReferenceRefine", "OmniRefiner_CropForRefine"];

/** @param {any} node @returns {any} the node that will crop what this node's boxes mark */
function plannerOf(node) {
  if (PLANNERS.includes(node.comfyClass)) return node;
  for (const output of node.outputs ?? []) {
    for (const id of output.links ?? []) {
      const link = linkOf(node.graph, id);
      const target = link && node.graph?.getNodeById?.(link.target_id);
      if (PLANNERS.includes(target?.comfyClass)) return target;
    }
  }
  return null;
}

/**
 * How the crops around a node's boxes will be planned; null if nothing is connected that says so.
 * @param {any} node
 * @returns {Planning | null}
 */
export function planningOf(node) {
  const planner = plannerOf(node);
  if (!planner) return null;
  const chooser = isConnected(planner, "refiner") ? originOf(planner, "refiner")?.node : planner;
  const recipe = recipeNamed(widgetValue(chooser, "recipe") ?? (chooser === planner ? WITHOUT_REFINER : ""));
  if (!recipe) return null;
  const grows = planner === node ? [node] : [node, planner];
  return {
    recipe,
    context: Number(widgetValue(planner, "context")) || recipe.context,
    megapixels: Number(widgetValue(planner, "megapixels")) || null,
    grow: grows.reduce((sum, n) => sum + (Number(widgetValue(n, "grow")) || 0), 0),
  };
}

/**
 * A picture and its true size; rejects with a message if the server has none.
 * @param {Source} source
 * @returns {Promise<{picture: HTMLImageElement, size: [number, number]}>}
 */
export async function loadPicture(source) {
  const answer = await fetch(source.url);
  if (!answer.ok) throw new Error(String(answer.status));
  const url = URL.createObjectURL(await answer.blob());
  try {
    const picture = new Image();
    picture.src = url;
    await picture.decode();
    const told = answer.headers.get("X-Picture-Size")?.split("x").map(Number);
    const width = source.width ?? told?.[0] ?? picture.naturalWidth;
    const height = source.height ?? told?.[1] ?? picture.naturalHeight;
    return { picture, size: [width, height] };
  } finally {
    URL.revokeObjectURL(url);
  }
}

/** Tells ComfyUI that the graph changed, so that it can be undone and is saved. */
export function rememberChange() {
  app.graph?.setDirtyCanvas(true, true);
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  if (tracker?.captureCanvasState) tracker.captureCanvasState();
  else tracker?.checkState?.();
}
