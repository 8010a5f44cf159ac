"use strict";
// What is seen before a latent is chosen: how often latents fire, and how each score is spread.

function overview(view) {
  const dead = view.size - view.active;
  const facts = pairs([
    ["latents", number(view.size), null],
    ["never active", `${number(dead)} (${percent(dead / view.size)})`, null],
    ["tokens seen", number(view.tokens), null],
    ["explained", number(view.explained.size), null],
  ]);
  const cards = [card("View", facts), frequencies(view), ...view.scores.map(spread)];
  return [element("div", { class: "heading" }, element("h2", {}, view.label)), element("div", { class: "cards" }, cards)];
}

/** How many latents fire how often, by the logarithm of their frequency. */
function frequencies(view) {
  const logs = Array.from(view.frequency, Math.log10).filter(Number.isFinite);
  if (!logs.length) return card("Frequency of latents", element("p", { class: "none" }, "No latent is ever active."));
  const low = Math.floor(logs.reduce((a, b) => Math.min(a, b), 0) - 1e-9);
  const n = -low * 8;
  const counts = binned(logs, low, 0, n);
  const share = (j) => percent(10 ** (low + (j * -low) / n));
  const titles = counts.map((count, j) => `${share(j)} to ${share(j + 1)} of tokens: ${number(count)} latents`);
  const ticks = Array.from({ length: 1 - low }, (_, j) => [j / -low, power(low + j)]);
  return card("Frequency of latents, log scale", bars(counts, { name: "Latents by frequency", titles, ticks }));
}

/** How a score is spread over the latents that have it, with its chance level. */
function spread({ name, values, chance }) {
  const found = Array.from(values).filter(Number.isFinite);
  if (!found.length) return null;
  const low = found.reduce((a, b) => Math.min(a, b), Math.min(0, chance ?? 0));
  const high = found.reduce((a, b) => Math.max(a, b), 1);
  const n = 30;
  const edge = (j) => number(low + ((high - low) * j) / n);
  const counts = binned(found, low, high, n);
  const titles = counts.map((count, j) => `${edge(j)} to ${edge(j + 1)}: ${number(count)} latents`);
  const marks = chance === null ? [] : [[(chance - low) / (high - low), `chance ${number(chance, true)}`]];
  const mean = found.reduce((a, b) => a + b, 0) / found.length;
  const note = `${number(found.length)} latents, mean ${number(mean)}` + (chance === null ? "" : `, chance ${number(chance, true)}`);
  const ticks = [0, 0.5, 1].map((at) => [at, number(low + (high - low) * at, true)]);
  const chart = bars(counts, { name: `Latents by ${name}`, titles, ticks, marks });
  return card(name, chart, element("p", { class: "note" }, note));
}
