"use strict";
// One latent: its numbers, scores, histogram, tokens and contexts.

const BANDS = [0.95, 0.75, 0.5, 0.25, 0]; // quantiles of activation at which the sample is parted
const FAINTEST = 0.14; // share of the full shade that the smallest activation gets

/** Everything about latent i; `search` looks for a text, `set` changes the state of the page. */
function latentPage(view, i, latent, options, search, set) {
  return [
    heading(view, i, latent, () => set({ latent: null })),
    element("div", { class: "cards" }, statistics(view, i, latent), histogramCard(view, latent), scoreCard(latent)),
    element(
      "div",
      { class: "cards" },
      tokenCard("Promotes", "promoted", latent, search),
      tokenCard("Suppresses", "suppressed", latent, search),
    ),
    contexts(view.max[i], latent, options, set),
  ];
}

function heading(view, i, latent, leave) {
  const quotes = latent.explanations.map(([text, judge]) =>
    element("blockquote", {}, element("p", {}, text), element("footer", {}, judge)),
  );
  const back = element("button", { type: "button", id: "back", onclick: leave }, "‹ All latents");
  const label = { class: "tokens", "aria-label": "tokens of its largest activations" };
  const tokens = element("p", label, texts(view.top[i], view.vocabulary).map((text) => chip(text)));
  return element("div", { class: "heading" }, back, element("h2", {}, "Latent ", element("b", {}, String(i))), tokens, quotes);
}

function card(title, ...children) {
  return element("section", { class: "card" }, element("h3", {}, title), children);
}

function pairs(rows) {
  const nodes = rows.map(([name, value, title]) => [element("dt", { title }, name), element("dd", { title }, value)]);
  return element("dl", {}, nodes.flat());
}

function statistics(view, i, latent) {
  const share = view.frequency[i];
  const once = share > 0 ? `1 in ${number(Math.round(1 / share))} tokens` : "on no token";
  return card(
    "Activity",
    pairs([
      ["frequency", `${percent(share)}`, once],
      ["active on", `${number(latent.n_active)} tokens`, once],
      ["max activation", number(view.max[i]), null],
      ["mean activation", number(view.mean[i]), "over the tokens on which it is active"],
      ["mean rank", number(view.rank[i]), "its mean place among the active latents of a token, from 0, the strongest"],
      ["importance", number(view.importance[i]), "frequency × (mean activation)²"],
    ]),
  );
}

/** Activations in bins of their logarithm, from the first to the last bin that holds any. */
function histogramCard(view, latent) {
  const counts = latent.histogram;
  const edges = view.histogram_edges.slice(latent.histogram_from, latent.histogram_from + counts.length + 1);
  if (!counts.length) return card("Activations", element("p", { class: "none" }, "Never active."));
  const [low, high] = [edges[0], edges[counts.length]];
  const values = edges.map((edge) => number(2 ** edge, true));
  const titles = counts.map((count, j) => `${values[j]} to ${values[j + 1]}: ${number(count)} tokens`);
  const every = Math.max(1, Math.ceil((high - low) / 6));
  const ticks = [];
  for (let octave = Math.ceil(low / every) * every; octave <= high; octave += every) {
    ticks.push([(octave - low) / (high - low), number(2 ** octave, true)]);
  }
  if (ticks.length < 2) ticks.splice(0, 1, [0, values[0]], [1, values[counts.length]]);
  return card("Activations, log scale", bars(counts, { name: "Histogram of activations", titles, ticks }));
}

function scoreCard(latent) {
  if (!latent.scores.length) return null;
  const rows = latent.scores.map(([name, value, chance, n, broken]) => {
    const low = Math.min(0, value ?? 0, chance ?? 0);
    const at = (x) => `${((x - low) / (Math.max(1, value ?? 0) - low)) * 100}%`;
    const meter = element(
      "span",
      { class: "meter", "aria-hidden": "true" },
      value === null ? null : element("span", { class: "value", "--from": at(Math.min(0, value)), "--to": at(Math.max(0, value)) }),
      chance === null ? null : element("span", { class: "chance", "--at": at(chance) }),
    );
    const cells = [
      element("th", { scope: "row" }, name.replaceAll("_", " ")),
      element("td", {}, meter),
      element("td", { class: "figure value" }, number(value)),
      element("td", { class: "figure faint" }, number(chance, true)),
      element("td", { class: "figure faint", title: `${broken} of ${n} answers could not be used` }, broken ? `${n} − ${broken}` : number(n)),
    ];
    return element("tr", {}, cells);
  });
  const head = ["score", "", "value", "chance", "n"].map((name) => element("th", { scope: "col" }, name));
  return card("Scores", element("table", { class: "scores" }, element("thead", {}, element("tr", {}, head)), element("tbody", {}, rows)));
}

