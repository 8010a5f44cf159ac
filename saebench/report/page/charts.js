"use strict";
// A chart in a card: selects, log axes, variants to toggle, its points as a table; drawn when it comes into sight.

const dark = matchMedia("(prefers-color-scheme: dark)");
const charts = [];

// Plotly reads some markup in text.
function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

// The same hue, light enough for a dark page.
function visible(colour) {
  if (!dark.matches || printing) return colour;
  const parts = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  const light = (0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]) / 255;
  const share = Math.max(0, 0.5 - light);
  return `rgb(${parts.map((p) => Math.round(p + (255 - p) * share)).join(",")})`;
}

let printing = false;

// Plotly's script is read when the first chart comes into sight, as it takes longer than the rest of the page.
function needPlotly() {
  if (typeof Plotly !== "undefined") return;
  document.head.append(make("script", {}, document.getElementById("library").textContent));
}

function layoutOf(chart, x, y) {
  const style = getComputedStyle(document.body);
  const ink = printing ? "#000" : style.color;
  const line = printing ? "#ccc" : style.getPropertyValue("--line").trim();
  const axis = (title, log) => ({
    title: { text: plain(title), standoff: 8 }, type: log ? "log" : "linear", gridcolor: line, linecolor: ink,
    zeroline: false, automargin: true, exponentformat: log ? "power" : "SI", ...(log ? { nticks: 6 } : {}),
  });
  return {
    margin: { l: 56, r: 12, t: 8, b: 44 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: ink, size: 12 }, hovermode: "closest", showlegend: false, hoverlabel: {
      align: "left", font: { size: 12 },
    },
    xaxis: axis(x, chart.log.x), yaxis: axis(y, chart.log.y),
  };
}

// Ticks at the values themselves, such as sizes of dictionaries, as far as they are apart.
function ticksAt(values) {
  const kept = [];
  for (const value of [...new Set(values)].sort((a, b) => a - b)) {
    if (!kept.length || value > 1.4 * kept.at(-1)) kept.push(value);
  }
  return { tickmode: "array", tickvals: kept, ticktext: kept.map(shown) };
}

// `spec`: title, selects {name: {label, options: [[value, text]], value}}, log {x, y}, and draw(chosen) which returns
// {traces, x, y, ticks (whether x is labelled at its values), layout}.
// A trace has `variant` and `label`, and for every point `custom`, the lines of its hover text.
class Chart {
  constructor(spec) {
    this.spec = spec;
    this.log = { x: false, y: false, ...spec.log };
    this.off = new Set();
    this.chosen = {};
    this.plot = make("div", { class: "plot", role: "img", style: spec.height ? `height: ${spec.height}px` : null });
    this.toggles = make("span", { role: "group", "aria-label": "Variants", class: "tools", style: "margin: 0" });
    this.tools = make(
      "div", { class: "tools" }, ...this.selects(),
      ...(spec.axes === false ? [] : ["x", "y"].map((a) => this.axis(a))),
    );
    this.note = make("p", { class: "note" });
    const points = folded("Points as a table", () => (this.drawn ? this.table().node : this.draw()));
    this.points = points;
    this.node = make(
      "div", { class: "card" }, make("h4", {}, spec.title), this.tools, this.toggles, this.plot, this.note, points,
    );
    this.drawn = false;
    charts.push(this);
    sight.observe(this.node);
  }

  selects() {
    return Object.entries(this.spec.selects || {}).map(([name, { label, options, value }]) => {
      this.chosen[name] = value ?? options[0]?.[0];
      const choose = (event) => { this.chosen[name] = event.target.value; this.draw(); };
      const select = make(
        "select",
        { onchange: choose },
        ...options.map(([v, text]) => make(
          "option", { value: v, selected: String(v) === String(this.chosen[name]) }, text,
        )),
      );
      return options.length > 1 ? make("label", {}, label, select) : null;
    }).filter(Boolean);
  }

  axis(name) {
    const press = (event) => {
      this.log[name] = !this.log[name];
      event.target.setAttribute("aria-pressed", this.log[name]);
      this.draw();
    };
    return make("button", { type: "button", "aria-pressed": String(this.log[name]), onclick: press }, `log ${name}`);
  }

