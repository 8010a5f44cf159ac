"""The evidence: finished runs of a sweep, the rows they and outputs/tables hold, and what is still to be made."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from saebench.checks import InputError, require
from saebench.claims.labels import describe
from saebench.config import RunConfig, as_dict
from saebench.finished import finished_runs, parse, read_lines, read_runs
from saebench.interpreted import excesses
from saebench.runconfig import YAML_LOADER, read_config
from saebench.sae_configs import with_neutral
from saebench.tables import flatten, missing

RUN_COLUMNS = {  # column of metrics.csv: config key
    "variant": "sae.name",
    "model": "model.name",
    "layer": "model.layer",
    "site": "model.site",
    "data": "data.name",
    "seed": "seed",
    "order_seed": "train.order_seed",
    "d_sae": "sae.d_sae",
    "k": "sae.k",
}
FREE = (
    "device",
    "compile",
    "checkpoint",
    "memory_gb",
    "shard",
    "outputs",
    "cache",
    "experiment",
    "evaluate",
    "engine",
    "tracker",
)  # config keys that say nothing about the weights
LARGEST = "largest"
MAKERS = {  # table: the command that writes it
    "laws": "laws",
    "levels": "laws",
    "reached": "reach",
    "frontier": "tables",
    "interpretability": "interpret RUN ... --score ...` and then `saebench tables",
}
SUMS = {  # metric: numerator and denominator among the per-document sums; those with others rest on seeds alone
    "fvu": ("residual", "total"),
    "fvu_std": ("residual_std", "total_std"),
    "nmse": ("residual_trained", "total_trained"),
    "ce_sae": ("ce_sae", "ce_tokens"),
    "ce_increase": ("ce_increase", "ce_tokens"),
}


class NoRowsError(Exception):
    """There is nothing to judge a claim on; the text says what is missing and how to make it."""


@dataclass(frozen=True)
class Run:
    """A run that the sweep asks for: its config as text by dotted key, and its folder once it is finished."""

    config: dict[str, str]
    folder: Path | None

    def column(self, name: str) -> Any:
        """Its value of a column that all rows of a run share: of RUN_COLUMNS, `levels`, or a dotted config key."""
        if name == "levels":
            return len(self.config.get("sae.prefixes", "0").split())
        value = yaml.load(self.config.get(RUN_COLUMNS.get(name, name), "null"), YAML_LOADER)
        return value

    def overrides(self, keys: list[str]) -> str:
        """The command line for it, of the override keys that the sweep varies."""
        given = {key: self.config.get(f"{key}.name", self.config.get(key)) for key in keys}
        return " ".join(f"{key}={override(value)}" for key, value in given.items() if value is not None)


def override(text: str) -> str:
    """A config value as text in Hydra's grammar."""
    return f"[{text.replace(' ', ',')}]" if " " in text else text


