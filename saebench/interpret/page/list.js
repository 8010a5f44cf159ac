"use strict";
// The list of latents: only the rows in sight exist.

const ROW = 50; // pixels, as in page.css
const TALLEST = 12e6; // pixels; browsers lose precision above, so longer lists scroll in larger steps

class List {
  /** `choose(latent)` is called for a click on a row; `row(latent)` makes its children. */
  constructor(scroller, choose) {
    this.scroller = scroller;
    this.rows = scroller.querySelector("#rows");
    this.spacer = scroller.querySelector("#spacer");
    this.latents = [];
    this.places = new Map();
    this.row = () => [];
    this.selected = null;
    scroller.addEventListener("scroll", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(scroller);
    this.rows.addEventListener("click", (event) => {
      const row = event.target.closest("[data-latent]");
      if (row) choose(Number(row.dataset.latent));
    });
  }

  /** Show these latents in this order. */
  show(latents, row) {
    this.latents = latents;
    this.places = new Map(latents.map((latent, i) => [latent, i]));
    this.row = row;
    this.height = Math.min(latents.length * ROW, TALLEST);
    this.spacer.style.height = `${this.height}px`;
    this.scroller.scrollTop = 0;
    this.select(this.selected);
  }

  /** Mark a latent (or none) and bring it into sight. */
  select(latent) {
    this.selected = latent;
    const at = this.places.get(latent);
    const seen = this.scroller.clientHeight / ROW;
    if (at !== undefined && seen > 0) {
      const first = this.first();
      if (at < first) this.scrollTo(at);
      else if (at > first + seen - 1) this.scrollTo(at - seen + 1);
    }
    this.draw();
  }

  /** The latent `step` places after the selected one; the first or last if none is, or at the ends. */
  after(step) {
    const at = this.places.get(this.selected);
    const next = at === undefined ? (step > 0 ? 0 : this.latents.length - 1) : at + step;
    return this.latents[Math.min(Math.max(next, 0), this.latents.length - 1)];
  }

  /** Rows that fit in sight. */
  page() {
    return Math.max(1, Math.floor(this.scroller.clientHeight / ROW) - 1);
  }

  /** Which place, with its fraction, stands at the upper edge. */
  first() {
    const room = this.height - this.scroller.clientHeight;
    return room > 0 ? (this.scroller.scrollTop / room) * (this.latents.length - this.scroller.clientHeight / ROW) : 0;
  }

  scrollTo(at) {
    const places = this.latents.length - this.scroller.clientHeight / ROW;
    this.scroller.scrollTop = places > 0 ? (at / places) * (this.height - this.scroller.clientHeight) : 0;
  }

  draw() {
    const first = this.first();
    const begin = Math.floor(first);
    const end = Math.min(this.latents.length, begin + Math.ceil(this.scroller.clientHeight / ROW) + 2);
    const nodes = [];
    for (let at = begin; at < end; at++) nodes.push(this.option(this.latents[at], at));
    this.rows.replaceChildren(...nodes);
    this.rows.style.transform = `translateY(${this.scroller.scrollTop - (first - begin) * ROW}px)`;
    const marked = this.rows.querySelector("[aria-selected=true]");
    if (marked) this.scroller.setAttribute("aria-activedescendant", marked.id);
    else this.scroller.removeAttribute("aria-activedescendant");
  }

  option(latent, at) {
    const attributes = {
      role: "option",
      id: `row-${latent}`,
      class: "row",
      "data-latent": latent,
      "aria-selected": String(latent === this.selected),
      "aria-posinset": at + 1,
      "aria-setsize": this.latents.length,
    };
    return element("div", attributes, this.row(latent));
  }
}