  toggle(variant, colour) {
    const change = (event) => {
      if (event.target.checked) this.off.delete(variant); else this.off.add(variant);
      this.draw();
    };
    const box = make("input", { type: "checkbox", checked: !this.off.has(variant), onchange: change });
    const swatch = make("span", { class: "swatch" });
    swatch.style.background = visible(colour);
    return make("label", {}, box, swatch, DATA.looks[variant] || variant);
  }

  draw() {
    needPlotly();
    this.drawn = true;
    const made = this.spec.draw(this.chosen);
    this.made = made;
    const variants = new Map(made.traces.filter((t) => t.variant).map((t) => [t.variant, t.colour]));
    const focused = [...this.toggles.querySelectorAll("input")].indexOf(document.activeElement);
    this.toggles.replaceChildren(
      ...(variants.size > 1 ? [...variants].map(([v, colour]) => this.toggle(v, colour)) : [])
    );
    if (focused >= 0) this.toggles.querySelectorAll("input")[focused]?.focus();
    this.traces = made.traces.filter((trace) => !this.off.has(trace.variant));
    const layout = { ...layoutOf(this, made.x, made.y), ...made.layout };
    layout.xaxis = { ...layout.xaxis, ...(made.ticks ? ticksAt(made.traces.flatMap((trace) => trace.x)) : {}) };
    layout.yaxis = { ...layoutOf(this, made.x, made.y).yaxis, ...made.layout?.yaxis };
    Plotly.react(
      this.plot,
      this.traces.map(traceOf),
      layout,
      {
        responsive: true, displaylogo: false, displayModeBar: "hover",
        modeBarButtonsToRemove: ["lasso2d", "select2d"],
        toImageButtonOptions: { format: "svg", filename: this.spec.title },
      },
    );
    this.plot.setAttribute(
      "aria-label",
      `${this.spec.title}: ${made.y} against ${made.x}, ${this.traces.length} series; a table of its points follows`,
    );
    this.note.textContent = made.traces.length ? made.note || "" : made.empty || "Nothing was measured for this.";
    if (this.points.childElementCount > 1) this.points.lastChild.remove();
    if (this.points.open) this.points.append(this.table().node);
  }

  table() {
    const columns = { series: [], [this.made.x]: [], [this.made.y]: [] };
    for (const trace of this.traces || []) {
      trace.x.forEach((x, i) => {
        columns.series.push(trace.label);
        columns[this.made.x].push(x);
        columns[this.made.y].push(trace.y[i]);
      });
    }
    return new SortedTable(`Points of ${this.spec.title}`, columns);
  }
}

function traceOf(trace) {
  const colour = visible(trace.colour);
  const markers = trace.markers !== false;
  const mode = [trace.line === false ? "" : "lines", markers ? "markers" : ""].filter(Boolean).join("+") || "none";
  const bars = trace.sd?.some((v) => v) ? {
    error_y: { type: "data", array: trace.sd, thickness: 1, width: 2, color: colour },
  } : {};
  const inside = trace.open ? {
    color: printing || !dark.matches ? "#fff" : "#1c1f25", line: { color: colour, width: 1.5 },
  } : { color: colour };
  return {
    type: "scatter", mode, x: trace.x, y: trace.y, name: plain(trace.label), opacity: trace.alpha ?? 1,
    line: { color: colour, dash: trace.dash || "solid", width: trace.width || 1.6 },
    marker: { symbol: trace.symbol || "circle", size: trace.size || 7, ...inside },
    text: trace.custom ? trace.custom.map((lines) => lines.map(plain).join("<br>")) : undefined,
    hovertemplate: `${trace.custom ? "%{text}" : `${plain(trace.label)}<br>%{x:.4g}, %{y:.4g}`}<extra></extra>`,
    ...bars, ...trace.own,
  };
}

const sight = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const chart = charts.find((one) => one.node === entry.target);
    if (entry.isIntersecting && !chart.drawn) chart.draw();
  }
}, { rootMargin: "300px" });

function redraw(all) {
  for (const chart of charts) if (chart.drawn || (all && chart.node.offsetParent !== null)) chart.draw();
}
dark.addEventListener("change", () => redraw(false));
addEventListener("beforeprint", () => { printing = true; redraw(true); });
addEventListener("afterprint", () => { printing = false; redraw(false); });
