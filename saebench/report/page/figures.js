"use strict";
// The figures of a study: what each draws from the views, the curves and the findings.

const MODES = ["threshold", "batch", "topk"]; // of a full view, the one a user of the SAE gets first
const RULES = {
  energy: ["E[z²]", "circle", "solid"], frequency: ["firing frequency", "square", "10px,3px"],
  norm_energy: ["E[z²] |W_dec|²", "triangle-up", "10px,3px,2px,3px"],
  decoder_norm: ["|W_dec|", "triangle-down", "6px,2px"], random: ["random", "x", "2px,2px"],
  unsorted: ["unsorted (first m)", "cross", "14px,3px"], "": ["dictionary order (first m)", "diamond", "14px,3px"],
};
const ORDERS = {
  select_then_prune: "select, then prune", prune_then_select: "prune, then select",
  scaled: "prune, then select, k scaled",
};
const CUTS = { topk: "each token's largest latents", threshold: "one threshold for all tokens" };
const BOUNDED = ["cka", "cka_std", "rsa_pearson", "rsa_spearman"];

function rowsOf(columns) {
  const names = Object.keys(columns);
  return names.length ? columns[names[0]].map(
    (_, i) => Object.fromEntries(names.map((name) => [name, columns[name][i]]))
  ) : [];
}

function grouped(items, key) {
  const groups = new Map();
  for (const item of items) {
    const name = key(item);
    if (groups.has(name)) groups.get(name).push(item);
    else groups.set(name, [item]);
  }
  return groups;
}

const unique = (values) => [...new Set(values)].sort((a, b) => a - b);
const most = (values) => [...grouped(values, (v) => v)].sort((a, b) => b[1].length - a[1].length)[0]?.[0];
const panelOf = (config) => `${config.d_sae}|${config.facet}`;
const panelText = (panel) => { const [d, k] = panel.split("|"); return `d_sae ${d}, k or L0 ${k}`; };

// What the mouse reads of a configuration: what it is, what was measured, of which runs.
function hover(config, row, metric, study) {
  const sd = row[`${metric}_sd`];
  const runs = config.runs.slice(0, 4).map(([run, seed]) => `${run} (seed ${seed})`);
  const more = config.runs.length > 4 ? [`and ${config.runs.length - 4} more`] : [];
  const view = row.view === "full" ? `full, ${row.mode}` : [
    row.view, row.rule, row.m && `m ${row.m}`, row.budget && `budget ${row.budget}`, row.mode,
  ].filter(Boolean).join(", ");
  const spread = sd ? ` ± ${shown(sd)}, mean of ${row.runs}` : "";
  return [
    `${config.name}, d_sae ${config.d_sae}, ${config.sparsity}`, view,
    `${study.measures[metric]}: ${shown(row[metric])}${spread}`, `L0: ${shown(row.l0)}`, ...runs, ...more,
  ];
}

function traceFrom(config, rows, x, metric, study, changes = {}) {
  const kept = rows.filter((row) => row[x] !== null && row[metric] !== null);
  const { colour, symbol, dash, alpha } = config.look;
  return {
    variant: config.variant, label: config.name, colour, symbol, dash, alpha, x: kept.map((r) => r[x]),
    y: kept.map((r) => r[metric]), sd: kept.map((r) => r[`${metric}_sd`]),
    custom: kept.map((r) => hover(r.config || config, r, metric, study)), ...changes,
  };
}

// A study with its rows beside their configurations, for a section's runs.
class Study {
  constructor(study, runs) {
    const wanted = new Set(runs);
    Object.assign(this, study);
    this.configs = study.configs.filter((config) => config.runs.some(([run]) => wanted.has(run)));
    const known = new Map(this.configs.map((config) => [config.number, config]));
    this.known = known;
    this.rows = rowsOf(study.views).filter((row) => known.has(row.configuration)).map(
      (row) => ({ ...row, config: known.get(row.configuration) })
    );
    this.curves = study.curves.filter((curve) => wanted.has(curve.run) && known.has(curve.configuration));
    this.latents = study.latents.filter((curve) => wanted.has(curve.run) && known.has(curve.configuration));
    this.costs = study.costs.filter((cost) => wanted.has(cost.run));
    this.metrics = Object.entries(study.measures).filter(([name]) => name !== "l0");
  }

  // The full view of each configuration in which a metric was measured, in the first of MODES.
  full(metric) {
    const there = this.rows.filter((row) => row.view === "full" && row[metric] !== null && row[metric] !== undefined);
    return [...grouped(there, (row) => row.configuration).values()].map(
      (rows) => rows.sort((a, b) => MODES.indexOf(a.mode) - MODES.indexOf(b.mode))[0]
    );
  }

