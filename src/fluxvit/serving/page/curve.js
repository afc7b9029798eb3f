/** The budget curve: accuracy and scores against tokens, as an SVG and as a table. */

import { el, number, percent, svg } from "./dom.js";

const HEIGHT = 190;
const MARGIN = { left: 46, right: 0, top: 12, bottom: 26 };

/**
 * @param {SVGElement} plot
 * @param {object[]} plans of /v1/model, cheapest first.
 * @param {Map<string, object>} answers of the video, by budget.
 * @param {{tokens: number, score?: number, label?: string} | null} now the present budget, and the answer to it.
 */
export function drawCurve(plot, plans, answers, now) {
  const width = plot.clientWidth || 360;
  plot.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  const tokens = plans.map((plan) => plan.tokens).concat(now ? [now.tokens] : []);
  const [least, most] = [Math.min(...tokens), Math.max(...tokens)].map(Math.log2);
  const inner = width - MARGIN.left - MARGIN.right - 24;
  const x = (count) => MARGIN.left + 12 + (most > least ? ((Math.log2(count) - least) / (most - least)) * inner : inner / 2);
  const y = (share) => HEIGHT - MARGIN.bottom - share * (HEIGHT - MARGIN.top - MARGIN.bottom);
  const line = (points, name) =>
    svg("polyline", { class: name, points: points.map((at) => at.map((value) => value.toFixed(1)).join(",")).join(" ") });

  const content = [];
  for (const share of [0, 0.5, 1]) {
    content.push(svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(share), y2: y(share) }));
    content.push(svg("text", { x: 0, y: y(share) + 4, text: `${100 * share} %` }));
  }
  // Numbers along the axis, as far as there is room before the last one, which names the unit.
  const last = plans.at(-1);
  const end = Math.min(width, x(last.tokens) + 36);
  let free = 0;
  for (const plan of plans) {
    const half = 4 * String(plan.tokens).length;
    if (plan === last || x(plan.tokens) - half < free || x(plan.tokens) + half > end - 80) continue;
    free = x(plan.tokens) + half + 8;
    content.push(svg("text", { x: x(plan.tokens), y: HEIGHT - 8, "text-anchor": "middle", text: plan.tokens }));
  }
  content.push(svg("text", { x: end, y: HEIGHT - 8, "text-anchor": "end", text: `${last.tokens} tokens` }));
  if (now) content.push(svg("line", { class: "now", x1: x(now.tokens), x2: x(now.tokens), y1: y(1) - 6, y2: y(0) }));

  const known = plans.filter((plan) => plan.accuracy != null);
  content.push(line(known.map((plan) => [x(plan.tokens), y(plan.accuracy)]), "accuracy"));
  for (const plan of known) content.push(svg("circle", { class: "accuracy", cx: x(plan.tokens), cy: y(plan.accuracy), r: 3 }));

  const asked = plans.map((plan) => [plan, best(answers.get(plan.budget))]).filter(([, top]) => top);
  content.push(line(asked.map(([plan, top]) => [x(plan.tokens), y(top.score)]), "score"));
  for (const [plan, top] of asked) {
    const name = !now?.label || top.label === now.label ? "score" : "score other";
    const title = svg("title", { text: `${plan.tokens} tokens: ${top.label}, ${percent(top.score)}` });
    content.push(svg("circle", { class: name, cx: x(plan.tokens), cy: y(top.score), r: 4.5 }, title));
  }
  if (now?.score != null && !asked.some(([plan]) => plan.tokens === now.tokens))
    content.push(svg("circle", { class: "score", cx: x(now.tokens), cy: y(now.score), r: 4.5 }));
  if (now?.score != null) content.push(svg("circle", { class: "present", cx: x(now.tokens), cy: y(now.score), r: 8 }));
  plot.replaceChildren(...content);
}

/** What is drawn, as rows for those who read numbers or do not see. */
export function fillTable(table, plans, answers) {
  const has = (key) => plans.some((plan) => plan[key] != null);
  const columns = [
    ["Tokens", (plan) => `${plan.tokens} of ${plan.pool}`],
    ["GFLOPs", (plan) => number(plan.gflops)],
    ...(has("milliseconds") ? [["ms", (plan) => (plan.milliseconds == null ? "" : number(plan.milliseconds))]] : []),
    ...(has("accuracy") ? [["Accuracy", (plan) => (plan.accuracy == null ? "" : percent(plan.accuracy))]] : []),
    ...(answers.size
      ? [["This video", (plan, top) => (top ? `${top.label}, ${percent(top.score)}` : "not asked")]]
      : []),
  ];
  const head = el("tr", {}, ...columns.map(([name]) => el("th", { scope: "col", text: name })));
  const rows = plans.map((plan) => {
    const top = best(answers.get(plan.budget));
    return el("tr", {}, ...columns.map(([, value]) => el("td", { text: value(plan, top) })));
  });
  table.replaceChildren(el("thead", {}, head), el("tbody", {}, ...rows));
}

const best = (answer) => answer?.labels?.[0];
