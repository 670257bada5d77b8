// The page's modules that need no page: run with `node --test`.
import assert from "node:assert/strict";
import { test } from "node:test";
import * as boxes from "../../web/js/boxes.js";
import { roundHalfEven } from "../../web/js/geometry.js";
import { partAt, turnHandle } from "../../web/js/hit.js";
import { migrateGraph } from "../../web/js/migrate.js";
import { rankCompleteRepair } from "../../web/js/search.js";
import * as shapes from "../../web/js/shapes.js";
import { sharedFrame, Viewport } from "../../web/js/viewport.js";

const PAIR = { draft: [0.1, 0.2, 0.4, 0.5], reference: null };
const QUAD = [[0.2, 0.2], [0.6, 0.3], [0.5, 0.7], [0.1, 0.6]];
const near = (a, b) => a.flat().every((v, i) => Math.abs(v - b.flat()[i]) < 1e-9);

test("text and pairs", () => {
  assert.deepEqual(boxes.parsePairs(""), []);
  assert.deepEqual(boxes.parsePairs(undefined), []);
  assert.deepEqual(boxes.parsePairs(boxes.formatPairs([PAIR])), [PAIR]);
  assert.equal(boxes.formatPairs([]), "");
  for (const broken of ["{", "{}", "[1]", '[{"draft":[0,0,0,1]}]', '[{"draft":[0,0,2,1]}]', 7]) {
    assert.equal(boxes.parsePairs(broken), null, String(broken));
  }
});

test("outlines of four corners are text, too", () => {
  const pair = { draft: QUAD, reference: [0, 0, 1, 1] };
  assert.deepEqual(boxes.parsePairs(boxes.formatPairs([pair])), [pair]);
  const dented = [[0, 0], [1, 0], [0.1, 0.1], [0, 1]];
  const crossed = [QUAD[0], QUAD[2], QUAD[1], QUAD[3]];
  const outside = [[-0.1, 0], [1, 0], [1, 1], [0, 1]];
  for (const draft of [dented, crossed, outside, QUAD.slice(1), [...QUAD, [0, 0]]]) {
    assert.equal(boxes.parsePairs(JSON.stringify([{ draft }])), null, JSON.stringify(draft));
  }
});

const PAINTED = {
  strokes: [{ size: 0.1, points: [[0.2, 0.5], [0.6, 0.5]] }, { size: 0.05, points: [[0.6, 0.5]], erase: true }],
};

test("painted shapes are text, too", () => {
  const pair = { draft: PAINTED, reference: { ...PAINTED, from: QUAD } };
  assert.deepEqual(boxes.parsePairs(boxes.formatPairs([pair])), [pair]);
  for (const strokes of [[{ size: 0, points: [[0, 0]] }], [{ size: 0.1, points: [] }], [{ size: 0.1, points: [[0, 2]] }], [1]]) {
    assert.equal(boxes.parsePairs(JSON.stringify([{ draft: { strokes } }])), null, JSON.stringify(strokes));
  }
});

test("painted shapes are found, framed and moved", () => {
  const frame = [0, 0, 400, 200];
  assert.ok(near(shapes.boundsOf(PAINTED, 2), [0.15, 0.4, 0.65, 0.6]));
  for (const [x, y, part] of [[100, 100, ""], [100, 119, ""], [100, 122, null], [270, 100, null]]) {
    assert.equal(partAt(PAINTED, [x, y], frame, true), part, `${x}, ${y}`);
  }
  const moved = shapes.movedShape(PAINTED, 0.9, -0.1);
  assert.ok(near(moved.strokes[0].points, [[0.6, 0.4], [1, 0.4]]));
  assert.equal(shapes.turned(PAINTED, 1, [400, 200]), PAINTED);
});

