"""What `saebench interpret RUN` does, from options to the lines that it prints."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saebench.checks import at_least, one_of, require
from saebench.interpret import free, judged
from saebench.interpret.options import check_overrides, section
from saebench.interpret.replies import CachedJudge, open_judge
from saebench.interpret.scoring import NAMES, score_view, summarise_view
from saebench.interpret.settings import CollectConfig
from saebench.interpret.study import Opened, collect_views, described, levels_of, open_run, parse_view
from saebench.progress import say
from saebench.views import View


def interpret(
    runs: Sequence[Path], views: Sequence[str], latents: int, scores: Sequence[str], overrides: Sequence[str]
) -> list[dict[str, Any]]:
    """Collect the contexts of each run's views, score as many latents of each, and return the rows of their summaries.

    Views are named as `parse_view` reads them, scores are of NAMES. What is wrong with the judge, the scores and the overrides
    is an InputError before any work begins; a run or a view that does not go is one in its turn, and what was done is kept.
    """
    check_overrides(overrides)
    at_least("--latents", latents, 1)
    for name in scores:
        one_of("--score", name, NAMES)
    require(bool(views), "--views: name at least one")
    require(bool(runs), "RUN: name at least one finished run, such as outputs/runs/topk-0123456789ab")
    cfg, plain = section("interpret", overrides), section("free", overrides)
    asked = any(name in judged.EXAMS for name in scores)
    examiner = judge_of(runs[0], overrides) if asked else nullcontext()
    embedder = open_embedder(plain.encoder) if any(name in free.EMBEDDED for name in scores) else None
    rows = []
    with examiner as judge:
        for i, run in enumerate(runs):
            if len(runs) > 1:
                say(f"run {i + 1} of {len(runs)}: {run}")
            rows += interpret_run(open_run(run), views, cfg, Scoring(latents, scores, plain, judge, embedder))
    return rows


@dataclass(frozen=True)
class Scoring:
    """What is scored, of how many latents, by what."""

    latents: int
    names: Sequence[str]
    cfg: free.FreeConfig
    judge: CachedJudge | None
    embedder: free.Embedder | None


def interpret_run(opened: Opened, views: Sequence[str], cfg: CollectConfig, scoring: Scoring) -> list[dict[str, Any]]:
    """The rows of one run."""
    wanted = [parse_view(text, opened.sae) for text in dict.fromkeys(views)]
    folders, rows = collect_views(opened, wanted, cfg), []
    for view, folder in zip(wanted, folders, strict=True):
        levels, plain = levels_of(opened.sae, view), scoring.cfg
        if scoring.names:
            score_view(folder, scoring.latents, scoring.names, levels, plain, scoring.judge, scoring.embedder)
        rows += summarise_view(folder, described(opened) | columns_of(view), levels, plain.seed)
    return rows


def columns_of(view: View) -> dict[str, Any]:
    """The columns that name a view in tables."""
    return {"view": view.kind} | {name: getattr(view, name) for name in ("rule", "order", "m", "budget", "mode")}


def judge_of(run: Path, overrides: Sequence[str]) -> AbstractContextManager[CachedJudge]:
    """The judge, with its replies kept under outputs/judge, so that all runs share them."""
    return open_judge(section("judge", overrides), run.resolve().parent.parent / "judge")


def open_embedder(encoder: str) -> free.Embedder:
    """The sentence encoder, on the CPU: it is small."""
    from saebench.interpret.embed import SentenceEncoder

    return SentenceEncoder(encoder, torch.device("cpu"))


def table_of(rows: Sequence[dict[str, Any]]) -> str:
    """The summaries over all latents and strata, as aligned text."""
    import pandas as pd

    from saebench.tables import align

    several = len({row["run"] for row in rows}) > 1
    shown = [
        ({"run": row["run"]} if several else {})
        | {
            "view": "-".join(str(row[key]) for key in ("view", "rule", "m", "budget") if row[key] not in ("", None)),
            "score": row["score"],
            "value": f"{row['value']:.3f}",
            "95% interval": f"{row['low']:.3f} to {row['high']:.3f}",
            "chance": f"{row['chance']:.3f}",
            "latents": f"{row['latents']} of {row['asked']}",
        }
        for row in rows
        if row["level"] == row["stratum"] == "all"
    ]
    return align(pd.DataFrame(shown)) if shown else "nothing is scored yet; --score names what to score"
