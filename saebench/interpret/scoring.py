"""Scores of one view's latents: drawn by stratum, scored with and without a judge, kept in files beside the contexts.

scores.parquet and explanations.parquet grow by what is asked for, scored.json says how each score was made; summary.csv has the
means of all that is there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saebench.checks import one_of
from saebench.interpret import free, judged
from saebench.interpret.agreement import Summary, agreement, summarise
from saebench.interpret.contexts import LatentContexts, Score, stratum_of
from saebench.interpret.files import LATENTS, latent_contexts
from saebench.interpret.free import FreeConfig, free_scores
from saebench.interpret.replies import CachedJudge
from saebench.interpret.sample import draw
from saebench.runs import write_csv
from saebench.store import read_json, write_json

SCORES, EXPLANATIONS, SUMMARY, AGREEMENT = "scores.parquet", "explanations.parquet", "summary.csv", "agreement.csv"
SCORED = "scored.json"  # for each score: of how many latents drawn it was made, and how
NAMES = (*free.SCORES, *judged.EXAMS)
Levels = Mapping[str, tuple[int, int]]


def frequencies(folder: Path) -> np.ndarray:
    """The firing frequency of every latent of a view: [d_sae]."""
    return pq.read_table(folder / LATENTS, columns=["frequency"])["frequency"].to_numpy()


def score_view(
    folder: Path,
    n: int,
    names: Sequence[str],
    levels: Levels,
    cfg: FreeConfig,
    judge: CachedJudge | None,
    embedder: free.Embedder | None,
) -> list[LatentContexts]:
    """Score n latents of one view (see `draw`) by each of `names` (of NAMES), and keep what is found; their contexts.

    What was scored in the same way of as many latents or more stands; else a score is made anew for all of them.
    """
    for name in names:
        one_of("--score", name, NAMES)
    done = scored(folder)
    n = max([n, *(done[name]["latents"] for name in names if name in done)])
    contexts = latent_contexts(folder, draw(frequencies(folder), n, cfg.seed, levels).latents, seed=cfg.seed)
    wanted = {name: {"latents": n, **way(name, cfg, judge)} for name in names}
    open_names = [name for name in names if done.get(name) != wanted[name]]
    plain = [name for name in open_names if name in free.SCORES]
    if plain:
        keep_scores(folder, plain, list(free_scores(contexts, with_scores(cfg, plain), embedder)))
    asked = [name for name in open_names if name in judged.EXAMS]
    if asked:
        assert judge is not None, "these scores need a judge"
        verdicts, _ = judged.run_judge(judge, contexts, asked, cfg.seed)
        keep_scores(folder, asked, [score for verdict in verdicts for score in verdict.scores if score.n > 0])
        told = [{"latent": v.latent, "explanation": v.explanation, "judge": judge.cfg.label} for v in verdicts]
        keep_rows(folder / EXPLANATIONS, [row for row in told if row["explanation"]], ("latent",))
    if open_names:
        write_json(folder / SCORED, done | wanted)
    return contexts


def scored(folder: Path) -> dict[str, dict[str, Any]]:
    """What SCORED holds."""
    return read_json(folder / SCORED) if (folder / SCORED).is_file() else {}


def way(name: str, cfg: FreeConfig, judge: CachedJudge | None) -> dict[str, Any]:
    """All that a score depends on beside the contexts."""
    if name in judged.EXAMS:
        return {"judge": judge.cfg.label if judge is not None else None, "seed": cfg.seed}
    return {"numerics": free.NUMERICS, **{key: value for key, value in vars(cfg).items() if key != "scores"}}


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


def keep_scores(folder: Path, names: Sequence[str], scores: Sequence[Score]) -> None:
    """Keep scores in place of all that were there by these names."""
    rows = [
        {"latent": s.latent, "score": s.name, **{k: asdict(s)[k] for k in ("value", "chance", "n", "broken")}}
        for s in scores
    ]
    keep_rows(folder / SCORES, rows, ("latent", "score"), lambda old: old["score"] not in names)


def keep_rows(
    path: Path,
    rows: Sequence[dict[str, Any]],
    keys: tuple[str, ...],
    stays: Callable[[dict[str, Any]], bool] = lambda old: True,
) -> None:
    """Add rows to a Parquet file, each in place of one with equal `keys`; in order of keys, whole or not at all."""
    old = [row for row in pq.read_table(path).to_pylist() if stays(row)] if path.is_file() else []
    if not rows and not old:
        return
    merged = {tuple(row[key] for key in keys): row for row in [*old, *rows]}
    table = pa.Table.from_pylist([merged[key] for key in sorted(merged)])
    latent = table.schema.get_field_index("latent")
    table = table.set_column(latent, "latent", table["latent"].cast(pa.int32()))
    part = path.with_name(path.name + ".part")
    pq.write_table(table, part)
    os.replace(part, path)


def summarise_view(folder: Path, named: dict[str, Any], levels: Levels, seed: int) -> list[dict[str, Any]]:
    """Write summary.csv and agreement.csv of all scores that a view has; the rows of the summary.

    `named` are the columns that name run and view. Levels are those of a nested dictionary, each a draw of its own, and ranks:
    the mean place of a latent among its token's active ones, in powers of two.
    """
    scores = [score for score in read_scores(folder) if not np.isnan(score.value)]
    table = pq.read_table(folder / LATENTS, columns=["frequency", "mean_rank"])
    frequency, rank = (table[name].to_numpy() for name in ("frequency", "mean_rank"))
    found: list[Summary] = []
    for name, how in scored(folder).items():
        drawn = draw(frequency, how["latents"], how["seed"], levels)
        mine = {score.latent: score for score in scores if score.name == name}
        ranks = {i: rank_level(float(rank[i])) for i in drawn.every}
        found += rows_of(mine, drawn.every, ranks, frequency, seed)
        for level, latents in drawn.levels.items():
            rows = rows_of(mine, latents, dict.fromkeys(latents, level), frequency, seed)
            found += [row for row in rows if row.level == level]
    rows = [named | asdict(row) for row in found]
    if rows:
        write_csv(folder / SUMMARY, rows)
    agreed = agreement(scores, list(judged.EXAMS), seed)
    if agreed:
        write_csv(folder / AGREEMENT, [named | asdict(row) for row in agreed])
    return rows


def rows_of(
    scores: dict[int, Score], asked: Sequence[int], levels: dict[int, str], frequency: np.ndarray, seed: int
) -> list[Summary]:
    """`summarise` of one score over the latents that were asked for."""
    strata = {i: stratum_of(float(frequency[i])) for i in asked}
    return summarise([scores[i] for i in asked if i in scores], strata, levels, seed)


def rank_level(rank: float) -> str:
    """A mean rank (from 0) as a range that doubles: rank 0, 1, 2-3, 4-7, ..."""
    low = 1 << max(0, int(rank + 0.5).bit_length() - 1)
    place = int(rank + 0.5)
    return "rank 0" if place == 0 else f"rank {low}" if low == 1 else f"rank {low}-{2 * low - 1}"