test("a stroke goes on the selected painting, on the box it begins in, or makes a new shape", () => {
  const stroke = { size: 0.1, points: [[0.5, 0.5]] };
  const at = (x, y, erase = false) => ({ at: [x, y], erase, size: [100, 100] });
  const drawn = [PAIR, { draft: PAINTED, reference: null }];
  const cases = [
    ["draft", 1, at(0.9, 0.9), 1, ""],
    ["draft", 0, at(0.9, 0.9), 2, ""],
    ["draft", 1, at(0.2, 0.3), 1, ""],
    ["draft", -1, at(0.2, 0.3), 0, ""],
    ["draft", 0, at(0.9, 0.9, true), 0, ""],
    ["draft", -1, at(0.9, 0.9, true), -1, "eraseWhat"],
    ["reference", 1, at(0.5, 0.5), 1, ""],
    ["reference", 0, at(0.5, 0.5, true), -1, "eraseWhat"],
  ];
  for (const [side, selected, start, index, note] of cases) {
    const target = boxes.strokeTarget(drawn, side, selected, start);
    assert.deepEqual([target.index, target.note], [index, note], `${side} ${selected}`);
    if (index >= 0) assert.equal(target.with(stroke)[index][side].strokes.at(-1), stroke);
  }
  assert.equal(boxes.strokeTarget([], "reference", -1, at(0.5, 0.5)).note, "draftFirst");
  assert.deepEqual(boxes.strokeTarget([PAIR], "draft", 0, at(0.2, 0.3)).with(stroke)[0].draft, { strokes: [stroke], from: PAIR.draft });
});

test("corners are dragged, and never across the outline", () => {
  const box = [0.2, 0.2, 0.6, 0.6];
  assert.deepEqual(shapes.reshaped(box, "se", 0.1, 0.1, false).map((v) => +v.toFixed(9)), [0.2, 0.2, 0.7, 0.7]);
  const free = shapes.reshaped(box, "se", 0.1, 0.2, true);
  assert.ok(near(free, [[0.2, 0.2], [0.6, 0.2], [0.7, 0.8], [0.2, 0.6]]));
  assert.equal(shapes.reshaped(QUAD, "corner 0", 0.5, 0.5, false), QUAD);
  assert.ok(near(shapes.reshaped(QUAD, "side 1", 0.1, 0, false), [[0.2, 0.2], [0.7, 0.3], [0.6, 0.7], [0.1, 0.6]]));
  assert.ok(near(shapes.movedShape(QUAD, -5, 0), QUAD.map(([x, y]) => [x - 0.1, y])));
  assert.deepEqual(shapes.boundsOf(QUAD), [0.1, 0.2, 0.6, 0.7]);
});

test("a turn is one of pixels, and keeps inside the picture", () => {
  const turned = shapes.turned([0.4, 0.3, 0.6, 0.7], Math.PI / 2, [200, 100]);
  assert.ok(near(turned, [[0.6, 0.3], [0.6, 0.7], [0.4, 0.7], [0.4, 0.3]]), JSON.stringify(turned));
  const edge = shapes.turned([0, 0, 0.2, 0.2], Math.PI / 4, [100, 100]);
  assert.ok(edge.flat().every((v) => v >= -1e-12 && v <= 1));
  const whole = [0, 0, 1, 1];
  assert.equal(shapes.turned(whole, 0.1, [100, 100]), whole, "there is no room");
});

test("outside a box a drag draws, on its line and handles it takes hold", () => {
  const frame = [0, 0, 100, 100];
  const box = [0.2, 0.4, 0.6, 0.8];
  const cases = [
    [[20, 40], "nw"], [[18, 38], "nw"], [[15, 35], null], [[64, 84], null], [[62, 60], "e"],
    [[65, 60], null], [[26, 60], "w"], [[40, 60], ""], [[40, 20], "turn"],
  ];
  for (const [at, part] of cases) assert.equal(partAt(box, at, frame, true), part, `${at}`);
  assert.equal(partAt(box, [40, 20], frame, false), null, "no handle is shown");
  assert.equal(partAt([0.2, 0.2, 0.23, 0.23], [21.5, 21.5], frame, true), "", "a tiny box can be moved");
  const quad = [[0.2, 0.4], [0.6, 0.4], [0.7, 0.8], [0.2, 0.8]];
  for (const [at, part] of [[[70, 80], "corner 2"], [[65, 60], "side 1"], [[40, 60], ""], [[80, 90], null]]) {
    assert.equal(partAt(quad, at, frame, true), part, `${at}`);
  }
  assert.ok(turnHandle([[20, 4], [60, 4], [60, 30], [20, 30]])[1][1] > 30, "below, where there is no room above");
});

