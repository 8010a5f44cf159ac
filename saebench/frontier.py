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
from saebench.tables import PLACE, SEEDS, VIEW, read_table

OWN = ["variant", *PLACE, "d_sae", *SEEDS]
COLUMNS = ["run", "configuration", *OWN, "tokens", "curve", "points"]
COLUMNS += ["low", "high", "area_fvu", "area_fvu_std", "area_cka_std", "worst_step"]
AREAS = {"area_fvu": "fvu", "area_fvu_std": "fvu_std"}
SLACK = 0.05  # of L0, by which a curve may miss an end; its own end stands for it there
MODES = ["threshold", "topk", "batch"]  # of full views, the first one that a run has


def write_frontier(outputs: Path) -> list[Path]:
    """Write outputs/tables/frontier.csv from the tables of metrics and runs; nothing if there is no curve of two points."""
    metrics = read_table(outputs, "metrics").drop_duplicates(["run", *VIEW])
    runs = read_table(outputs, "runs")
    others = [name for name in runs if "." in name]
    merged = metrics.merge(runs.loc[:, ["run", "configuration", *others]])
    curves = [*cut(metrics, runs), *trained(merged, others)]
    rows = list(measured([curve for curve in curves if len(curve[1]["l0"]) > 1]))
    path = outputs / "tables" / "frontier.csv"
    if not rows:
        path.unlink(missing_ok=True)
        return []
    write_text(path, pd.DataFrame(rows, columns=pd.Index(COLUMNS)).to_csv(index=False))
    return [path]


Views = dict[str, np.ndarray]  # columns, in order of L0
Curve = tuple[dict[str, Any], Views]  # the columns that name it, and its views


def cut(metrics: pd.DataFrame, runs: pd.DataFrame) -> Iterator[Curve]:
    """The curve of each run, mode and choice of tokens that has budget views."""
    numbers: dict[str, int] = dict(zip(runs["run"], runs["configuration"], strict=True))
    views = metrics.loc[metrics["view"].isin(["budget", "full"])]
    for (run, mode, tokens), mine in curves_of(views, ["run", "mode", "tokens"]):
        if "budget" in set(mine["view"]):
            yield named(mine) | {"configuration": numbers[run], "curve": mode, "tokens": tokens}, mine


def trained(metrics: pd.DataFrame, others: list[str]) -> Iterator[Curve]:
    """The curve through the full views of runs that differ in their sparsity alone, or in the rate chosen for it."""
    full = metrics.loc[metrics["view"] == "full"]
    ranks = full["mode"].map(MODES.index)
    full = full.loc[ranks == ranks.groupby(full["run"]).transform("min")]
    keys = [*OWN, "tokens", *(n for n in others if n != "train.lr" and not n.startswith("evaluate."))]
    for _, mine in curves_of(full, keys):
        row = {name: mine[name][0] for name in ("configuration", "tokens")}
        yield named(mine) | {"configuration": row["configuration"], "curve": "trained", "tokens": row["tokens"]}, mine


def curves_of(views: pd.DataFrame, keys: list[str]) -> Iterator[tuple[Any, Views]]:
    """The views that agree in `keys`, with what they agree in, in order of L0, one for each L0."""
    single = views.sort_values(by=["l0", "k"]).drop_duplicates([*keys, "l0"])
    columns = {name: single[name].to_numpy() for name in single}
    groups = single.groupby(keys, dropna=False, sort=True).ngroup().to_numpy()  # [views]
    for places in np.split(np.argsort(groups, kind="stable"), np.flatnonzero(np.diff(np.sort(groups))) + 1):
        mine = {name: column[places] for name, column in columns.items()}
        yield tuple(mine[key][0] for key in keys), mine


def named(views: Views) -> dict[str, Any]:
    """The first run of some views, and what it shares with the others."""
    return {name: views[name][0] for name in ("run", *OWN)}


def measured(curves: list[Curve]) -> Iterator[dict[str, Any]]:
    """The rows of curves."""
    spans: dict[tuple[Any, ...], tuple[float, float]] = {}
    for names, views in curves:
        ends = (float(views["l0"][0]), float(views["l0"][-1]))
        widest = spans.get(where(names), (1.0, 1.0))
        if names["curve"] == "trained" and ends[1] / ends[0] > widest[1] / widest[0]:
            spans[where(names)] = ends
    for names, views in curves:
        row = names | {"points": len(views["l0"]), "worst_step": worst_step(views)}
        low, high = spans.get(where(names), (0.0, 0.0))
        if views["l0"][0] <= (1 + SLACK) * low and views["l0"][-1] >= (1 - SLACK) * high:
            row |= {"low": low, "high": high, "area_cka_std": mean_over_log(views, "cka_std", low, high)}
            row |= {area: 1 - mean_over_log(views, name, low, high) for area, name in AREAS.items()}
        yield row


def where(names: dict[str, Any]) -> tuple[Any, ...]:
    """What curves must agree in to be compared."""
    return tuple(names[name] for name in (*PLACE, "d_sae", "tokens"))


def mean_over_log(views: Views, name: str, low: float, high: float) -> float:
    """The mean of a column over log L0 from `low` to `high`, its curve linear between views."""
    places, values = np.log(views["l0"].astype(float)), views[name].astype(float)
    a, b = math.log(low), math.log(high)
    xs = np.array([a, *places[(places > a) & (places < b)], b])
    ys = np.interp(xs, places, values)
    return float((ys[1:] + ys[:-1]) @ np.diff(xs) / (2 * (b - a)))


def worst_step(views: Views) -> float:
    """The largest relative change of FVU from one view to the next of more latents; negative if FVU always falls."""
    return max(after / before - 1 for before, after in pairwise(views["fvu"].astype(float)))
