"use strict";
// The figure of a claim: every comparison's mean effect with its interval, beside the effect of each pair.

const MARKS = {
  reproduced: ["#004488", "circle"], refuted: ["#BB5566", "triangle-down"], inconclusive: ["#777777", "diamond"],
};

function forest(claim) {
  const times = claim.unit === "relative" ? 100 : 1;
  const percent = (value) => shown(value === null ? null : times * value);
  const findings = rowsOf(claim.findings).map(
    (row, i) => ({ ...row, seeds_: claim.effects[i] })
  ).filter((row) => row.effect !== null);
  if (!findings.length) return null;
  const conditions = [...new Set(findings.map((row) => row.condition))];
  const few = findings.length <= 60;
  const named = conditions.length > 1 ? conditions.map((condition) => [condition, condition || "all"]) : [];
  const selects = {
    condition: { label: "Condition", options: few ? [["", "all"], ...named] : named },
  };
  const draw = ({ condition }) => {
    const rows = findings.filter((row) => !condition || row.condition === condition);
    const name = (row, i) => `${i + 1}`;
    const label = (row) => {
      const text = [condition ? "" : row.condition, row.comparison || "all pairs"].filter(Boolean).join(": ");
      return plain(text.length > 64 ? `${text.slice(0, 62)}…` : text);
    };
    const traces = Object.entries(MARKS).map(([verdict, [colour, symbol]]) => {
      const own = rows.map((row, i) => [row, i]).filter(([row]) => row.verdict === verdict);
      const error = {
        type: "data", symmetric: false, array: own.map(([r]) => (r.high === null ? 0 : times * (r.high - r.effect))),
        arrayminus: own.map(([r]) => (r.low === null ? 0 : times * (r.effect - r.low))), thickness: 1.5, width: 3,
        color: visible(colour),
      };
      const custom = own.map(([r]) => [
        r.condition, r.comparison || "all pairs",
        `${r.verdict}: ${percent(r.effect)} [${percent(r.low)}, ${percent(r.high)}]`,
        `${shown(r.pairs)} pairs, ${shown(r.seeds)} seeds`, r.reason,
      ].filter(Boolean).map((t) => t.slice(0, 140)));
      return {
        variant: verdict, label: verdict, colour, symbol, line: false, open: verdict === "inconclusive", size: 8,
        x: own.map(([r]) => times * r.effect), y: own.map(([r, i]) => name(r, i)), custom, own: { error_x: error },
      };
    });
    const seeds = rows.flatMap((row, i) => row.seeds_.map((effect) => [times * effect, name(row, i)]));
    if (seeds.length) traces.push({
      label: "each pair", colour: "#777777", line: false, size: 4, alpha: 0.7, x: seeds.map((s) => s[0]),
      y: seeds.map((s) => s[1]),
    });
    const [low, high] = claim.margin;
    const band = low === null || high === null ? [] : [
      {
        type: "rect", xref: "x", yref: "paper", x0: times * low, x1: times * high, y0: 0, y1: 1, line: { width: 0 },
        fillcolor: "rgba(200,160,60,0.18)", layer: "below",
      },
    ];
    const zero = {
      type: "line", xref: "x", yref: "paper", x0: 0, x1: 0, y0: 0, y1: 1, line: { width: 1, color: "#888" },
      layer: "below",
    };
    const axis = {
      type: "category", autorange: "reversed", tickmode: "array", tickvals: rows.map(name), ticktext: rows.map(label),
      categoryorder: "array", categoryarray: rows.map(name), title: { text: "" }, tickfont: { size: 11 },
    };
    const height = 90 + 20 * rows.length;
    return {
      traces: traces.filter((t) => t.x.length),
      x: claim.unit === "relative" ? "left / right − 1 (%)" : "left − right", y: "comparison",
      note: low === null ? "" : "Shaded: within the margin.",
      layout: { shapes: [...band, zero], yaxis: axis, height },
    };
  };
  const height = 90 + 20 * (
    few ? findings.length : Math.max(...[...grouped(findings, (r) => r.condition).values()].map((g) => g.length))
  );
  return new Chart({ title: `${claim.id}: effects`, selects, axes: false, height, draw });
}
