"""What `saebench interpret` found of all runs, as tables: outputs/tables/interpretability.csv and agreement.csv."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from saebench.finished import finished_runs, parse
from saebench.store import write_text

TABLES = {"interpretability": "summary.csv", "agreement": "agreement.csv"}


def write_interpretability(outputs: Path) -> list[Path]:
    """Gather the summaries of every view of every finished run: a row for each score, level and stratum, and each agreement."""
    runs = finished_runs(outputs)
    return [path for table, name in TABLES.items() for path in gather(outputs, runs, table, name)]


def gather(outputs: Path, runs: list[Path], table: str, name: str) -> list[Path]:
    """One table from the files of a name; without any it is removed, as it would tell of runs that are gone."""
    path = outputs / "tables" / f"{table}.csv"
    files = [file for run in runs for file in sorted((run / "interpretability").glob(f"*/{name}"))]
    if not files:
        path.unlink(missing_ok=True)
        return []
    rows = pd.concat([parse(file.read_text(encoding="utf-8")) for file in files], ignore_index=True)
    write_text(path, rows.to_csv(index=False))
    return [path]
