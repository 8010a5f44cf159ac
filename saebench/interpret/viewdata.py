"""What the latent page is told of a view: one value about all latents, for the list, and one about each CHUNK of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
from numpy import ndarray

from saebench.checks import require
from saebench.interpret.columns import Lists, batches, empty_table, metadata_json, read_table
from saebench.interpret.pack import Alphabet, floats, rounded
from saebench.store import read_json

CHUNK = 64  # latents of a data file
TOP_TOKENS = 5  # distinct tokens that the list shows of a latent's largest activations
ACT_STEPS = 1000  # an activation is written as a whole number of such parts of its latent's largest,
QUANTILE_STEPS = 10_000  # a quantile as one of such parts of 1
FILES = {  # of a view's folder: whether it must be there
    "latents.parquet": True,
    "examples.parquet": True,
    "vocabulary.json": True,
    "scores.parquet": False,
    "explanations.parquet": False,
}
NUMBERS = ["frequency", "n_active", "mean_act", "max_act", "mean_rank"]
LISTS = ["histogram", "promoted", "suppressed", "promoted_logits", "suppressed_logits"]
PLACES = ["document", "block", "position", "centre"]
EXAMPLES = ["latent", "kind", "quantile", *PLACES, "shown", "tokens", "acts"]
SCORES = ["score", "value", "chance", "n", "broken"]
AGAIN = "remove its folder and make it again"


class Source:
    """What is held of a view's folder while its pages are written: all but its examples."""

    def __init__(self, folder: Path) -> None:
        path = folder / "latents.parquet"
        latents = read_table(path, ["latent", *NUMBERS, *LISTS])
        self.size = len(latents)
        in_order = bool((latents["latent"].to_numpy() == np.arange(self.size)).all())
        require(self.size > 0 and in_order, f"{path}: does not hold every latent once and in order; {AGAIN}")
        self.numbers = {name: latents[name].to_numpy() for name in NUMBERS}  # [d_sae] each
        self.lists = {name: Lists(latents[name]) for name in LISTS}
        self.edges: list[float] = metadata_json(path, latents, "histogram_edges")
        self.examples = folder / "examples.parquet"
        self.vocabulary: list[str] = read_json(folder / "vocabulary.json")
        self.scores = by_latent(folder / "scores.parquet", SCORES)
        self.explanations = by_latent(folder / "explanations.parquet", ["explanation", "judge"])

    def texts(self, alphabet: Alphabet) -> list[str]:
        """The texts of an alphabet's tokens."""
        return [self.vocabulary[token] for token in alphabet.ids]


def by_latent(path: Path, columns: list[str]) -> dict[int, list[list[Any]]]:
    """The `columns` of a file's rows by latent, numbers rounded; nothing if there is no such file."""
    found: dict[int, list[list[Any]]] = {}
    if path.is_file():
        table = read_table(path, ["latent", *columns])
        for latent, *row in zip(*(table[name].to_pylist() for name in ["latent", *columns]), strict=True):
            found.setdefault(latent, []).append([rounded(cell) if isinstance(cell, float) else cell for cell in row])
    return found


def index_of(source: Source, top: list[ndarray]) -> dict[str, Any]:
    """What the list needs of all latents: numbers, scores, explanations and tokens (`top`: those of their contexts)."""
    promoted = source.lists["promoted"]
    alphabet = Alphabet(np.concatenate([*top, promoted.flat]), len(source.vocabulary))
    active = source.numbers["frequency"] > 0
    tokens = source.numbers["n_active"][active] / source.numbers["frequency"][active]
    return {
        "chunk": CHUNK,
        "tokens": round(float(np.median(tokens))) if active.any() else None,
        "columns": {name: floats(source.numbers[name]) for name in NUMBERS if name != "n_active"},
        "scores": score_columns(source),
        "explanations": [[latent, rows[0][0]] for latent, rows in source.explanations.items()],
        "histogram_edges": source.edges,
        "vocabulary": source.texts(alphabet),
        "top": [alphabet.write(ids) for ids in top],
        "promoted": [alphabet.write(promoted[latent]) for latent in range(source.size)],
    }


def score_columns(source: Source) -> list[dict[str, Any]]:
    """Each score: its name, the median of its chance levels, and its values [d_sae], NaN where a latent has none."""
    values: dict[str, ndarray] = {}
    chances: dict[str, list[float]] = {}
    for latent, rows in source.scores.items():
        for name, value, chance, *_ in rows:
            column = values.setdefault(name, np.full(source.size, np.nan, dtype=np.float32))  # [d_sae]
            column[latent] = np.nan if value is None else value
            chances.setdefault(name, []).extend([] if chance is None else [chance])
    return [
        {"name": name, "chance": median(chances[name]) if chances[name] else None, "values": floats(values[name])}
        for name in sorted(values)
    ]