class Evidence:
    """What the finished runs of one sweep have to show; every file is read once, when it is first asked for."""

    def __init__(self, configs: list[RunConfig]) -> None:
        self.name = configs[0].experiment.name
        self.outputs = Path(configs[0].outputs)
        self.keys = list(dict.fromkeys(key for grid in configs[0].experiment.grids for key in grid))
        self.keys = [key for key in self.keys if not key.startswith("evaluate")]
        self.runs = find_runs(configs, finished_runs(self.outputs))
        self.done = {run.folder.name: run for run in self.runs if run.folder is not None}
        self.tables: dict[str, pd.DataFrame] = {}
        self.sums: dict[tuple[str, str], dict[str, pd.DataFrame]] = {}
        self.points: dict[
            tuple[str, str, str, str], Any
        ] = {}  # by run, view, metric and tokens, what pairs made of a row

    @cached_property
    def command(self) -> str:
        """The command that makes what the sweep lacks."""
        return f"saebench sweep experiment={self.name}" if self.name else "saebench sweep"

    def table(self, name: str) -> pd.DataFrame:
        """The rows of the sweep's finished runs in a table, beside what names their runs. Raises NoRowsError if there is none."""
        if name not in self.tables:
            self.tables[name] = self.with_run_columns(self.read(name))
        return self.tables[name]

    def with_columns(self, name: str, columns: list[str]) -> pd.DataFrame:
        """A table with those of `columns` that are dotted config keys."""
        table = self.table(name)
        keys = [column for column in columns if "." in column and column not in table]
        self.tables[name] = table.assign(**{key: self.run_column(table, key) for key in keys})
        return self.tables[name]

    def read(self, name: str) -> pd.DataFrame:
        """A table as its files have it."""
        if name == "views":
            rows = read_runs(self.folders, "metrics.csv").drop_duplicates()
            scaled = (rows["order"] == "prune_then_select") & (rows["budget"] != rows["k"]).fillna(False)
            return rows.assign(ce_increase=rows["ce_sae"] - rows["ce_clean"], scaled=scaled)
        if name == "runs":
            return read_runs(self.folders, "train.csv", lambda lines: lines[-1:]).rename(
                columns=lambda column: column if column == "run" else f"train_{column}"
            )
        path = self.outputs / "tables" / f"{name}.csv"
        if not path.is_file():
            raise NoRowsError(f"there is no {path}; `saebench {MAKERS.get(name, 'tables')}` makes it")
        header, lines = read_lines(path)
        rows = parse("\n".join([header, *lines]) + "\n")
        require("run" in rows, f"{path}: has no column run, so its rows cannot be told apart")
        rows = excesses(rows) if name == "interpretability" else rows
        return rows.loc[rows["run"].isin(self.done)]

    def with_run_columns(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The rows with the columns that describe their run, where they lack them."""
        columns = {name: self.run_column(rows, name) for name in (*RUN_COLUMNS, "levels") if name not in rows}
        return rows.assign(**columns)

    def run_column(self, rows: pd.DataFrame, name: str) -> pd.Series:
        """What the configs of the rows' runs have in a column."""
        values = {folder: run.column(name) for folder, run in self.done.items()}
        return pd.Series([values[run] for run in rows["run"]], index=rows.index)

    @property
    def folders(self) -> list[Path]:
        """The folders of the finished runs."""
        return [run.folder for run in self.runs if run.folder is not None]

    def choose(self, name: str, side: dict[str, Any]) -> pd.DataFrame:
        """The rows of a table that a side describes. Raises NoRowsError naming the first of its keys that leaves none."""
        rows = self.table(name)
        for key, value in sorted(side.items(), key=lambda item: item[1] == LARGEST):
            column = self.run_column(rows, key) if "." in key else rows.loc[:, known(rows, key)]
            found = rows.loc[matches(column, value)]
            if found.empty:
                raise NoRowsError(self.absent(name, side, key))
            rows = found
        return rows

    def absent(self, table: str, side: dict[str, Any], name: str) -> str:
        """What to make so that `side`, of whose rows in a table key `name` left none, has rows."""
        planned = [run for run in self.runs if self.asks(run, side)]
        if not planned:
            keys = {key: value for key, value in side.items() if is_run_column(key)}
            return f"no grid of the sweep has {describe(keys)}; add one to experiment.grids"
        todo = [run for run in planned if run.folder is None]
        if todo:
            return f"no row has {describe(side)}; {self.to_make(todo)}"
        return f"none of the {len(planned)} runs has a row with {describe({name: side[name]})} ({describe(side)}); " + (
            f"make it by `saebench {MAKERS[table]}`"
            if table in MAKERS
            else "ask for it under evaluate, then run `saebench evaluate`"
        )

    def asks(self, run: Run, side: dict[str, Any]) -> bool:
        """Whether a run of the sweep could have rows of a side."""
        keys = [key for key, value in side.items() if is_run_column(key) and value != LARGEST]
        return all(bool(matches(pd.Series([run.column(key)], dtype=object), side[key]).iloc[0]) for key in keys)

    def to_make(self, runs: list[Run]) -> str:
        """How to make runs that are missing."""
        named = "; ".join(run.overrides(self.keys) for run in runs[:3]) + ("; ..." if len(runs) > 3 else "")
        return f"`{self.command}` makes the {len(runs)} runs missing: {named}"

    def documents(self, run: str, view: str, tokens: str) -> pd.DataFrame | None:
        """Per-document sums of a view over `all` or `typical` tokens, indexed by document; None if the run has none."""
        if (run, tokens) not in self.sums:
            self.sums[run, tokens] = by_view(read_documents(self.done[run].folder), tokens)
        return self.sums[run, tokens].get(view)


def find_runs(configs: list[RunConfig], folders: list[Path]) -> list[Run]:
    """Every run the sweep asks for, with its folder if it is finished. Raises InputError if none is."""
    found: dict[tuple[Any, ...], Path] = {}
    for folder in folders:
        key = identity(flat_config(read_config(folder / "config.yaml")))
        other = found.setdefault(key, folder)
        require(
            other == folder, f"{other} and {folder} are runs of one configuration; remove the one that is out of date"
        )
    wanted = {identity(flat): flat for flat in map(flat_config, map(as_dict, configs))}
    runs = [Run(flat, found.get(key)) for key, flat in wanted.items()]
    if all(run.folder is None for run in runs):
        raise InputError(unrelated(list(wanted), found))
    return runs


def flat_config(config: dict[str, Any]) -> dict[str, str]:
    """The part of a config that decides the weights, as text by dotted key."""
    kept = {key: value for key, value in config.items() if key not in FREE}
    kept["sae"] = with_neutral(config["sae"])
    kept["train"] = {key: value for key, value in config["train"].items() if key not in ("log_every", "lm_device")}
    if kept["train"].get("n_tokens") is None:
        kept["train"]["n_tokens"] = config["data"]["n_tokens"]
    return flatten(kept)


def identity(flat: dict[str, str]) -> tuple[Any, ...]:
    """A config as something to look up by."""
    return tuple(sorted(flat.items()))


def unrelated(wanted: list[tuple[Any, ...]], found: dict[tuple[Any, ...], Path]) -> str:
    """The message when no finished run belongs to the sweep, with the difference of the nearest."""
    pairs = [(dict(w), dict(f)) for w in wanted for f in found]
    asked, there = min(pairs, key=lambda pair: len(pair[0].items() ^ pair[1].items()))
    keys = sorted({key for key, _ in asked.items() ^ there.items()})
    told = ", ".join(f"{key}={there.get(key, 'none')} (asked: {asked.get(key, 'none')})" for key in keys[:4])
    return f"outputs: none of its {len(found)} finished runs is of this sweep; the nearest has {told}"


def read_documents(folder: Path | None) -> pd.DataFrame:
    """documents.csv of the evaluation whose rows are the run's metrics.csv; an empty table if there is none."""
    assert folder is not None
    rows = (folder / "metrics.csv").read_text(encoding="utf-8")
    for path in sorted((folder / "evaluations").glob("*/documents.csv")):
        if path.with_name("metrics.csv").read_text(encoding="utf-8") == rows:
            sums = pd.read_csv(path)
            return sums.assign(ce_increase=sums["ce_sae"] - sums["ce_clean"]) if "ce_clean" in sums else sums
    return pd.DataFrame()


def by_view(sums: pd.DataFrame, tokens: str) -> dict[str, pd.DataFrame]:
    """Per-document sums over `all` or `typical` tokens by view, each indexed by document."""
    if sums.empty:
        return {}
    mine = sums.loc[sums["group"] == "typical"] if tokens == "typical" else sums
    parts = pd.DataFrame(mine.drop(columns="group").groupby(["view", "document"]).sum())
    return {str(name): part.droplevel(0) for name, part in parts.groupby(level=0)}


def view_name(row: dict[str, Any]) -> str:
    """The name under which documents.csv has the view of a row of metrics.csv (views.View.name)."""
    parts = [row[name] for name in ("view", "rule", "order", "m", "budget", "mode")]
    return "-".join(str(part) for part in parts if not missing(part))


def known(table: pd.DataFrame, name: str) -> str:
    """The name of a column. Raises InputError naming the nearest that there is."""
    near = difflib.get_close_matches(name, list(table.columns), n=1)
    hint = f"did you mean {near[0]}?" if near else f"the columns are {', '.join(table.columns)}"
    require(name in table, f"{name}: there is no such column; {hint}")
    return name


def is_run_column(name: str) -> bool:
    """Whether a run's config alone decides the column."""
    return name in RUN_COLUMNS or name == "levels" or "." in name


def matches(column: pd.Series, value: Any) -> pd.Series:
    """Where a column has a value of a side: null is empty, a list any of its values, `largest` the largest there is."""
    if isinstance(value, list):
        return pd.concat([matches(column, each) for each in value], axis=1).any(axis=1)
    if value is None:
        return column.isna()
    if value == LARGEST:
        return (column == column.max()).fillna(False).astype(bool)
    if isinstance(value, bool) or not pd.api.types.is_numeric_dtype(column):
        return column.notna() & (column.astype(str) == str(value))
    return (column == value).fillna(False).astype(bool)
