"use strict";
// The page's state lives in its address, so that every link can be shared: #latent=123 and, where they differ from what is
// usual, view, q (the search), sort, rising, only, contexts and align.

const $ = (id) => document.getElementById(id);
const NARROW = matchMedia("(max-width: 820px)");
const WRITE_AFTER = 200; // ms; browsers limit how often an address may change
const USUAL = { view: "", latent: null, q: "", sort: "importance", rising: null, only: "active", contexts: "all", align: null };
const views = new Map(); // name -> promise of a View
let site = { run: "", views: [] };
let state = { ...USUAL };
let view = null;
let listed = ""; // what the list was last made from
let writing = 0;
let turn = 0; // counts what was asked for, so that a late answer is dropped
const list = new List($("list"), (latent) => change({ latent }, true));

/** The state that an address asks for. */
function parse(hash) {
  const given = Object.fromEntries(new URLSearchParams(hash.slice(1)));
  const known = { ...USUAL };
  for (const key of ["view", "q", "sort", "only", "contexts"]) known[key] = given[key] ?? USUAL[key];
  if (/^\d+$/.test(given.latent ?? "")) known.latent = Number(given.latent);
  for (const key of ["rising", "align"]) if (given[key]) known[key] = given[key] === "true";
  return known;
}

/** The address of a state. */
function address(wanted) {
  const changed = Object.entries(wanted).filter(([key, value]) => value !== USUAL[key] && value !== null);
  return `#${new URLSearchParams(changed.filter(([key]) => key !== "view" || site.views.length > 1))}`;
}

/** Change the state; `push` makes a step that the browser's Back undoes. */
function change(changes, push = false) {
  if (push) write();
  state = { ...state, ...changes };
  if (push) {
    history.pushState(null, "", address(state));
    $("detail").scrollTop = 0; // but moving by keys stays in place, to compare
  } else {
    clearTimeout(writing);
    writing = setTimeout(write, WRITE_AFTER);
  }
  render();
}

/** Bring the address up to date. */
function write() {
  clearTimeout(writing);
  history.replaceState(null, "", address(state));
}

async function render() {
  const mine = ++turn;
  const name = site.views.some((one) => one.name === state.view) ? state.view : site.views[0].name;
  state.view = name;
  if (!views.has(name)) views.set(name, read(`${name}/index.js`).then((index) => new View(name, index)));
  try {
    const next = await views.get(name);
    if (mine !== turn) return;
    if (next !== view) useView(next);
    showList();
    const page = await detail(mine);
    if (page && mine === turn) $("detail").replaceChildren(...page);
  } catch (error) {
    $("detail").replaceChildren(element("p", { class: "error", role: "alert" }, error.message));
    if (!(error instanceof Error) || !error.message.includes("is missing")) throw error;
  }
}

/** Offer what a view can be sorted and filtered by. */
function useView(next) {
  view = next;
  view.label = site.views.find((one) => one.name === view.name).label;
  const option = ({ key, label }) => element("option", { value: key }, label);
  $("view").value = view.name;
  $("sort").replaceChildren(...view.sorts.map(option));
  $("only").replaceChildren(...view.filters.map(option));
}

/** Bring the list up to date with the state. */
function showList() {
  const sort = view.sorts.find(({ key }) => key === state.sort) ?? view.sorts.find(({ key }) => key === USUAL.sort);
  const filter = view.filters.find(({ key }) => key === state.only) ?? view.filters[0];
  const rising = state.rising ?? Boolean(sort.rising);
  const asked = JSON.stringify([view.name, sort.key, rising, filter.key, state.q]);
  list.selected = state.latent;
  if (asked === listed) return list.select(state.latent);
  listed = asked;
  const latents = view.order(sort, rising, filter, state.q.trim());
  list.show(latents, (latent) => rowOf(latent, sort));
  $("sort").value = sort.key;
  $("only").value = filter.key;
  $("only").disabled = Boolean(state.q.trim()); // a search looks at all latents
  $("direction").textContent = rising ? "↑" : "↓";
  $("direction").title = rising ? "Smallest first" : "Largest first";
  $("direction").setAttribute("aria-label", $("direction").title);
  if ($("search").value !== state.q) $("search").value = state.q;
  const noun = latents.length === 1 ? "latent" : "latents";
  $("count").textContent = latents.length ? `${number(latents.length)} ${noun}` : "No latent found";
}

