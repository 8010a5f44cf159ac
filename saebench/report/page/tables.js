"use strict";
// Elements, and tables that sort and filter. Text goes into the page as text nodes alone.

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function shown(value) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return Math.abs(value) >= 10000 ? value.toLocaleString("en") : String(value);
  return String(Number(value.toPrecision(4)));
}

// Missing values last in both directions, numbers by size, text by its numbers and letters.
function compare(a, b, direction) {
  const missing = (v) => v === null || v === undefined || v === "";
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  if (typeof a === "number" && typeof b === "number") return direction * (a - b);
  return direction * String(a).localeCompare(String(b), "en", { numeric: true });
}

// A table of columns {name: [values]}; `cells` says how the values of a column are shown, if not as text.
class SortedTable {
  constructor(title, columns, cells = {}, heads = {}) {
    this.title = title;
    this.columns = columns;
    this.cells = cells;
    this.names = Object.keys(columns);
    this.size = this.names.length ? columns[this.names[0]].length : 0;
    this.order = Array.from({ length: this.size }, (_, i) => i);
    this.text = this.order.map((i) => this.names.map((name) => shown(columns[name][i])).join(" ").toLowerCase());
    this.sorted = { name: null, direction: 1 };
    this.search = make(
      "input",
      {
        type: "search", placeholder: "Filter, such as topk 4096", "aria-label": `Filter ${title}`,
        oninput: () => this.fill(),
      },
    );
    this.count = make("span", { class: "count", role: "status" });
    this.heads = this.names.map((name) => this.head(name, heads[name] || name));
    this.body = make("tbody");
    const table = make(
      "table", {}, make("caption", { hidden: true }, title), make("thead", {}, make("tr", {}, ...this.heads)),
      this.body,
    );
    const tools = make("div", { class: "tools" }, this.search, this.count);
    this.node = make(
      "div", {}, tools, make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title }, table),
    );
    this.fill();
  }

  numeric(name) {
    return this.columns[name].every((v) => v === null || typeof v === "number");
  }

  head(name, text) {
    const button = make("button", { type: "button", onclick: () => this.sort(name) }, text);
    return make("th", { scope: "col", class: this.numeric(name) ? "figure" : null }, button);
  }

  sort(name) {
    const again = this.sorted.name === name;
    this.sorted = { name, direction: again ? -this.sorted.direction : 1 };
    const values = this.columns[name];
    this.order.sort((i, j) => compare(values[i], values[j], this.sorted.direction) || i - j);
    this.heads.forEach((head, i) => {
      if (this.names[i] !== name) head.removeAttribute("aria-sort");
      else head.setAttribute("aria-sort", this.sorted.direction > 0 ? "ascending" : "descending");
    });
    this.fill();
  }

  // Every word must be found in a row.
  fill() {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = this.order.filter((i) => words.every((word) => this.text[i].includes(word)));
    this.body.replaceChildren(...rows.map((i) => make("tr", {}, ...this.names.map((name) => this.cell(name, i)))));
    this.count.textContent = rows.length === this.size ? `${this.size} rows` : `${rows.length} of ${this.size} rows`;
  }

  cell(name, i) {
    const value = this.columns[name][i];
    const inside = this.cells[name] ? this.cells[name](value, i) : shown(value);
    const long = typeof value === "string" && value.length > 60;
    return make("td", { class: typeof value === "number" ? "figure" : long ? "long" : null }, inside);
  }
}

// A part that is made when it is opened first.
function folded(summary, content, attributes = {}) {
  const details = make("details", attributes, make("summary", {}, ...[summary].flat()));
  const open = () => {
    if (details.open && details.childElementCount === 1) details.append(...[content()].flat().filter(Boolean));
  };
  details.addEventListener("toggle", open);
  details.reveal = () => { details.open = true; open(); };
  return details;
}
