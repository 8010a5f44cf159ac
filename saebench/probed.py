"""What `saebench probe` and `saebench absorption` found of all runs, as a table: outputs/tables/probing.csv."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from saebench.finished import parse
from saebench.store import write_text

NAMED = ["run", "view", "rule", "order", "m", "budget", "mode"]  # what tells views apart
SCORES = {  # heading, decimals: those that stand beside other measures of a view, where they were made
    "absorption_fraction": ("absorption", 3),
    "full_absorption": ("full absorption", 3),
    "split_latents": ("split latents", 2),
    "sparse_probing_1": ("probing, 1 latent", 3),
    "sparse_probing_2": ("probing, 2 latents", 3),
    "sparse_probing_5": ("probing, 5 latents", 3),
    "probing_latents": ("probing, all latents", 3),
    "probing_x": ("probing, x", 3),
}


def write_probing(outputs: Path, runs: list[Path]) -> list[Path]:
    """Gather the scores of every task and view of finished runs; the table is removed if there is none.

    Where a task was asked with several settings, the latest of each view counts.
    """
    path = outputs / "tables" / "probing.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [file for run in runs for file in (run / "probing").glob("*/summary.csv")]
    if not files:
        path.unlink(missing_ok=True)
        return []
    latest = {file.parent.parent.parent / file.parent.name.rpartition("-")[0]: file for file in sorted(files, key=made)}
    rows = pd.concat([parse(latest[name].read_text(encoding="utf-8")) for name in sorted(latest)], ignore_index=True)
    write_text(path, rows.to_csv(index=False))
    return [path]


def made(file: Path) -> tuple[float, str]:
    """When a file was made; its name tells files apart that were made together."""
    return file.stat().st_mtime, str(file)


def by_view(rows: pd.DataFrame) -> pd.DataFrame:
    """The scores over all classes of each view, a column each: the mean over tasks, equally weighted."""
    every = pd.DataFrame(rows.loc[rows["class"] == "all"])
    means = pd.Series(every.groupby([*NAMED, "score"], dropna=False, sort=True)["value"].mean())
    return pd.DataFrame(means.unstack("score")).reset_index().rename_axis(columns=None)
