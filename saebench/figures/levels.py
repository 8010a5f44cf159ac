"""Levels: the groups of latents between nested prefixes, and the same groups of SAEs trained without nesting."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saebench.figures.data import Config, Group, pages
from saebench.figures.style import DASHES, entry, grid, head, legend, name_axes, scale, series

QUANTITIES = {
    "frequency": "firing frequency\n(share of tokens)",
    "energy": "energy E[z²]",
    "dead": "dead latents\n(share of the group)",
    "max_cosine": "largest cosine with\nanother decoder row",
}
LOGARITHMIC = ("frequency", "energy")
ALL = "all"
APART = 0.12  # SAEs that share a group, in groups
ROWS = 4  # of panels on a page


def level_statistics(group: Group) -> list[Figure]:
    """Means over the latents of each group between prefixes: one row of panels per k, pages of one d_sae each."""
    if group.levels.empty:
        return []
    levels = group.levels.assign(whole=group.levels["level"] == ALL)
    groups = levels.groupby(["whole", "first", "last", "configuration"])[list(QUANTITIES)].agg(["mean", "std"])
    groups.columns = [name if part == "mean" else f"{name}_sd" for name, part in groups.columns]
    table = groups.reset_index()
    cut = group.measured(table.loc[~table["whole"]])
    return [
        levels_page(group, table, [config for config in cut if config.d_sae == d_sae and config.facet in facets])
        for d_sae in sorted({config.d_sae for config in cut})
        for facets in pages(sorted({config.facet for config in cut if config.d_sae == d_sae}), ROWS)
    ]


def levels_page(group: Group, table: pd.DataFrame, configs: list[Config]) -> Figure:
    """One page of `level_statistics`, of SAEs of one size."""
    facets = sorted({config.facet for config in configs})
    figure, axes = grid(len(facets), len(QUANTITIES), group.note("training tokens, means over groups"), share_y="col")
    head(axes, QUANTITIES.values(), [f"d_sae = {configs[0].d_sae}\n{group.row_title(facet)}" for facet in facets])
    rows = table.loc[table["configuration"].isin([config.number for config in configs])]
    names = (rows["first"].astype(str) + "–" + (rows["last"] - 1).astype(str)).mask(rows["whole"], ALL)
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    rows = rows.assign(place=names.map(places))
    for panels, facet in zip(axes, facets, strict=True):
        own = [config for config in configs if config.facet == facet]
        for ax, quantity in zip(panels, QUANTITIES, strict=True):
            draw(ax, own, rows, quantity)
    for column, quantity in zip(axes.T, QUANTITIES, strict=True):
        if quantity in LOGARITHMIC:
            scale(column, "y")
    axes[0, 0].set_xticks(list(places.values()), list(places))
    for ax in axes.flat:
        ax.tick_params(axis="x", rotation=90)
    name_axes(axes, "latents (dictionary order)", "mean over the group")
    legend(figure, [entry(config.shown, config.name) for config in configs])
    return figure


def draw(ax: Axes, configs: list[Config], rows: pd.DataFrame, quantity: str) -> None:
    """Draw each configuration's groups joined by a line and, unfilled, all its latents; side by side."""
    for number, config in enumerate(configs):
        aside = APART * (number - (len(configs) - 1) / 2)
        mine = rows.loc[rows["configuration"] == config.number]
        mine = mine.assign(place=mine["place"] + aside)
        shown = config.shown._replace(dash=config.shown.dash if config.shown.nested else DASHES[1])
        series(ax, mine.loc[~mine["whole"]], "place", quantity, shown, config.name)
        series(ax, mine.loc[mine["whole"]], "place", quantity, shown, config.name, filled=False, width=0)
