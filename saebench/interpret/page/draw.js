"use strict";
// Elements, numbers, tokens and charts. Text only ever enters the page as text: nothing here reads HTML.

const SVG = "http://www.w3.org/2000/svg";
const HIDDEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu; // characters that would not be seen
const NAMED = { "\n": "↵", "\t": "⇥", "\r": "␍", "\u007f": "␡" };

/** An element with attributes and children; a null child or attribute is left out. */
function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function drawn(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key.startsWith("--")) node.style.setProperty(key, value);
    else node.setAttribute(key, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null));
  return node;
}

/** A number to three digits, or a dash; `short` leaves out zeros at its end. */
function number(value, short = false) {
  if (value === null || !Number.isFinite(value)) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size >= 1000 && size < 1e6) return Math.round(value).toLocaleString("en");
  if (size < 1e-3 || size >= 1e6) return value.toExponential(1).replace("e-", "e−").replace("e+", "e");
  return short ? String(Number(value.toPrecision(3))) : value.toPrecision(3);
}

/** A power of ten. */
function power(exponent) {
  const digits = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
  return exponent === 0 ? "1" : `10${Array.from(String(exponent), (digit) => digits[digit]).join("")}`;
}

/** A share as a percentage. */
function percent(share) {
  return Number.isFinite(share) ? `${number(share * 100, true)}%` : "–";
}

/** A token's text with what would not be seen made visible. */
function visible(text) {
  const shown = text.replace(HIDDEN, (character) => {
    const code = character.codePointAt(0);
    if (NAMED[character]) return NAMED[character];
    return code < 32 ? String.fromCodePoint(0x2400 + code) : `‹${code.toString(16).toUpperCase().padStart(4, "0")}›`;
  });
  return shown === "" ? "∅" : shown;
}

/** A token on its own: spaces at its ends as marks. A click looks for latents of the same token. */
function chip(text, onclick) {
  const shown = visible(text).replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));
  const parts = shown.split(/([␣↵⇥]+)/).filter(Boolean);
  const nodes = parts.map((part) => (/^[␣↵⇥]/.test(part) ? element("i", {}, part) : part));
  const title = `Find latents of ${JSON.stringify(text)}`;
  return onclick
    ? element("button", { type: "button", class: "chip", title, onclick }, element("bdi", {}, nodes))
    : element("bdi", { class: "chip" }, nodes);
}

/** A bar chart of counts; `ticks` below it and `marks`, lines across it, are [place between 0 and 1, label]. */
function bars(counts, { name, titles, ticks, marks = [] }) {
  const most = Math.max(1, ...counts);
  const gap = Math.min(0.1, 0.002 * counts.length);
  const columns = counts.map((count, i) => {
    const high = count ? Math.max(1.5, (100 * count) / most) : 0;
    const box = { x: i + gap / 2, width: 1 - gap, y: 100 - high, height: high };
    const cover = { class: "cover", x: i, width: 1, y: 0, height: 100 };
    return drawn("g", {}, drawn("title", {}, titles[i]), drawn("rect", cover), drawn("rect", box));
  });
  const lines = marks.map(([at, label]) => {
    const line = { d: `M${at * counts.length} 0V100`, "vector-effect": "non-scaling-stroke" };
    return drawn("g", { class: "mark" }, drawn("title", {}, label), drawn("path", line));
  });
  const box = { viewBox: `0 0 ${counts.length} 100`, preserveAspectRatio: "none", role: "img", "aria-label": name };
  const labels = ticks.map(([at, label]) => element("span", { "--at": at }, label));
  return element("div", { class: "chart" }, drawn("svg", box, columns, lines), element("div", { class: "ticks" }, labels));
}

/** Counts of finite values in n equal bins between two ends. */
function binned(values, low, high, n) {
  const counts = new Array(n).fill(0);
  for (const value of values) {
    if (Number.isFinite(value)) counts[Math.min(n - 1, Math.max(0, Math.floor(((value - low) / (high - low)) * n)))]++;
  }
  return counts;
}
