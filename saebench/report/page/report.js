"use strict";
// The page from its data: a section for each experiment, then all tables, pictures of other figures, environments.

const DATA = JSON.parse(document.getElementById("data").textContent);
const main = document.querySelector("main");
const contents = document.getElementById("contents");

function section(id, title, ...children) {
  contents.append(make("li", {}, make("a", { href: `#${id}` }, title)));
  const node = make(
    "section", { id, "aria-labelledby": `${id}-title` }, make("h2", { id: `${id}-title` }, title),
    ...children.filter(Boolean),
  );
  main.append(node);
  return node;
}

// What is behind a run, in a dialog.
function openRun(run) {
  const { config = {}, command = "", environment = {} } = DATA.runs[run] || {};
  const known = Object.keys(config).length > 0;
  const columns = (values) => ({ key: Object.keys(values), value: Object.values(values) });
  const dialog = document.getElementById("run");
  dialog.replaceChildren(
    make("button", { type: "button", class: "close", onclick: () => dialog.close() }, "Close"),
    make("h2", { id: "run-title" }, run),
    known ? null : make("p", {}, "Its folder is not among these outputs, so nothing more is known of it here."),
    known ? make("h3", {}, "Command") : null,
    known ? (command ? make("pre", {}, command) : make(
      "p", {}, "Made with options outside conf/; its config is below.",
    )) : null,
    known ? make("h3", {}, "Config") : null,
    known ? new SortedTable(`Config of ${run}`, columns(config)).node : null,
    known ? make("h3", {}, "Environment") : null,
    known ? new SortedTable(`Environment of ${run}`, columns(environment)).node : null,
  );
  dialog.showModal();
}

function runButton(run) {
  return make("button", { type: "button", class: "run", onclick: () => openRun(run) }, run);
}

function claimDetails(claim, i) {
  const verdict = make("b", { class: `verdict ${claim.verdict}` }, claim.verdict);
  const content = () => {
    const chart = forest(claim);
    const percent = claim.unit === "relative";
    const effect = (value) => (value !== null && percent ? `${shown(100 * value)} %` : shown(value));
    const findings = new SortedTable(`Findings of ${claim.id}`, claim.findings, { effect, low: effect, high: effect });
    const runs = folded(
      `${claim.runs.length} runs behind it`,
      () => make("p", {}, ...claim.runs.flatMap((run) => [runButton(run), " "])),
    );
    return [make("p", { class: "reason" }, claim.reason), chart?.node, findings.node, runs].filter(Boolean);
  };
  return folded([verdict, ` ${claim.id}: ${claim.text}`], content, { class: "claim", id: `claim-${i}` });
}

function configTable(study) {
  const rows = study.rows.filter((row) => row.view === "full");
  const names = Object.keys(study.measures);
  const columns = {
    SAE: rows.map((r) => r.config.name), d_sae: rows.map((r) => r.config.d_sae),
    sparsity: rows.map((r) => r.config.sparsity), mode: rows.map((r) => r.mode), n: rows.map((r) => r.runs),
  };
  const cells = {};
  for (const name of names) {
    columns[name] = rows.map((row) => row[name]);
    cells[name] = (value, i) => (
      rows[i][`${name}_sd`] ? `${shown(value)} ± ${shown(Number(rows[i][`${name}_sd`].toPrecision(2)))}` : shown(value)
    );
  }
  return new SortedTable(`Configurations of ${study.title}`, columns, cells, study.heads).node;
}

function runTable(study) {
  const spent = new Map(study.costs.map((cost) => [cost.run, cost]));
  const rows = study.configs.flatMap(
    (config) => config.runs.map(([run, seed, order]) => ({ run, config, seed, order }))
  );
  const columns = {
    run: rows.map((r) => r.run), SAE: rows.map((r) => r.config.name), d_sae: rows.map((r) => r.config.d_sae),
    sparsity: rows.map((r) => r.config.sparsity),
    seed: rows.map((r) => r.seed), order_seed: rows.map((r) => r.order),
    tokens: rows.map((r) => spent.get(r.run)?.tokens ?? null), "seconds of training": rows.map(
      (r) => spent.get(r.run)?.seconds ?? null
    ),
  };
  return new SortedTable(`Runs of ${study.title}`, columns, { run: runButton }).node;
}

