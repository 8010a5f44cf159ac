"""Every dictionary size with every budget: an SAE's FVU at each point, and against SAEs trained for that point."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from saebench.figures.data import Config, Group, pages
from saebench.figures.style import BOUNDED, INK, NAMES, grid, head, legend, name_axes

NEAR = 0.05  # relative FVU within which an SAE counts as good as one trained for the point
REACH = 0.5  # relative FVU at which a colour is full
COLOURS = {"better": "#0072B2", "worse": "#D55E00"}
ROWS = 4  # of panels on a page


def against_trained(group: Group, metric: str = "fvu") -> list[Figure]:
    """Heat maps over m and budget of SAEs evaluated at a grid of both: the metric, and its excess over the best trained there."""
    views = group.views.loc[(group.views["mode"] == "topk") & group.views[metric].notna()]
    prefixes = views.loc[(views["view"] == "prefix") & (views["order"] == "prune_then_select")]
    budgets = prefixes.groupby(["configuration", "m"])["budget"].nunique()
    crossed = budgets.loc[budgets > 2].groupby(level=0).size()  # sizes measured at more than k and k scaled
    configs = [config for config in group.configs if crossed.get(config.number, 0) > 1]
    return [points_page(group, metric, views, page) for page in pages(configs, ROWS)]


def points_page(group: Group, metric: str, views: pd.DataFrame, configs: list[Config]) -> Figure:
    """One page of `against_trained`."""
    figure, axes = grid(len(configs), 2, group.note(spread=""))
    head(axes, [NAMES[metric], "difference from the best SAE\ntrained at m and budget (%)"], [
        config.name for config in configs
    ])  # fmt: skip
    best = trained_at(group, metric)
    worse = -1 if metric in BOUNDED else 1  # the sign of a difference that is for the worse
    for row, config in zip(axes, configs, strict=True):
        table = table_of(views, config, metric)
        excess = table / best.reindex(index=table.index, columns=table.columns) - 1
        cells(row[0], table, np.full(table.shape, np.nan), "{:.3f}")
        cells(row[1], table, excess.to_numpy(float), "{:+.0f}", 100, worse)
    name_axes(axes, "dictionary size m (latents)", "latents per token")
    named = {"better": f"better by more than {NEAR:.0%}", "worse": f"worse by more than {NEAR:.0%}"}
    legend(figure, [Patch(color=COLOURS[side], alpha=0.6, label=text) for side, text in named.items()])
    return figure


def table_of(views: pd.DataFrame, config: Config, metric: str) -> pd.DataFrame:
    """The metric by budget (rows) and m (columns): prefixes that select among what they keep, and the full dictionary."""
    mine = views.loc[(views["configuration"] == config.number) & (views["order"] != "select_then_prune")]
    mine = mine.loc[mine["view"].isin(["prefix", "budget", "full"])]
    return mine.pivot_table(index="budget", columns="m", values=metric, aggfunc="first")


def trained_at(group: Group, metric: str) -> pd.DataFrame:
    """The best value of the metric of any SAE with d_sae = m and k = budget: by budget and m."""
    full = group.full(metric)
    full = full.loc[full["mode"].isin(["topk", "threshold"]) & full["budget"].notna()]
    nested = {config.number for config in group.configs if config.variant in ("lattice", "hierarchical", "matryoshka")}
    alone = full.loc[~full["configuration"].isin(nested)]
    return alone.pivot_table(index="budget", columns="m", values=metric, aggfunc="max" if metric in BOUNDED else "min")


def cells(ax: Axes, table: pd.DataFrame, shade: np.ndarray, form: str, times: float = 1.0, worse: int = 1) -> None:
    """Write a number into every cell: of `shade` [rows, columns], coloured by its side, or of the table if it has none.

    `worse` is the sign of what is for the worse.
    """
    rows, columns = table.shape
    ax.grid(visible=False)
    image: Any = np.ones((rows, columns, 4))
    for (i, j), value in np.ndenumerate(shade):
        side = COLOURS["worse" if value * worse > 0 else "better"]
        strength = 0.0 if not abs(value) > NEAR else min(1.0, abs(value) / REACH) * 0.8 + 0.1
        rgb = [int(side[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        image[i, j, :3] = [1 - strength * (1 - c) for c in rgb]
    ax.imshow(image, aspect="auto", origin="lower")
    numbers = table.to_numpy(float) if np.isnan(shade).all() else shade
    for (i, j), value in np.ndenumerate(numbers):
        if np.isfinite(value):
            ax.text(j, i, form.format(times * value), ha="center", va="center", fontsize=6.5, color=INK)
    ax.set_xticks(range(columns), [str(m) for m in table.columns])
    ax.set_yticks(range(rows), [f"{budget:g}" for budget in table.index])
