"""Scores of one view's latents: drawn by stratum, scored with and without a judge, kept in files beside the contexts.

scores.parquet and explanations.parquet grow by what is asked for; summary.csv has the means of all that is there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saebench.checks import one_of
from saebench.interpret import free, judged
from saebench.interpret.agreement import agreement, summarise
from saebench.interpret.contexts import LatentContexts, Score, stratum_of
from saebench.interpret.files import LATENTS, latent_contexts
from saebench.interpret.free import FreeConfig, free_scores
from saebench.interpret.replies import CachedJudge
from saebench.interpret.sample import sample_latents
from saebench.runs import write_csv

SCORES, EXPLANATIONS, SUMMARY, AGREEMENT = "scores.parquet", "explanations.parquet", "summary.csv", "agreement.csv"
NAMES = (*free.SCORES, *judged.EXAMS)


def chosen_latents(folder: Path, n: int, seed: int) -> list[int]:
    """The latents of a view that are scored; see `sample_latents`."""
    frequency = pq.read_table(folder / LATENTS, columns=["frequency"])["frequency"].to_numpy()
    return sample_latents(frequency, n, seed)[0].tolist()


def score_view(
    folder: Path,
    latents: Sequence[int],
    names: Sequence[str],
    cfg: FreeConfig,
    judge: CachedJudge | None,
    embedder: free.Embedder | None,
) -> list[LatentContexts]:
    """Score latents of one view by each of `names` (of NAMES) that they lack, and keep what is found; their contexts."""
    for name in names:
        one_of("--score", name, NAMES)
    contexts = latent_contexts(folder, latents, seed=cfg.seed)
    have = {(score.latent, score.name) for score in read_scores(folder)}
    plain = [name for name in names if name in free.SCORES and any((i, name) not in have for i in latents)]
    if plain:
        keep_scores(folder, list(free_scores(contexts, with_scores(cfg, plain), embedder)))
    asked = [name for name in names if name in judged.EXAMS]
    if asked:
        assert judge is not None, "these scores need a judge"
        verdicts, _ = judged.run_judge(judge, contexts, asked, cfg.seed)
        keep_scores(folder, [score for verdict in verdicts for score in verdict.scores if score.n > 0])
        told = [{"latent": v.latent, "explanation": v.explanation, "judge": judge.cfg.label} for v in verdicts]
        keep_rows(folder / EXPLANATIONS, [row for row in told if row["explanation"]], ("latent",))
    return contexts


def with_scores(cfg: FreeConfig, names: Sequence[str]) -> FreeConfig:
    """The config for some scores alone."""
    return FreeConfig(**{**vars(cfg), "scores": list(names)})


def read_scores(folder: Path) -> list[Score]:
    """The scores kept of a view."""
    path = folder / SCORES
    if not path.is_file():
        return []
    rows = pq.read_table(path).rename_columns(["latent", "name", "value", "chance", "n", "broken"]).to_pylist()
    return [Score(**row) for row in rows]


def keep_scores(folder: Path, scores: Sequence[Score]) -> None:
    """Add scores to those kept; one of the same latent and name is replaced."""
    rows = [
        {"latent": s.latent, "score": s.name, **{k: asdict(s)[k] for k in ("value", "chance", "n", "broken")}}
        for s in scores
    ]
    keep_rows(folder / SCORES, rows, ("latent", "score"))


def keep_rows(path: Path, rows: Sequence[dict[str, Any]], keys: tuple[str, ...]) -> None:
    """Add rows to a Parquet file, each in place of one with equal `keys`; in order of keys, whole or not at all."""
    if not rows:
        return
    old = pq.read_table(path).to_pylist() if path.is_file() else []
    merged = {tuple(row[key] for key in keys): row for row in [*old, *rows]}
    table = pa.Table.from_pylist([merged[key] for key in sorted(merged)])
    latent = table.schema.get_field_index("latent")
    table = table.set_column(latent, "latent", table["latent"].cast(pa.int32()))
    part = path.with_name(path.name + ".part")
    pq.write_table(table, part)
    os.replace(part, path)


def summarise_view(
    folder: Path, named: dict[str, Any], levels: Callable[[Sequence[int]], dict[int, str]], seed: int
) -> list[dict[str, Any]]:
    """Write summary.csv and agreement.csv of all scores that a view has; the rows of the summary.

    `named` are the columns that name run and view; levels are those of a nested dictionary, and ranks: the mean place of a
    latent among its token's active ones, in powers of two.
    """
    scores = [score for score in read_scores(folder) if not np.isnan(score.value)]
    latents = sorted({score.latent for score in scores})
    table = pq.read_table(folder / LATENTS, columns=["frequency", "mean_rank"])
    frequency, rank = (table[name].to_numpy() for name in ("frequency", "mean_rank"))
    strata = {i: stratum_of(float(frequency[i])) for i in latents}
    ranks = {i: rank_level(float(rank[i])) for i in latents}
    found = summarise(scores, strata, levels(latents), seed)
    found += [row for row in summarise(scores, strata, ranks, seed) if row.level != "all"]
    rows = [named | asdict(row) for row in found]
    if rows:
        write_csv(folder / SUMMARY, rows)
    agreed = agreement(scores, list(judged.EXAMS), seed)
    if agreed:
        write_csv(folder / AGREEMENT, [named | asdict(row) for row in agreed])
    return rows


def rank_level(rank: float) -> str:
    """A mean rank (from 0) as a range that doubles: rank 0, 1, 2-3, 4-7, ..."""
    low = 1 << max(0, int(rank + 0.5).bit_length() - 1)
    place = int(rank + 0.5)
    return "rank 0" if place == 0 else f"rank {low}" if low == 1 else f"rank {low}-{2 * low - 1}"
