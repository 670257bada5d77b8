// @ts-check
/** What a run did, readable: the node's report as rows, and as JSON to copy. */

import { button, element } from "./dom.js";
import { say } from "./messages.js";

/** @typedef {[string, string]} Row */

/** @param {number[]} box */
const boxText = (box) => `${box[0]}, ${box[1]} – ${box[2]}, ${box[3]}`;
/** "1 x 640x427" with the sign for times. @param {string} text */
const times = (text) => text.replace(/(?<=\d)( ?)x\1(?=\d)/g, "$1×$1");
/** @param {number} value */
const signed = (value) => (value > 0 ? "+" : "") + value;

/**
 * @param {any} drift
 * @returns {string}
 */
function driftText(drift) {
  if (!drift?.measured) return say("notMeasured");
  const found = `${signed(drift.dx)}, ${signed(drift.dy)} px, × ${drift.zoom}`;
  return `${found} · ${say(drift.corrected ? "corrected" : "leftAlone")}`;
}

/** @type {Record<string, string>} */
const ALIGNED_BY = {
  registered: "alignedByPicture",
  surface: "alignedByPicture",
  searched: "alignedByPicture",
  outlines: "alignedByOutlines",
  boxes: "alignedByBoxes",
};

/** @param {{method: string, score: number}} alignment */
function alignedText({ method, score }) {
  const how = method in ALIGNED_BY ? say(ALIGNED_BY[method]) : method;
  return `${how}, ${say("agreement")} ${score}`;
}

/**
 * @param {any} region
 * @returns {Row[]}
 */
function regionRows(region) {
  /** @type {Row[]} */
  const rows = [
    [say("region"), boxText(region.region)],
    [say("crop"), `${boxText(region.crop)} → ${times(region.bucket)} (× ${region.scale})`],
    [say("drift"), driftText(region.drift)],
  ];
  if (region.color) rows.push([say("colour"), `× ${region.color.gain.join(", ")}`]);
  for (const [i, reference] of (region.references ?? []).entries()) {
    const { alignment, found } = reference;
    let how = alignment ? ` · ${alignedText(alignment)}` : "";
    if (found) how = ` · ${say("foundInReference")}, ${say("agreement")} ${found.score}`;
    rows.push([`${say("reference")} ${i + 1}`, `${boxText(reference.crop)}${how}`]);
  }
  return rows;
}

/**
 * The candidates of one region, if the run made several: seed, last score, what became of it.
 * @param {any} region
 * @returns {Row[]}
 */
function candidateRows(region) {
  const search = region.search;
  if (!search) return [];
  const rows = search.candidates.map((/** @type {any} */ c, /** @type {number} */ i) => {
    const score = Object.values(c.scores).at(-1);
    const fate = i === search.chosen ? say("chosen") : dropText(c.dropped_after);
    return [`${say("candidate")} ${i + 1}`, `${say("seed")} ${c.seed} · ${score} · ${fate}`];
  });
  const spent = `${search.evaluations} / ${search.evaluations_full}`;
  return [[say("score"), search.scorer], [say("evaluations"), spent], ...rows];
}

/** @param {number | null} step */
const dropText = (step) => (step === null ? say("finished") : say("droppedAfter", { step }));

/**
 * @param {any} report
 * @returns {{title: string, rows: Row[]}[]}
 */
function reportSections(report) {
  const engine = report.engine ?? {};
  /** @type {Row[]} */
  const general = [
    [say("recipe"), `${report.recipe} · ${engine.weights ?? engine.kind ?? ""}`],
    [say("sampler"), [engine.sampler, engine.scheduler].filter(Boolean).join(" · ")],
    [say("seed"), String(report.seed)],
    [say("pictures"), times(report.draft)],
    [say("seconds"), secondsText(report)],
  ];
  if (report.mask_outside_boxes_px) {
    general.push([say("outsideBoxes"), `${report.mask_outside_boxes_px} px`]);
  }
  const regions = (report.regions ?? []).map((/** @type {any} */ region, /** @type {number} */ i) => ({
    title: `${say("region")} ${i + 1}`,
    rows: [...regionRows(region), ...candidateRows(region)],
  }));
  /** @type {Row[]} */
  const notes = (report.notes ?? []).map((/** @type {string} */ note, /** @type {number} */ i) => [
    String(i + 1),
    note,
  ]);
  const noted = notes.length ? [{ title: say("notes"), rows: notes }] : [];
  return [...noted, { title: say("run"), rows: general.filter((r) => r[1]) }, ...regions];
}

/** @param {any} report */
function secondsText(report) {
  const stages = Object.entries(report.seconds ?? {}).map(
    ([stage, s]) => `${say(stage)} ${Number(s).toFixed(2)}`,
  );
  return `${Number(report.seconds_total ?? 0).toFixed(2)} (${stages.join(", ")})`;
}

export class ReportView {
  constructor() {
    /** @type {any[]} one per run of the node: several if it was given a list */
    this.reports = [];
    this.table = element("div", { class: "omnirefiner-table", tabindex: 0 });
    this.status = element("span", { class: "omnirefiner-status", role: "status" });
    this.root = element(
      "div",
      { class: "omnirefiner-report" },
      this.table,
      element(
        "div",
        { class: "omnirefiner-bar" },
        this.status,
        button(say("copyJson"), say("copyJsonTip"), () => void this.copy()),
      ),
    );
  }

  /** @param {any[]} reports */
  show(reports) {
    this.reports = reports;
    this.status.textContent = "";
    this.table.replaceChildren(
      ...reports.flatMap(reportSections).map(({ title, rows }) =>
        element(
          "section",
          {},
          element("h4", {}, title),
          element(
            "dl",
            {},
            ...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]),
          ),
        ),
      ),
    );
  }

  async copy() {
    const text = JSON.stringify(this.reports.length === 1 ? this.reports[0] : this.reports, null, 2);
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      copyBySelection(text); // a page that is not served securely has no clipboard
    }
    this.status.textContent = say("copied");
  }
}

/** @param {string} text */
function copyBySelection(text) {
  const area = element("textarea", { style: "position: fixed; opacity: 0" });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