function tokenCard(title, which, latent, search) {
  const logits = latent[`${which}_logits`];
  const most = Math.max(...logits.map(Math.abs), 1e-12);
  const rows = texts(latent[which], latent.vocabulary).map((text, j) =>
    element(
      "li",
      { "--share": `${(Math.abs(logits[j]) / most) * 100}%` },
      chip(text, () => search(`"${text.trim()}"`)),
      element("span", { class: "figure" }, (logits[j] > 0 ? "+" : "−") + number(Math.abs(logits[j]))),
    ),
  );
  const list = rows.length ? element("ol", { class: `logits ${which}` }, rows) : element("p", { class: "none" }, "Not known.");
  return card(title, list);
}

/** The contexts, top ones first and then by quantile, with the choices of which and how. */
function contexts(max, latent, options, set) {
  const all = unpack(latent.contexts);
  const top = all.filter((context) => context.top);
  const sample = all.filter((context) => !context.top);
  const sections = [];
  if (options.contexts !== "quantiles") sections.push(["Largest activations", top]);
  if (options.contexts !== "top") sections.push(...banded(sample));
  const shown = sections.filter(([, found]) => found.length);
  const blocks = shown.map(([title, found]) => [
    element("h4", {}, title),
    element("ol", { class: options.align ? "contexts aligned" : "contexts" }, found.map((one) => contextRow(one, max, latent.vocabulary))),
  ]);
  const choices = [
    choice("Contexts", options.contexts, { all: `All ${all.length}`, top: "Largest", quantiles: "By quantile" }, (contexts) => set({ contexts })),
    choice("Lines", String(options.align), { true: "Aligned", false: "Wrapped" }, (align) => set({ align: align === "true" })),
  ];
  const held = all.some((context) => !context.shown) ? "◦ held out for scoring" : "";
  const none = blocks.length ? null : element("p", { class: "none" }, all.length ? "None of this kind." : "No context: it was never active.");
  return element("section", { class: "reading" }, element("div", { class: "choices" }, element("h3", {}, "Contexts"), element("span", { class: "note" }, held), choices), blocks, none);
}

/** A row of buttons of which one is chosen. */
function choice(name, chosen, labels, choose) {
  const buttons = Object.entries(labels).map(([key, label]) =>
    element("button", { type: "button", "aria-pressed": String(key === chosen), onclick: () => choose(key) }, label),
  );
  return element("div", { class: "choice", role: "group", "aria-label": name }, buttons);
}

/** Contexts as objects, from the columns that they are written in. */
function unpack(columns) {
  return columns.tokens.map((tokens, i) => {
    const acts = new Map();
    for (let j = 0; j < columns.acts[i].length; j += 2) acts.set(columns.acts[i][j], columns.acts[i][j + 1] / 1000);
    const names = ["top", "document", "block", "position", "centre", "shown"];
    const rest = Object.fromEntries(names.map((name) => [name, columns[name][i]]));
    return { ...rest, tokens, acts, quantile: columns.quantile[i] / 10000 };
  });
}

function banded(sample) {
  return BANDS.map((low, i) => {
    const high = i ? BANDS[i - 1] : 1.01;
    const name = `Quantiles ${low} to ${Math.min(high, 1)}`;
    return [name, sample.filter(({ quantile }) => quantile >= low && quantile < high)];
  });
}

/** One context: the activation at its centre, and its tokens shaded by their activation as a share of the largest, `max`. */
function contextRow(context, max, vocabulary) {
  const act = context.acts.get(context.centre) ?? 0;
  const held = context.shown ? "" : ", held out for scoring";
  const where = `quantile ${number(context.quantile)}, document ${context.document}, block ${context.block}, position ${context.position}${held}`;
  const spans = texts(context.tokens, vocabulary).map((text, j) => tokenSpan(text, context.acts.get(j) ?? 0, j === context.centre, max));
  const { centre } = context;
  const line = element(
    "div",
    { class: "text" },
    element("span", { class: "before" }, element("span", {}, spans.slice(0, centre))),
    spans[centre],
    element("span", { class: "after" }, spans.slice(centre + 1)),
  );
  const value = element("span", { class: "figure", "--share": `${Math.min(act, 1) * 100}%` }, number(act * max));
  return element("li", { title: where, class: context.shown ? "" : "held" }, value, line);
}

function tokenSpan(text, act, centre, max) {
  const shade = act > 0 ? `${(FAINTEST + (1 - FAINTEST) * Math.min(act, 1)) * 100}%` : null;
  const title = act > 0 ? `${JSON.stringify(text)}  ${number(act * max)}` : null;
  const kind = [act > 0 ? "active" : "", centre ? "centre" : ""].filter(Boolean).join(" ");
  return element("span", { class: kind || null, "--shade-share": shade, title }, visible(text));
}
