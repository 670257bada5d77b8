// @ts-check
/** Where this pack's nodes stand in the results of ComfyUI's node search. */

const COMPLETE_REPAIR = "OmniRefiner_ReferenceRefine";

// Classes of match in ComfyUI's search, best first: 0 is the exact name, 1 a name that begins with
// the query, 3 a name that contains it.
const BEGINS_WITH = 1;
const CONTAINS = 3;

/**
 * Lists Reference Refine before the pack's other nodes, whose names are shorter or begin with
 * "Refine": a search for "refine" or "omni" should lead to the node that does the whole repair. Exact
 * names and nodes that are used more often stay before it.
 *
 * ComfyUI does not rank by search aliases, only by names.
 * @param {any[]} defs The node definitions, before the page uses them.
 */
export function rankCompleteRepair(defs) {
  const def = defs.find(({ name }) => name === COMPLETE_REPAIR);
  if (def) def.postProcessSearchScores = ranked;
}

/**
 * @param {number[]} scores The class of the match, then what orders nodes within it; lower is better.
 * @returns {number[]}
 */
function ranked(scores) {
  const [match] = scores;
  return match >= BEGINS_WITH && match <= CONTAINS ? [BEGINS_WITH, 0, 0, 0, 0] : [match, 0, ...scores.slice(1)];
}