class Chunk:
    """The latents [CHUNK number, CHUNK (number + 1)) of a view, and the `examples` of these alone."""

    def __init__(self, source: Source, number: int, examples: pa.Table) -> None:
        self.source = source
        self.latents = range(number * CHUNK, min((number + 1) * CHUNK, source.size))
        self.of = examples["latent"].to_numpy()  # [examples], the latent of each
        require(bool((np.diff(self.of) >= 0).all()), f"{source.examples}: not in order of latents; {AGAIN}")
        self.ends = np.searchsorted(self.of, [*self.latents, self.latents.stop])  # where each latent's examples begin
        self.examples = examples
        self.tokens, self.acts = Lists(examples["tokens"]), Lists(examples["acts"])
        self.top = np.asarray(examples["kind"].to_pylist(), dtype=object) == "top"  # [examples]

    def value(self) -> dict[str, Any]:
        """What the data file holds: its vocabulary and, of each latent, all that the list does not show."""
        first, stop = self.latents.start, self.latents.stop
        lists = self.source.lists
        logits = [lists[name].between(first, stop) for name in ("promoted", "suppressed")]
        alphabet = Alphabet(np.concatenate([self.tokens.flat, *logits]), len(self.source.vocabulary))
        contexts = self.contexts(alphabet)
        latents = [
            {
                "n_active": int(self.source.numbers["n_active"][latent]),
                **trimmed(lists["histogram"][latent]),
                **{name: alphabet.write(lists[name][latent]) for name in ("promoted", "suppressed")},
                **{
                    name: [rounded(x) for x in lists[name][latent].tolist()]
                    for name in ("promoted_logits", "suppressed_logits")
                },
                "scores": self.source.scores.get(latent, []),
                "explanations": self.source.explanations.get(latent, []),
                "contexts": {name: column[start:end] for name, column in contexts.items()},
            }
            for latent, (start, end) in zip(self.latents, pairwise(self.ends), strict=True)
        ]
        return {"vocabulary": self.source.texts(alphabet), "latents": latents}

    def contexts(self, alphabet: Alphabet) -> dict[str, list[Any]]:
        """The columns of the examples, tokens as characters, activations as [place, parts of ACT_STEPS, place, ...]."""
        text = alphabet.write(self.tokens.flat)
        quantile = np.rint(self.examples["quantile"].to_numpy() * QUANTILE_STEPS).astype(int)
        return {
            "top": self.top.astype(int).tolist(),
            "quantile": quantile.tolist(),
            **{name: self.examples[name].to_pylist() for name in PLACES},
            "shown": self.examples["shown"].to_numpy().astype(int).tolist(),
            "tokens": [text[start:end] for start, end in pairwise(self.tokens.offsets.tolist())],
            "acts": self.active(),
        }

    def active(self) -> list[list[int]]:
        """Of each example the places of its window at which its latent is active, each followed by its activation."""
        places = np.flatnonzero(self.acts.flat > 0)
        example = np.searchsorted(self.acts.offsets, places, side="right") - 1
        parts = np.rint(self.acts.flat[places] / self.source.numbers["max_act"][self.of[example]] * ACT_STEPS)
        inside = places - self.acts.offsets[example]
        pairs = np.stack([inside, np.maximum(parts, 1).astype(int)], axis=1).ravel().tolist()
        ends = 2 * np.searchsorted(example, range(len(self.of) + 1))
        return [pairs[start:end] for start, end in pairwise(ends.tolist())]

    def top_tokens(self) -> list[ndarray]:
        """Of each latent, the commonest tokens at the centres of its largest activations, the larger first of equals."""
        centres = self.tokens.flat[self.tokens.offsets[:-1] + self.examples["centre"].to_numpy()]  # [examples]
        found = []
        for start, end in pairwise(self.ends):
            counts = Counter(centres[start:end][self.top[start:end]].tolist())
            found.append(np.array([token for token, _ in counts.most_common(TOP_TOKENS)], dtype=np.int64))
        return found


def chunks(source: Source) -> Iterator[Chunk]:
    """Every chunk of latents in turn, also those without examples; one is held at a time."""
    groups = groupby(pieces(source.examples), key=itemgetter(0))
    none = empty_table(source.examples, EXAMPLES)
    found = next(groups, None)
    for number in range(-(-source.size // CHUNK)):
        if found is not None and found[0] == number:
            yield Chunk(source, number, pa.Table.from_batches([piece for _, piece in found[1]]))
            found = next(groups, None)
        else:
            yield Chunk(source, number, none)
    require(found is None, f"{source.examples}: not in order of latents, or of latents that there are not; {AGAIN}")


def pieces(path: Path) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The examples in runs of one chunk's latents each, with the chunk's number."""
    for batch in batches(path, EXAMPLES):
        number = batch.column("latent").to_numpy() // CHUNK  # [examples]
        cuts = np.flatnonzero(np.diff(number)) + 1
        for start, end in pairwise([0, *cuts.tolist(), len(number)]):
            yield int(number[start]), batch.slice(start, end - start)


def trimmed(histogram: ndarray) -> dict[str, Any]:
    """A histogram from its first to its last bin that is not empty."""
    filled = np.flatnonzero(histogram)
    first, stop = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, 0)
    return {"histogram_from": first, "histogram": histogram[first:stop].tolist()}
