"""What `saebench probe` and `saebench absorption` do, from options to the lines that they print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saebench.checks import require
from saebench.probing.settings import section
from saebench.probing.study import Rows, Study, Task
from saebench.probing.tasks import FirstLetters, Texts
from saebench.progress import say


def probe(runs: Sequence[Path], data: Sequence[Path], views: Sequence[str], overrides: Sequence[str]) -> Rows:
    """k-sparse probing of finished runs' views on each file of labelled texts: the rows of their summaries.

    Raises InputError, one line, for what is wrong with an option, a run, a view or a file; what was done is kept.
    """
    cfg = section("probe", overrides)
    require(bool(data), "--data: name at least one .jsonl file with text and label on each line")
    names = [path.stem for path in data]
    require(len({*names}) == len(names), f"--data: {', '.join(names)}: files of one name would share their rows")
    return [row for path in data for row in measure(Texts(path, cfg), runs, views)]


def absorption(runs: Sequence[Path], views: Sequence[str], overrides: Sequence[str]) -> Rows:
    """Absorption of first letters in finished runs' views: the rows of their summaries. Raises InputError as `probe` does."""
    return measure(FirstLetters(section("absorption", overrides)), runs, views)


def measure(task: Task, runs: Sequence[Path], views: Sequence[str]) -> Rows:
    """The rows of one task for every run and view."""
    require(bool(views), "--views: name at least one")
    require(bool(runs), "RUN: name at least one finished run, such as outputs/runs/topk-0123456789ab")
    study, rows = Study(task), []
    for i, run in enumerate(runs):
        if len(runs) > 1:
            say(f"run {i + 1} of {len(runs)}: {run}")
        rows += study.run(run, views)
    return rows


def table_of(rows: Sequence[dict[str, Any]]) -> str:
    """The scores over all classes, as aligned text."""
    import pandas as pd

    from saebench.tables import align, missing

    several = {name for name in ("run", "task") if len({row[name] for row in rows}) > 1}
    shown = [
        {name: row[name] for name in ("run", "task") if name in several}
        | {
            "view": "-".join(str(row[key]) for key in ("view", "rule", "m", "budget") if not missing(row[key])),
            "score": row["score"],
            "value": f"{row['value']:.3f}",
            "95% interval": "" if missing(row["low"]) else f"{row['low']:.3f} to {row['high']:.3f}",
            "chance": "" if missing(row["chance"]) else f"{row['chance']:.3f}",
            "n": "" if missing(row["n"]) else f"{row['n']:.0f}",
        }
        for row in rows
        if row["class"] == "all"
    ]
    return align(pd.DataFrame(shown))
