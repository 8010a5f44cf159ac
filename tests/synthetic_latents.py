"""Folders of a view as collecting, scoring and explaining leave them, made of formulas; nothing here is a result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy import ndarray

STRANGE = [
    "<script>alert(1)</script>",
    "&amp;",
    "</b>",
    '"',
    "\\",
    "\n",
    "\t",
    "\x07",
    "",
    "\u202e",
    "\u2028",
    "😀",
    "日本",
    "\ufffd",
]
VOCABULARY = [*STRANGE, *(f" {a}{b}" for a in "bdfgklmnprst" for b in ("a", "eth", "ing", "or", "us"))]
EDGES = np.linspace(-10, 6, 33)  # of log2 of activations
WINDOW = 32
NAMES = {"detection": 0.5, "fuzzing": 0.5, "simulation": 0.0, "intruder": 0.2}  # scores and their chance levels
DEAD = 8  # every DEAD-th latent is never active


def write_view(
    folder: Path,
    d_sae: int = 200,
    each: int = 12,
    seed: int = 0,
    corpus: ndarray | None = None,
    vocabulary: list[str] | None = None,
    scored: int = 50,
) -> Path:
    """Write a view of `d_sae` latents with `each` contexts of a latent; the first `scored` active ones have scores."""
    rng = np.random.default_rng(seed)
    texts = VOCABULARY if vocabulary is None else vocabulary
    tokens = rng.integers(0, len(texts), 4000) if corpus is None else corpus
    folder.mkdir(parents=True)
    (folder / "vocabulary.json").write_text(json.dumps(texts), encoding="utf-8")
    alive = np.arange(d_sae) % DEAD != DEAD - 1
    largest = np.where(alive, np.exp(rng.normal(1, 0.8, d_sae)), 0).astype(np.float32)
    favourite = tokens[rng.integers(0, len(tokens), d_sae)]
    pq.write_table(latents(rng, alive, largest, favourite, len(texts)), folder / "latents.parquet")
    write_examples(folder / "examples.parquet", rng, np.flatnonzero(alive), largest, favourite, tokens, each)
    if scored:
        write_scores(folder, rng, np.flatnonzero(alive)[:scored])
    (folder / "done.json").write_text("{}")
    return folder


def latents(rng: np.random.Generator, alive: ndarray, largest: ndarray, favourite: ndarray, n_tokens: int) -> pa.Table:
    """latents.parquet: of 10 million tokens, frequencies from 1e-6 to 0.1."""
    n = len(alive)
    n_active = np.where(alive, 1e7 * 10 ** rng.uniform(-6, -1, n), 0).astype(np.int64)
    bins = (np.digitize(np.log2(largest, where=alive, out=np.zeros_like(largest)), EDGES) - 1)[:, None]
    falling = np.exp(-0.12 * (bins - 2 - np.arange(len(EDGES) - 1)) ** 2) * (np.arange(len(EDGES) - 1) <= bins)
    histogram = (n_active[:, None] * falling / falling.sum(1, keepdims=True)).astype(np.int32)  # [n, bins]
    logits = {w: rng.integers(0, n_tokens, (n, 10)).astype(np.int32) for w in ("promoted", "suppressed")}
    logits["promoted"][:, 0] = favourite
    size = -np.sort(-np.abs(rng.normal(0, 1, (n, 10)))).astype(np.float32)
    columns: dict[str, Any] = {
        "latent": np.arange(n, dtype=np.int32),
        "frequency": n_active / 1e7,
        "n_active": n_active,
        "mean_act": np.where(alive, largest * 0.3, 0).astype(np.float32),
        "max_act": largest,
        "mean_rank": np.where(alive, rng.uniform(0, 30, n), np.nan).astype(np.float32),
        "histogram": lists(histogram),
        **{which: lists(ids) for which, ids in logits.items()},
        "promoted_logits": lists(size),
        "suppressed_logits": lists(-size),
    }
    return pa.table(columns).replace_schema_metadata({"histogram_edges": json.dumps(EDGES.tolist())})


def write_examples(
    path: Path,
    rng: np.random.Generator,
    alive: ndarray,
    largest: ndarray,
    favourite: ndarray,
    tokens: ndarray,
    each: int,
) -> None:
    """examples.parquet: contexts around a latent's favourite token, a row group for every 100 latents."""
    order = np.argsort(tokens, kind="stable")
    begin = np.searchsorted(tokens[order], favourite)
    count = np.searchsorted(tokens[order], favourite, side="right") - begin
    writer = None
    for some in np.array_split(alive, -(-len(alive) // 100)):
        at = order[begin[some, None] + (rng.random((len(some), each)) * count[some, None]).astype(int)]  # [some, each]
        start = np.clip(at - WINDOW // 2, 0, len(tokens) - WINDOW)
        window = tokens[start[..., None] + np.arange(WINDOW)].astype(np.int32)  # [some, each, window]
        quantile = np.concatenate([np.ones((len(some), each // 2)), rng.random((len(some), each - each // 2))], 1)
        quantile[:, each // 2 :] = -np.sort(-quantile[:, each // 2 :])
        act = largest[some, None] * np.where(quantile == 1, 1 - 0.03 * np.arange(each), quantile**2 * 0.9 + 0.01)
        acts = (
            act[..., None]
            * rng.random(window.shape)
            * ((window == favourite[some, None, None]) | (rng.random(window.shape) < 0.03))
        )
        np.put_along_axis(acts, (at - start)[..., None], act[..., None], axis=2)
        table = pa.table(
            {
                "latent": np.repeat(some, each).astype(np.int32),
                "kind": np.where(quantile == 1, "top", "sample").ravel(),
                "act": act.ravel().astype(np.float32),
                "quantile": quantile.ravel().astype(np.float32),
                **{name: (at // size).ravel().astype(np.int32) for name, size in (("document", 300), ("block", 128))},
                "position": (at % 128).ravel().astype(np.int32),
                "centre": (at - start).ravel().astype(np.int16),
                "tokens": lists(window.reshape(-1, WINDOW)),
                "acts": lists(acts.reshape(-1, WINDOW).astype(np.float32)),
                "shown": (at // 300 % 2 == 0).ravel(),
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def write_scores(folder: Path, rng: np.random.Generator, scored: ndarray) -> None:
    """scores.parquet and explanations.parquet of some latents."""
    rows = [
        {
            "latent": int(i),
            "score": name,
            "value": c + (1 - c) * rng.beta(4, 3),
            "chance": c,
            "n": 40,
            "broken": int(i) % 3,
        }
        for i in scored
        for name, c in NAMES.items()
    ]
    types = pa.schema(
        [("latent", pa.int32()), ("score", pa.string()), ("value", pa.float64()), ("chance", pa.float64())]
    )
    types = types.append(pa.field("n", pa.int32())).append(pa.field("broken", pa.int32()))
    pq.write_table(pa.Table.from_pylist(rows, types), folder / "scores.parquet")
    texts = [f"words <b>ending</b> like no. {i} & its kin, in running text" for i in scored]
    table = {"latent": scored.astype(np.int32), "explanation": texts, "judge": ["a judge"] * len(texts)}
    pq.write_table(pa.table(table), folder / "explanations.parquet")


def lists(rows: ndarray) -> pa.ListArray:
    """Rows [n, m] as a column of lists."""
    ends = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
    return pa.ListArray.from_arrays(ends, rows.ravel())
