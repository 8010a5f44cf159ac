"""The frontier of explained variance against sparsity as numbers: of one SAE cut to many budgets, of SAEs trained at many.

A curve is a run's budget views and its full one in one mode, or (curve `trained`) the full views of runs that differ in k alone.
Its area is the mean of 1 - FVU over log L0, by trapezoids, over the L0 that the widest `trained` curve of its dictionary size
spans, so that areas compare; a curve that does not reach both ends has none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from saebench.store import write_text
from saebench.tables import PLACE, SEEDS, SPARSITY, VIEW, read_table

COLUMNS = ["run", "configuration", "variant", *PLACE, "d_sae", *SEEDS, "tokens", "curve", "points"]
COLUMNS += ["low", "high", "area_fvu", "area_fvu_std", "area_cka_std", "worst_step"]
AREAS = {"area_fvu": "fvu", "area_fvu_std": "fvu_std"}
SLACK = 0.05  # of L0, by which a curve may miss an end; its own end stands for it there
MODES = ["threshold", "topk", "batch"]  # of full views, the first one that a run has


def write_frontier(outputs: Path) -> list[Path]:
    """Write outputs/tables/frontier.csv from the tables of metrics and runs; nothing if there is no curve of two points."""
    metrics = read_table(outputs, "metrics").drop_duplicates(["run", *VIEW])
    runs = read_table(outputs, "runs")
    named = ["run", "configuration", *(name for name in runs if "." in name)]
    curves = [*cut(metrics, runs), *trained(metrics.merge(runs.loc[:, named]), named[2:])]
    rows = list(measured([curve for curve in curves if len(curve[1]) > 1]))
    path = outputs / "tables" / "frontier.csv"
    if not rows:
        path.unlink(missing_ok=True)
        return []
    write_text(path, pd.DataFrame(rows, columns=pd.Index(COLUMNS)).to_csv(index=False))
    return [path]


Curve = tuple[dict[str, Any], pd.DataFrame]  # the columns that name it, and its views in order of L0


def cut(metrics: pd.DataFrame, runs: pd.DataFrame) -> Iterator[Curve]:
    """The curve of each run, mode and choice of tokens that has budget views."""
    numbers: dict[str, int] = dict(zip(runs["run"], runs["configuration"], strict=True))
    views = metrics.loc[metrics["view"].isin(["budget", "full"])]
    for (run, mode, tokens), mine in views.groupby(["run", "mode", "tokens"], sort=True):
        if set(mine["view"]) >= {"budget"}:
            first: dict[str, Any] = mine.iloc[0].to_dict()
            named = {name: first[name] for name in ("variant", *PLACE, "d_sae", *SEEDS)}
            yield (
                named | {"run": run, "configuration": numbers[str(run)], "curve": mode, "tokens": tokens},
                ordered(mine),
            )


def trained(metrics: pd.DataFrame, others: list[str]) -> Iterator[Curve]:
    """The curve through the full views of runs that differ in their sparsity alone, or in the rate chosen for it."""
    full = metrics.loc[metrics["view"] == "full"]
    ranks = full["mode"].map(MODES.index)
    full = full.loc[ranks == ranks.groupby(full["run"]).transform("min")]
    keys = ["variant", *PLACE, "d_sae", *SEEDS, "tokens", *(name for name in others if name != "train.lr")]
    for _, views in full.groupby(keys, dropna=False, sort=True):
        views = ordered(views)
        first: dict[str, Any] = views.iloc[0].to_dict()
        yield (
            {name: first[name] for name in ("run", "configuration", *keys[: 3 + len(PLACE) + len(SEEDS)])}
            | {"curve": "trained"},
            views,
        )


def ordered(views: pd.DataFrame) -> pd.DataFrame:
    """Views in order of L0, one for each."""
    return views.sort_values(by=["l0", *SPARSITY[:1]]).drop_duplicates("l0")


def measured(curves: list[Curve]) -> Iterator[dict[str, Any]]:
    """The rows of curves."""
    spans: dict[tuple[Any, ...], tuple[float, float]] = {}
    for named, views in curves:
        ends = (float(views["l0"].iloc[0]), float(views["l0"].iloc[-1]))
        widest = spans.get(where(named), (1.0, 1.0))
        if named["curve"] == "trained" and ends[1] / ends[0] > widest[1] / widest[0]:
            spans[where(named)] = ends
    for named, views in curves:
        row = named | {"points": len(views), "worst_step": worst_step(views)}
        low, high = spans.get(where(named), (0.0, 0.0))
        if views["l0"].iloc[0] <= (1 + SLACK) * low and views["l0"].iloc[-1] >= (1 - SLACK) * high:
            row |= {"low": low, "high": high, "area_cka_std": mean_over_log(views, "cka_std", low, high)}
            row |= {area: 1 - mean_over_log(views, name, low, high) for area, name in AREAS.items()}
        yield row


def where(named: dict[str, Any]) -> tuple[Any, ...]:
    """What curves must agree in to be compared."""
    return tuple(named[name] for name in (*PLACE, "d_sae", "tokens"))


def mean_over_log(views: pd.DataFrame, name: str, low: float, high: float) -> float:
    """The mean of a column over log L0 from `low` to `high`, its curve linear between views."""
    places, values = np.log(views["l0"].to_numpy(float)), views[name].to_numpy(float)
    a, b = math.log(low), math.log(high)
    xs = np.array([a, *places[(places > a) & (places < b)], b])
    return float(np.trapezoid(np.interp(xs, places, values), xs) / (b - a))


def worst_step(views: pd.DataFrame) -> float:
    """The largest relative change of FVU from one view to the next of more latents; negative if FVU always falls."""
    return max(after / before - 1 for before, after in pairwise(views["fvu"].astype(float)))
