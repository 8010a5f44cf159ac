"use strict";
// What the page shows, and how it is read. A page opened from disk may not fetch files, but it may run scripts: every data
// file is a script that calls receive(value) once.

const KEPT = 48; // chunks of latents held in memory
const FIRST = 35; // the character of token 0 of a vocabulary; saebench/interpret/pack.py writes the same
const SURROGATES = 0xd800;
const chunks = new Map(); // file name -> promise of its value, the most recently used last

function receive(value) {
  document.currentScript.arrived(value);
}

/** The value in a data file, named relative to this page. */
function read(name) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = name.split("/").map(encodeURIComponent).join("/");
    script.arrived = resolve;
    script.onload = () => script.remove();
    script.onerror = () => reject(new Error(`${name} is missing: build the pages again with saebench browse`));
    document.head.append(script);
  });
}

/** As read, from memory if it was read lately. */
function recall(name) {
  const value = chunks.get(name) ?? read(name);
  chunks.delete(name);
  chunks.set(name, value);
  value.catch(() => chunks.delete(name)); // so that it can be tried again
  if (chunks.size > KEPT) chunks.delete(chunks.keys().next().value);
  return value;
}

/** Numbers written as base64 of little-endian float32; NaN where there is none. */
function floats(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return new Float32Array(bytes.buffer);
}

/** The place in its vocabulary of the token that a character stands for. */
function place(character) {
  const code = character.codePointAt(0);
  return code - FIRST - (code >= SURROGATES ? 0x800 : 0);
}

/** The texts of tokens written as characters. */
function texts(characters, vocabulary) {
  return Array.from(characters, (character) => vocabulary[place(character)]);
}

/** One view of the run: what its index file holds about all of its latents. */
class View {
  constructor(name, index) {
    const { columns, scores, ...rest } = index;
    Object.assign(this, rest, { name });
    this.frequency = floats(columns.frequency);
    this.max = floats(columns.max_act);
    this.mean = floats(columns.mean_act);
    this.rank = floats(columns.mean_rank);
    this.importance = this.frequency.map((share, i) => share * this.mean[i] ** 2);
    this.size = this.frequency.length;
    this.active = this.frequency.reduce((n, share) => n + (share > 0), 0);
    this.scores = scores.map((score) => ({ ...score, values: floats(score.values) }));
    this.explained = new Map(this.explanations);
    this.sorts = [
      { key: "latent", label: "number", values: Float32Array.from({ length: this.size }, (_, i) => i), rising: true },
      { key: "frequency", label: "frequency", values: this.frequency },
      { key: "importance", label: "importance", values: this.importance },
      { key: "max", label: "max activation", values: this.max },
      { key: "mean", label: "mean activation", values: this.mean },
      { key: "rank", label: "mean rank", values: this.rank, rising: true },
      ...this.scores.map(({ name, values }) => ({ key: `score:${name}`, label: name, values })),
    ];
    this.filters = [
      { key: "active", label: "active", keep: (i) => this.frequency[i] > 0 },
      { key: "all", label: "all", keep: () => true },
      { key: "dead", label: "never active", keep: (i) => !(this.frequency[i] > 0) },
    ];
    if (this.scores.length) {
      this.filters.push({ key: "scored", label: "scored", keep: (i) => this.scores.some((s) => !isNaN(s.values[i])) });
    }
    if (this.explained.size) {
      this.filters.push({ key: "explained", label: "explained", keep: (i) => this.explained.has(i) });
    }
  }

  /** Everything known of one latent. */
  async latent(i) {
    const chunk = await recall(this.file(i));
    return { ...chunk.latents[i % this.chunk], vocabulary: chunk.vocabulary };
  }

  /** The file that holds latent i. */
  file(i) {
    return `${this.name}/data/${String(Math.floor(i / this.chunk)).padStart(4, "0")}.js`;
  }

  /** The latents that pass a filter and a query, sorted; those without a value last. */
  order(sort, rising, filter, query) {
    const matches = this.matcher(query);
    const kept = [];
    for (let i = 0; i < this.size; i++) if ((query || filter.keep(i)) && matches(i)) kept.push(i);
    const { values } = sort;
    const sign = rising ? 1 : -1;
    return kept.sort((a, b) => {
      const [x, y] = [values[a], values[b]];
      return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) || a - b : sign * (x - y) || a - b;
    });
  }

  /** Whether a latent answers a query: its number, a top or promoted token, its explanation. */
  matcher(query) {
    if (!query) return () => true;
    const number = query.match(/^#?(\d+)$/);
    if (query.startsWith("#")) return (i) => Boolean(number) && i === Number(number[1]);
    const whole = query.match(/^"(.+)"$/);
    const needle = (whole ? whole[1].trim() : query).toLowerCase();
    this.lower ??= this.vocabulary.map((text) => text.toLowerCase());
    const found = Uint8Array.from(this.lower, (text) => (whole ? text.trim() === needle : text.includes(needle)));
    const any = (characters) => {
      for (const character of characters) if (found[place(character)]) return true;
      return false;
    };
    return (i) =>
      (number && i === Number(number[1])) ||
      any(this.top[i]) ||
      any(this.promoted[i]) ||
      (!whole && this.explained.has(i) && this.explained.get(i).toLowerCase().includes(needle));
  }
}