test("boxes stay inside and keep their size when moved", () => {
  const moved = shapes.movedBox([0.6, 0.7, 0.9, 0.9], 0.5, -2);
  assert.deepEqual(moved.map((v) => +v.toFixed(6)), [0.7, 0, 1, 0.2]);
  const crossed = shapes.resizedBox([0.2, 0.2, 0.4, 0.4], "e", -0.3, 0);
  assert.deepEqual(crossed.map((v) => +v.toFixed(6)), [0.1, 0.2, 0.2, 0.4]);
  const [x0, y0, x1, y1] = shapes.boxBetween(1.4, -0.5, 1.6, -0.2);
  assert.ok(0 <= x0 && x0 < x1 && x1 <= 1 && 0 <= y0 && y0 < y1 && y1 <= 1);
});

test("a box on the reference goes to the pair that waits for one", () => {
  const box = [0, 0, 1, 1];
  assert.equal(boxes.withDrawn([], "reference", box, -1), null);
  const two = [{ ...PAIR, reference: box }, PAIR];
  assert.equal(boxes.withDrawn(two, "reference", box, 0).selected, 1);
  const full = Array.from({ length: boxes.MOST_BOXES }, () => PAIR);
  assert.equal(boxes.withDrawn(full, "draft", box, -1), null);
  assert.equal(boxes.without(two, 0, "reference").length, 2);
  assert.equal(boxes.without(two, 0, "reference")[0].reference, null);
  assert.equal(boxes.without(two, 0, "draft").length, 1);
});

test("rounding is Python's", () => {
  const cases = [[0.5, 0], [1.5, 2], [2.5, 2], [-0.5, 0], [-1.5, -2], [2.4999, 2], [-2.6, -3]];
  for (const [value, rounded] of cases) assert.equal(roundHalfEven(value) + 0, rounded + 0, `${value}`);
});

test("two pictures share a frame without false offsets", () => {
  assert.deepEqual(sharedFrame([512, 512], [1024, 1024]).a, [1024, 1024]);
  assert.deepEqual(sharedFrame([512, 512], [512, 504]).b, [512, 504]);
  assert.equal(sharedFrame([512, 512], [512, 504]).exact, false);
});

test("zooming keeps the point under the pointer", () => {
  const viewport = new Viewport();
  viewport.size = [1000, 500];
  viewport.view = [500, 400];
  const at = (x) => (x - viewport.origin[0]) / viewport.scale;
  const before = at(320);
  viewport.zoomAt(2, 320, 200);
  assert.ok(Math.abs(at(320) - before) < 1e-9);
  viewport.zoomAt(0.01, 0, 0);
  assert.equal(viewport.zoom, 0, "never smaller than the view");
  viewport.size = [100, 50];
  viewport.zoomAt(1, 250, 200, 1);
  assert.equal(viewport.scale, 1, "a small picture pixel for pixel");
});

test("an older Mask Builder keeps its box and its settings", () => {
  const old = [0.25, 0.5, 0.5, 0.75, 0.2, false, 3, true, 20, false];
  const graph = { nodes: [{ type: "OmniRefiner_MaskBuilder", widgets_values: [...old] }] };
  migrateGraph(graph);
  const values = graph.nodes[0].widgets_values;
  assert.deepEqual(values.slice(0, 6), old.slice(4));
  assert.deepEqual(JSON.parse(values[6]), [{ draft: [0.25, 0.5, 0.75, 1], reference: null }]);
  migrateGraph(graph);
  assert.equal(graph.nodes[0].widgets_values.length, 7);
});

test("the node that does the whole repair comes first among names that begin with a query", () => {
  const repair = { name: "OmniRefiner_ReferenceRefine" };
  const other = { name: "OmniRefiner_RefinerParts" };
  rankCompleteRepair([other, repair]);
  assert.equal(other.postProcessSearchScores, undefined);
  const [begins, contains] = [[1, 0, 27, 0.3], [2, 17.5, 27, 0.3]].map((s) => repair.postProcessSearchScores(s));
  assert.deepEqual([begins, contains], [[1, 0, 0, 0, 0], [1, 0, 0, 0, 0]]);
  assert.deepEqual(repair.postProcessSearchScores([0, 0, 0, 0.1]), [0, 0, 0, 0, 0.1]);
  assert.deepEqual(repair.postProcessSearchScores([9, 0, 0, 0.1]), [9, 0, 0, 0, 0.1]);
  rankCompleteRepair([other]); // a page without the node
});
