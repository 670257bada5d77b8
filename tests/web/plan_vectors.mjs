// Reads cases as JSON from stdin, plans each with the page's geometry, writes the plans to stdout.
import { readFileSync } from "node:fs";
import { grown, planCrop, toPixels } from "../../web/js/geometry.js";

const cases = JSON.parse(readFileSync(0, "utf8"));
const answers = cases.map((c) => {
  const region = grown(toPixels(c.box, c.image), c.grow, c.image);
  if (!region) return null;
  const plan = planCrop(c.image, region, c.recipe, c.context, c.megapixels);
  return { region, box: plan.box, target: plan.target };
});
process.stdout.write(JSON.stringify(answers));
