"""Against measured L0: SAEs trained at each sparsity, and single SAEs cut to fewer latents per token."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saebench.figures.data import Config, Group, pages
from saebench.figures.style import BOUNDED, DASHES, NAMES, entry, grid, head, key, legend, name_axes, scale, series

MODES = {"topk": "cut to each token's\nlargest latents", "threshold": "cut by one threshold\nfor all tokens", "": ""}
ROWS = 4  # of panels on a page


def against_l0(group: Group, metric: str) -> list[Figure]:
    """A metric against measured L0: one row of panels per d_sae, one column per way of cutting."""
    views = group.views.loc[(group.views["view"] == "budget") & group.views[metric].notna()]
    full = group.full(metric).drop_duplicates("configuration").sort_values(by="l0")
    modes = [mode for mode in MODES if mode in set(views["mode"])] or [""]
    sizes = sorted({config.d_sae for config in group.measured(full)})
    return [l0_page(group, metric, full, views, modes, page) for page in pages(sizes, ROWS)]


def l0_page(
    group: Group, metric: str, full: pd.DataFrame, budgets: pd.DataFrame, modes: list[str], sizes: list[int]
) -> Figure:
    """One page of `against_l0`."""
    configs = [config for config in group.measured(full) if config.d_sae in sizes]
    figure, axes = grid(len(sizes), len(modes), group.note())
    head(axes, [MODES[mode] for mode in modes], [f"d_sae = {d_sae}" for d_sae in sizes])
    for row, d_sae in zip(axes, sizes, strict=True):
        for ax, mode in zip(row, modes, strict=True):
            draw(
                ax,
                [config for config in configs if config.d_sae == d_sae],
                metric,
                full,
                budgets.loc[budgets["mode"] == mode],
            )
    scale(axes.flat, "x", 2)
    if metric not in BOUNDED:
        scale(axes.flat, "y")
    name_axes(axes, NAMES["l0"], NAMES[metric])
    keys = [
        key("trained at that sparsity", "o"),
        key("the densest of them, cut", "o", DASHES[1], filled=False),
    ]
    legend(figure, [*(entry(config.shown, config.name) for config in configs), *(keys if modes != [""] else ())])
    return figure


def draw(ax: Axes, configs: list[Config], metric: str, full: pd.DataFrame, budgets: pd.DataFrame) -> None:
    """Draw, per variant, the full views joined by a line, and the densest SAE cut to fewer latents."""
    for variant, others in dict.fromkeys((config.variant, config.others) for config in configs):
        mine = [config for config in configs if (config.variant, config.others) == (variant, others)]
        points = full.loc[full["configuration"].isin([config.number for config in mine])]
        shown, name = mine[0].shown, mine[0].name
        series(ax, points, "l0", metric, shown._replace(dash="-"), name)
        cut = budgets.loc[budgets["configuration"] == points["configuration"].iloc[-1]].sort_values(by="l0")
        if not cut.empty:
            series(ax, cut, "l0", metric, shown._replace(dash=DASHES[1]), name, filled=False)
