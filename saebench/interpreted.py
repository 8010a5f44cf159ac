"""What `saebench interpret` found of all runs, as tables: outputs/tables/interpretability.csv and agreement.csv."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from saebench.finished import parse
from saebench.store import write_text

TABLES = {"interpretability": "summary.csv", "agreement": "agreement.csv"}
NAMED = ["run", "view", "rule", "order", "m", "budget", "mode"]  # what tells views apart


def write_interpretability(outputs: Path, runs: list[Path]) -> list[Path]:
    """Gather the summaries of every view of finished runs: a row for each score, level and stratum, and each agreement."""
    return [path for table, name in TABLES.items() for path in gather(outputs, runs, table, name)]


def gather(outputs: Path, runs: list[Path], table: str, name: str) -> list[Path]:
    """One table from the files of a name; without any it is removed, as it would tell of runs that are gone."""
    path = outputs / "tables" / f"{table}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [file for run in runs for file in sorted((run / "interpretability").glob(f"*/{name}"))]
    if not files:
        path.unlink(missing_ok=True)
        return []
    rows = pd.concat([parse(file.read_text(encoding="utf-8")) for file in files], ignore_index=True)
    write_text(path, rows.to_csv(index=False))
    return [path]


def by_view(rows: pd.DataFrame) -> pd.DataFrame:
    """The scores of all latents of each view, a column each: the mean over strata of firing frequency, equally weighted."""
    every = pd.DataFrame(rows.loc[(rows["level"] == "all") & (rows["stratum"] == "all")])
    table = pd.DataFrame(every.set_index([*NAMED, "score"])["value"].unstack("score"))
    return table.reset_index().rename_axis(columns=None)


def excesses(rows: pd.DataFrame) -> pd.DataFrame:
    """What claims compare: a row for each level of each view, with (value - chance, latents) of each score by stratum.

    `level_number` counts the levels of a nested dictionary from 1; other rows have none.
    """
    each = pd.DataFrame(rows.loc[rows["stratum"] != "all"])
    levels: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in each.to_dict("records"):
        named = {name: row[name] for name in (*NAMED, "level")}
        level = levels.setdefault(tuple(map(str, named.values())), named)
        found = (row["value"] - row["chance"], row["latents"])
        level.setdefault(row["score"], {})[int(row["stratum"])] = found
    table = pd.DataFrame(list(levels.values())).astype({name: rows[name].dtype for name in NAMED})
    return table.assign(level_number=number_levels(table))


def number_levels(table: pd.DataFrame) -> pd.Series:
    """The place of each row's level, a range of latents, among those of its view: from 1, missing where there are none."""
    starts = [int(level.split("-")[0]) if level[0].isdigit() else None for level in table["level"]]
    numbered = table.assign(start=pd.Series(starts, index=table.index, dtype="Float64"))
    return pd.Series(numbered.groupby(NAMED, dropna=False)["start"].rank()).astype("Int64")