  pick(name, label = "Metric") {
    return {
      label, options: this.metrics, value: this.metrics.some(([m]) => m === name) ? name : this.metrics[0]?.[0],
    };
  }
}

function againstL0(study) {
  const sizes = unique(study.configs.map((config) => config.d_sae));
  const cuts = Object.entries(CUTS).filter(
    ([mode]) => study.rows.some((row) => row.view === "budget" && row.mode === mode)
  );
  const selects = {
    metric: study.pick("fvu"),
    size: {
      label: "d_sae", options: [...sizes.map((s) => [s, s]), ["all", "all"]],
      value: most(study.configs.map((c) => c.d_sae)),
    },
    cut: { label: "Densest SAE cut to", options: [...cuts, ["", "not cut"]], value: cuts[0]?.[0] || "" },
  };
  const draw = ({ metric, size, cut }) => {
    const rows = study.full(metric).filter((row) => size === "all" || row.config.d_sae === Number(size));
    const traces = [];
    for (const line of grouped(rows, (row) => `${row.config.like}|${row.config.d_sae}`).values()) {
      line.sort((a, b) => a.l0 - b.l0);
      const config = line.at(-1).config;
      const label = `${config.name}${size === "all" ? `, d_sae ${config.d_sae}` : ""}`;
      traces.push(traceFrom(config, line, "l0", metric, study, { dash: "solid", label }));
      const less = study.rows.filter(
        (row) => row.view === "budget" && row.mode === cut && row.configuration === config.number
      ).sort((a, b) => a.l0 - b.l0);
      if (less.length) traces.push(traceFrom(
        config, less, "l0", metric, study, { dash: "6px,3px", open: true, label: `${label}, cut` },
      ));
    }
    return {
      traces, x: study.measures.l0, y: study.measures[metric],
      note: cut ? "Filled: trained at that sparsity. Open, dashed: the densest of them cut." : "",
    };
  };
  return new Chart({ title: "Against L0", selects, log: { x: true, y: true }, draw });
}

function isCut(row) {
  return row.view === "pruned" || row.view === "prefix";
}

function againstSize(study) {
  const cuts = study.rows.filter((row) => isCut(row) && ["energy", null].includes(row.rule));
  const facets = unique((cuts.length ? cuts : study.rows).map((row) => row.config.facet));
  const hows = Object.entries(ORDERS).filter(([how]) => cuts.some((row) => row.how === how));
  const selects = {
    metric: study.pick("fvu"),
    facet: { label: "k or L0", options: facets.map((f) => [f, f]), value: facets[Math.floor(facets.length / 2)] },
    how: { label: "Order", options: hows },
  };
  const draw = ({ metric, facet, how }) => {
    const full = study.full(metric);
    const here = study.configs.filter((config) => config.facet === Number(facet));
    const traces = [];
    for (const alike of grouped(here, (config) => `${config.like}|${config.sparsity}`).values()) {
      const parent = alike.reduce((a, b) => (b.d_sae > a.d_sae ? b : a));
      const own = cuts.filter(
        (row) => row.configuration === parent.number && row.how === how && row[metric] !== null
      ).sort((a, b) => a.m - b.m);
      const whole = full.filter((row) => row.configuration === parent.number);
      const parts = {
        pruned: own.filter((row) => row.view === "pruned"),
        prefix: parent.look.nested ? own.filter((row) => row.view === "prefix") : [],
      };
      if (parts.pruned.length) traces.push(traceFrom(
        parent, [...parts.pruned, ...whole], "m", metric, study, { dash: "6px,3px", label: `${parent.name}, pruned` },
      ));
      if (parts.prefix.length) traces.push(traceFrom(
        parent, [...parts.prefix, ...whole], "m", metric, study,
        { dash: "solid", width: 3, label: `${parent.name}, first m` },
      ));
      const scaled = (c) => c.like === parent.like && parent.k !== null && c.k === Math.max(
        1, Math.round((parent.k * c.d_sae) / parent.d_sae),
      );
      const smaller = how === "scaled" ? study.configs.filter(scaled) : alike;
      const trained = full.filter((row) => smaller.includes(row.config)).sort((a, b) => a.m - b.m);
      traces.push(traceFrom(
        parent, trained, "m", metric, study,
        { line: false, open: true, size: 9, label: `${parent.name}, trained at m` },
      ));
    }
    return {
      traces: traces.filter((t) => t.x.length), ticks: true, x: "dictionary size m (latents)",
      y: study.measures[metric],
      note: "Dashed: pruned by E[z²]. Thick: the first m latents. Open: trained at that size.",
    };
  };
  return new Chart({ title: "Against dictionary size", selects, log: { x: true, y: true }, draw });
}