/** A row of the list: number, tokens and the value sorted by; below, its explanation or what it promotes. */
function rowOf(latent, sort) {
  const by = sort.key === "latent" ? view.sorts[1] : sort;
  const value = by.values[latent];
  const top = texts(view.top[latent], view.vocabulary).map((text) => chip(text));
  const below = view.explained.has(latent)
    ? view.explained.get(latent)
    : ["→ ", ...texts(view.promoted[latent], view.vocabulary).slice(0, 6).map((text) => chip(text))];
  return [
    element("span", { class: "number" }, String(latent)),
    element("span", { class: "tokens" }, top.length ? top : element("span", { class: "faint" }, "never active")),
    element("span", { class: "figure", title: by.label }, by.key === "frequency" ? percent(value) : number(value)),
    element("span", { class: "below" }, below),
  ];
}

/** What to show beside the list: the chosen latent, else the overview; null if it was asked for something else meanwhile. */
async function detail(mine) {
  const { latent } = state;
  document.body.dataset.pane = latent === null ? "list" : "detail";
  document.title = [latent === null ? "Latents" : `Latent ${latent}`, view.label, site.run].filter(Boolean).join(" · ");
  if (latent === null) return overview(view);
  if (latent >= view.size) {
    const message = `There is no latent ${latent}: this view has ${number(view.size)}, counted from 0.`;
    return [element("p", { class: "error", role: "alert" }, message)];
  }
  const found = await view.latent(latent);
  if (mine !== turn) return null;
  const following = list.after(1);
  if (following !== undefined) recall(view.file(following)); // read ahead
  const options = { contexts: state.contexts, align: state.align ?? !NARROW.matches };
  return latentPage(view, latent, found, options, lookFor, (changes) => change(changes));
}

/** Search, and on a narrow screen go back to the list. */
function lookFor(q) {
  change(NARROW.matches ? { q, latent: null } : { q }, true);
}

function move(step) {
  const latent = list.after(step);
  if (latent !== undefined) change({ latent });
}

const KEYS = {
  ArrowDown: () => move(1),
  ArrowUp: () => move(-1),
  PageDown: () => move(list.page()),
  PageUp: () => move(-list.page()),
  Home: () => move(-Infinity),
  End: () => move(Infinity),
  j: () => move(1),
  k: () => move(-1),
  r: () => list.latents.length && change({ latent: list.latents[Math.floor(Math.random() * list.latents.length)] }, true),
  c: () => change({ contexts: { all: "top", top: "quantiles", quantiles: "all" }[state.contexts] ?? "all" }),
  a: () => change({ align: !(state.align ?? !NARROW.matches) }),
  "/": () => $("search").select(),
  Escape: () => change({ latent: null }, true),
};

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input, select");
  if (typing && event.key === "Escape") return event.target.blur();
  const moves = event.target.id === "search" && ["ArrowDown", "ArrowUp"].includes(event.key);
  if (!(event.key in KEYS) || (typing && !moves)) return;
  event.preventDefault();
  KEYS[event.key]();
}

async function start() {
  try {
    site = await read("views.js");
  } catch (error) {
    return $("detail").replaceChildren(element("p", { class: "error", role: "alert" }, error.message));
  }
  $("run").textContent = site.run;
  $("view").replaceChildren(...site.views.map(({ name, label }) => element("option", { value: name }, label)));
  $("views").hidden = site.views.length < 2;
  $("view").addEventListener("change", (event) => change({ view: event.target.value }, true));
  $("search").addEventListener("input", (event) => change({ q: event.target.value }));
  $("sort").addEventListener("change", (event) => change({ sort: event.target.value, rising: null }));
  $("only").addEventListener("change", (event) => change({ only: event.target.value }));
  $("direction").addEventListener("click", () => change({ rising: $("direction").textContent === "↓" }));
  $("home").addEventListener("click", (event) => (event.preventDefault(), change({ latent: null }, true)));
  document.addEventListener("keydown", pressed);
  NARROW.addEventListener("change", render);
  addEventListener("hashchange", () => {
    clearTimeout(writing); // it would write over the step gone to
    if (location.hash === address(state)) return;
    state = parse(location.hash);
    render();
  });
  state = parse(location.hash);
  render();
}

start();
