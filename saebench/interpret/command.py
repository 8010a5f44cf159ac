"""What `saebench interpret RUN` does, from options to the lines that it prints."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from saebench.checks import at_least, one_of, require
from saebench.interpret import free, judged
from saebench.interpret.options import check_overrides, section
from saebench.interpret.replies import CachedJudge, open_judge
from saebench.interpret.scoring import NAMES, chosen_latents, score_view, summarise_view
from saebench.interpret.study import collect_views, described, levels_of, open_run, parse_view


def interpret(
    run: Path, views: Sequence[str], latents: int, scores: Sequence[str], overrides: Sequence[str]
) -> list[dict[str, Any]]:
    """Collect the contexts of a run's views, score as many latents of each, and return the rows of their summaries.

    Views are named as `parse_view` reads them, scores are of NAMES. Everything wrong in what was asked is an InputError before
    any work begins.
    """
    check_overrides(overrides)
    at_least("--latents", latents, 1)
    for name in scores:
        one_of("--score", name, NAMES)
    require(bool(views), "--views: name at least one")
    cfg, plain = section("interpret", overrides), section("free", overrides)
    asked = any(name in judged.EXAMS for name in scores)
    examiner = judge_of(run, overrides) if asked else nullcontext()
    embedder = open_embedder(plain.encoder) if any(name in free.EMBEDDED for name in scores) else None
    opened = open_run(run)
    wanted = [parse_view(text, opened.sae) for text in dict.fromkeys(views)]
    folders, rows = collect_views(opened, wanted, cfg), []
    with examiner as judge:
        for folder in folders if scores else ():
            score_view(folder, chosen_latents(folder, latents, plain.seed), scores, plain, judge, embedder)
    for view, folder in zip(wanted, folders, strict=True):
        named = {
            "view": view.kind,
            "rule": view.rule,
            "order": view.order,
            "m": view.m,
            "budget": view.budget,
            "mode": view.mode,
        }
        rows += summarise_view(folder, described(opened) | named, lambda found: levels_of(opened, found), plain.seed)
    return rows


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

    shown = [
        {
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