function pruningRules(study) {
  const cuts = study.rows.filter(isCut);
  const parents = study.configs.filter(
    (config) => cuts.some((row) => row.configuration === config.number && row.view === "pruned")
  );
  if (!parents.length) return null;
  const hows = Object.entries(ORDERS).filter(([how]) => cuts.some((row) => row.how === how));
  const name = (config) => `${config.name}, d_sae ${config.d_sae}, ${config.sparsity}`;
  const largest = parents.reduce((a, b) => (b.d_sae > a.d_sae ? b : a));
  const selects = {
    parent: { label: "SAE", options: parents.map((config) => [config.number, name(config)]), value: largest.number },
    how: { label: "Order", options: hows }, metric: study.pick("fvu"),
  };
  const draw = ({ parent, how, metric }) => {
    const config = study.known.get(Number(parent));
    const whole = study.full(metric).filter((row) => row.configuration === config.number);
    const own = cuts.filter((row) => row.configuration === config.number && row.how === how);
    const traces = Object.entries(RULES).map(([rule, [label, symbol, dash]]) => {
      const rows = own.filter((row) => (row.rule || "") === rule && row[metric] !== null).sort((a, b) => a.m - b.m);
      return traceFrom(
        config, rows.length ? [...rows, ...whole] : [], "m", metric, study, { variant: null, label, symbol, dash },
      );
    });
    return {
      traces: traces.filter((t) => t.x.length), ticks: true, x: "dictionary size m (latents)",
      y: study.measures[metric],
      layout: { showlegend: true, legend: { orientation: "h", y: -0.2 } },
    };
  };
  return new Chart({ title: "Pruning rules", selects, log: { x: true, y: true }, draw });
}

// A line for each run, of curves with columns x and one of `measures`.
function byRun(study, title, curves, x, xText, measures, log) {
  if (!curves.length) return null;
  const panels = [...new Set(curves.map((curve) => panelOf(study.known.get(curve.configuration))))];
  const selects = {
    measure: { label: "Show", options: Object.entries(measures) },
    panel: {
      label: "SAEs", options: panels.map((panel) => [panel, panelText(panel)]),
      value: most(curves.map((curve) => panelOf(study.known.get(curve.configuration)))),
    },
  };
  const draw = ({ measure, panel }) => {
    const traces = curves.filter((curve) => panelOf(study.known.get(curve.configuration)) === panel).map((curve) => {
      const config = study.known.get(curve.configuration);
      const { colour, dash, alpha } = config.look;
      const positive = (v) => (log && v <= 0 ? null : v);
      return {
        variant: config.variant, label: `${config.name}: ${curve.run}`, colour, dash, alpha, markers: false,
        width: 1.3, x: curve[x], y: curve[measure].map(positive),
      };
    });
    return { traces, x: xText, y: measures[measure] };
  };
  return new Chart({ title, selects, log: { x: Boolean(log), y: true }, draw });
}

function costs(study) {
  if (!study.costs.length) return null;
  const draw = () => {
    const spent = new Map(study.costs.map((cost) => [cost.run, cost]));
    const traces = [...grouped(study.configs, (config) => config.like).values()].map((configs) => {
      const points = configs.flatMap(
        (config) => config.runs.filter(([run]) => spent.has(run)).map(
          ([run]) => ({ run, config, cost: (1e6 * spent.get(run).seconds) / spent.get(run).tokens })
        )
      );
      const { colour, symbol, alpha } = configs[0].look;
      const custom = points.map((p) => [
        p.run, `${p.config.name}, d_sae ${p.config.d_sae}, ${p.config.sparsity}`,
        `${shown(p.cost)} s per million tokens`,
      ]);
      return {
        variant: configs[0].variant, label: configs[0].name, colour, symbol, alpha, line: false,
        x: points.map((p) => p.config.d_sae), y: points.map((p) => p.cost), custom,
      };
    });
    return {
      traces, ticks: true, x: "dictionary size d_sae (latents)", y: "seconds per million tokens",
      note: "An SAE's own time in its training steps, without reading batches.",
    };
  };
  return new Chart({ title: "Cost of training", log: { x: true, y: true }, draw });
}
