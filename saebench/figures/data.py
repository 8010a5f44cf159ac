"""What figures draw: outputs/tables read back, parted by model, layer, site and data set."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from saebench.checks import require
from saebench.figures.style import Look, look, order_of
from saebench.tables import MEASURES, PLACE, SPARSITY, missing, read_table, sparsity, varying

TOKENS = "typical"  # tokens of outlying norm are left out: a handful of them would decide the figures
MODES = ["threshold", "batch", "topk"]  # of a full view, the one a user of the SAE gets first
ORDERS = {
    "select_then_prune": "select, then prune\n(L0 falls)",
    "prune_then_select": "prune, then select\n(k as trained)",
    "scaled": "prune, then select\n(k scaled by m / d_sae)",
}


@dataclass(frozen=True)
class Config:
    """A configuration as figures tell it from others.

    `facet`, its k or a number of active latents near its L0, says in which panels it stands; `sparsity` is the text of
    tables.sparsity, `others` the values of the further config keys that were varied; `name` and `shown` are for legends.
    """

    number: int
    variant: str
    d_sae: int
    k: int | None
    sparsity: str
    others: tuple[str, ...]
    name: str
    facet: int
    shown: Look

    @property
    def like(self) -> tuple[str, str, tuple[str, ...]]:
        """What it shares with the same configuration in other sizes."""
        return self.variant, self.sparsity, self.others


@dataclass
class Group:
    """One model, layer, site and data set: its configurations, its views, its training curves, its latents by rank.

    The tables' column `configuration` is a Config's number; views are of TOKENS, and their `how` is a key of ORDERS. `laws`,
    `ranks` and `levels` are empty unless `saebench laws` wrote them, `histograms` (of L0) where runs are older than they.
    """

    title: str
    suffix: str
    configs: list[Config]
    views: pd.DataFrame
    curves: pd.DataFrame
    latents: pd.DataFrame
    laws: pd.DataFrame
    ranks: pd.DataFrame
    levels: pd.DataFrame
    histograms: pd.DataFrame

    def note(self, tokens: str = f"held-out tokens of {TOKENS} norm", spread: str = "bars") -> str:
        """The lines above a figure: what was measured, on which tokens, and what the spread is."""
        few, many = min(self.views["runs"]), max(self.views["runs"])
        seeds = f"{many} seeds" if few == many else f"{few} to {many} seeds"
        mean = f"mean of {seeds}, {spread}: ± 1 sd" if spread else f"mean of {seeds}"
        return f"{self.title}, {tokens}\n{mean if many > 1 else 'one seed'}"

    def row_title(self, facet: int) -> str:
        """What the SAEs of a facet share."""
        exact = all(config.k is not None for config in self.configs if config.facet == facet)
        return f"k = {facet}" if exact else f"k or L0 = {facet}"

    def full(self, metric: str) -> pd.DataFrame:
        """The full views where `metric` was measured, each configuration in every mode, in the order of MODES."""
        full = self.views.loc[(self.views["view"] == "full") & self.views[metric].notna()]
        return full.sort_values(by="mode", key=lambda modes: modes.map(MODES.index), kind="stable")

    def measured(self, table: pd.DataFrame) -> list[Config]:
        """The configurations that have rows in `table`."""
        return [config for config in self.configs if config.number in set(table["configuration"])]


def read_groups(outputs: Path) -> Iterator[Group]:
    """Every group in outputs/tables. Raises InputError if a table is missing or old, but for those of `saebench laws`."""
    names = ("summary", "views", "runs", "curves", "latents")
    summary, views, runs, curves, latents = (read_table(outputs, name) for name in names)
    new = ", ".join(name for name in MEASURES if name not in views)
    require(not new, f"outputs={outputs}: tables/views.csv is without {new}; run `saebench tables` again")
    split = [key for key in varying(summary) if "." in key]
    several = any(runs[name].nunique() > 1 for name in PLACE)
    drawn = with_how(views.loc[views["tokens"] == TOKENS]).drop(columns=[name for name in views if unused(name)])
    extra = [table for names in (("laws", "ranks"), ("levels",), ("l0",)) for table in optional(outputs, *names)]
    tables = [drawn, *(table.merge(runs.loc[:, ["run", "configuration"]]) for table in (curves, latents, *extra))]
    for _, members in runs.groupby(PLACE, sort=True):
        own, *others = (table.loc[table["configuration"].isin(members["configuration"])] for table in tables)
        model, layer, site, data = (str(members[name].iloc[0]) for name in PLACE)
        suffix = f"-{model}-layer{layer}-{site}-{data}".replace("/", "_") if several else ""
        title = f"{model}, layer {layer}, {site}; {data}"
        yield Group(title, suffix, configs_of(members, own, split), own, *others)


def optional(outputs: Path, *names: str) -> list[pd.DataFrame]:
    """Tables that belong together; without rows unless all of them are there."""
    there = all((outputs / "tables" / f"{name}.csv").is_file() for name in names)
    return [read_table(outputs, name) if there else pd.DataFrame({"run": pd.Series(dtype=str)}) for name in names]


def configs_of(members: pd.DataFrame, views: pd.DataFrame, split: list[str]) -> list[Config]:
    """The configurations of a group that have a full view, in the order of legends; `split` are the keys to name them by."""
    l0: dict[Any, float] = views.loc[views["view"] == "full"].groupby("configuration")["l0"].mean().to_dict()
    configs: list[Config] = []
    for variant, runs in members.loc[members["configuration"].isin(l0)].groupby("variant"):
        rows: list[Any] = runs.drop_duplicates("configuration").to_dict("records")
        told = [key for key in split if runs[key].nunique() > 1]
        names = [", ".join(f"{key.split('.')[-1]} {row[key]}" for key in told) for row in rows]
        shades = dict(zip(dict.fromkeys(names), np.linspace(1, 0.4, len(set(names))), strict=True))
        for row, name in zip(rows, names, strict=True):
            ks = set(members.loc[members["d_sae"] == row["d_sae"], "k"].dropna())
            shown = look(str(variant))._replace(alpha=float(shades[name]))
            configs.append(config_of(row, facet_of(row, l0[row["configuration"]], ks), split, name, shown))
    return sorted(configs, key=lambda config: (order_of(config.variant), config.d_sae, config.facet, config.number))


def config_of(row: dict[str, Any], facet: int, split: list[str], told: str, shown: Look) -> Config:
    """A row of runs.csv as a Config; `told` is what parts it from others of its variant."""
    text = sparsity(row)
    name = ", ".join(part for part in (shown.name, text if text.startswith("coef") else "", told) if part)
    others = tuple(str(row[key]) for key in split)  # not a learning rate chosen for each size
    k = None if missing(row["k"]) else int(row["k"])
    return Config(row["configuration"], row["variant"], row["d_sae"], k, text, others, name, facet, shown)


def facet_of(row: dict[str, Any], l0: float, ks: set[int]) -> int:
    """k; without one the nearest of `ks` if within a factor sqrt(2) of the (target) L0, else the nearest power of two."""
    if not missing(row["k"]):
        return int(row["k"])
    wanted = max(1.0, l0 if missing(row["target_l0"]) else row["target_l0"])
    near = {abs(math.log2(k / wanted)): int(k) for k in ks}
    return near[min(near)] if near and min(near) <= 0.5 else 2 ** round(math.log2(wanted))


def with_how(views: pd.DataFrame) -> pd.DataFrame:
    """The views with `how`: their order, or "scaled" where k was scaled by the share kept."""
    scaled = (views["order"] == "prune_then_select") & (views["budget"] != views["k"]).fillna(False)
    return views.assign(how=views["order"].mask(scaled, "scaled"))


def largest(configs: list[Config]) -> list[Config]:
    """Of configurations that differ in size alone, the largest."""
    sizes = {like: max(c.d_sae for c in configs if c.like == like) for like in {c.like for c in configs}}
    return [config for config in configs if config.d_sae == sizes[config.like]]


def unused(column: str) -> bool:
    """Whether a column of views.csv is never drawn; wide tables are slow to part."""
    known = column in (*PLACE, *SPARSITY, "variant", "tokens", "d_sae")
    return known or "." in column or column.endswith("_count")


def pages(rows: list[Any], most: int) -> list[list[Any]]:
    """`rows` in as few lists of at most `most` as can be, of nearly equal length."""
    size = math.ceil(len(rows) / max(1, math.ceil(len(rows) / most)))
    return [rows[i : i + size] for i in range(0, len(rows), size)] if rows else []