function studyNodes(study) {
  const made = [
    againstL0(study), study.rows.some(isCut) || new Set(
      study.configs.map((c) => c.d_sae)
    ).size > 1 ? againstSize(study) : null, pruningRules(study),
    byRun(
      study, "Training", study.curves, "tokens", "training tokens",
      { fvu: "FVU of the batch", loss: "loss", l0: "L0", dead: "dead latents" },
    ),
    byRun(
      study, "Latents by rank", study.latents, "rank", "rank of the latent",
      { energy: "energy E[z²]", frequency: "firing frequency" }, true,
    ),
    costs(study),
  ].filter(Boolean);
  const lacking = [
    study.rows.some(isCut) ? "" : "views", study.curves.length ? "" : "curves", study.latents.length ? "" : "latents",
  ].filter(Boolean);
  return [
    make("h3", {}, study.title), make("div", { class: "grid" }, ...made.map((chart) => chart.node)),
    lacking.length ? make(
      "p", { class: "note" }, `Without tables/${lacking.join(".csv, tables/")}.csv there are no figures of them.`,
    ) : null,
    make("h3", {}, "Configurations, on held-out tokens of typical norm: mean ± sd over seeds"), configTable(study),
    folded(
      `Runs: configs and commands (${study.configs.reduce((n, config) => n + config.runs.length, 0)})`,
      () => runTable(study),
    ),
  ].filter(Boolean);
}

function environments(runs) {
  const known = runs.filter((run) => DATA.runs[run]?.environment);
  if (!known.length) return null;
  const groups = [...grouped(known, (run) => JSON.stringify(DATA.runs[run].environment)).values()];
  const keys = [...new Set(groups.flatMap((group) => Object.keys(DATA.runs[group[0]].environment)))];
  const columns = {
    runs: groups.map((group) => group.length),
    ...Object.fromEntries(keys.map((key) => [key, groups.map((g) => DATA.runs[g[0]].environment[key] ?? null)])),
  };
  return folded(
    `Environment (${groups.length === 1 ? "one" : groups.length})`,
    () => new SortedTable("Environments", columns).node,
  );
}

function costText(studies) {
  const all = studies.flatMap((study) => study.costs);
  if (!all.length) return null;
  const hours = all.reduce((sum, cost) => sum + cost.seconds, 0) / 3600;
  const tokens = all.reduce((sum, cost) => sum + cost.tokens, 0);
  return make(
    "p", { class: "note" },
    `Cost: ${shown(hours)} hours in training steps, ${shown(tokens)} tokens, over ${all.length} SAEs.`,
  );
}

DATA.sections.forEach((one, i) => {
  const studies = DATA.studies.map((study) => new Study(study, one.runs)).filter((study) => study.configs.length);
  const claims = DATA.claims.map((claim, j) => [claim, j]).filter(([claim]) => claim.experiment === one.name);
  section(
    `section-${i}`, one.name,
    one.commands.length ? make("pre", {}, one.commands.join("\n")) : null, costText(studies), environments(one.runs),
    claims.length ? make(
      "h3", {}, "What was found for each claim",
    ) : null, ...claims.map(([claim, j]) => claimDetails(claim, j)),
    ...studies.flatMap(studyNodes),
  );
});

if (DATA.extras.length) {
  const cells = { run: runButton, run_a: runButton, run_b: runButton };
  const note = (extra) => (extra.left_out ? make(
    "p", { class: "note" }, `${extra.left_out} more rows are in tables/${extra.name}.csv.`,
  ) : null);
  section(
    "tables",
    "Tables",
    ...DATA.extras.map((extra) => folded(
      `${extra.title} (${extra.name}.csv)`,
      () => [new SortedTable(extra.title, extra.columns, cells).node, note(extra)].filter(Boolean),
    )),
  );
}

if (DATA.pictures.shown.length) {
  const left = DATA.pictures.left_out;
  const picture = ({ name, url }) => make(
    "figure", {}, make("figcaption", {}, name), make("img", { src: url, alt: `The figure ${name}`, loading: "lazy" }),
  );
  section(
    "pictures",
    "Other figures",
    make("div", { class: "pictures grid" }, ...DATA.pictures.shown.map(picture)),
    left.length ? make(
      "p", { class: "note" }, `For want of room not here, but in figures/: ${left.join(", ")}.`,
    ) : null,
  );
}

// A link to a claim opens it.
function follow() {
  const target = location.hash.startsWith("#claim-") ? document.getElementById(location.hash.slice(1)) : null;
  if (target) { target.reveal(); target.scrollIntoView(); }
}
addEventListener("hashchange", follow);
for (
  const link of document.querySelectorAll("table.claims a")
) link.addEventListener("click", () => setTimeout(follow));
follow();
