"""What training costs: each SAE's own time in its steps, however many were trained beside it."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saebench.figures.data import Config, Group, pages
from saebench.figures.style import entry, grid, legend, name_axes, scale, series

COLUMNS, PANELS = 4, 8  # in a row, on a page


def training_cost(group: Group) -> list[Figure]:
    """Seconds of training per million tokens against d_sae, one panel per k; nothing of runs that did not measure it."""
    if "seconds" not in group.curves:
        return []
    ends = group.curves.dropna(subset="seconds").sort_values(by="tokens").drop_duplicates("run", keep="last")
    costs = ends.assign(cost=1e6 * ends["seconds"] / ends["tokens"]).groupby("configuration")["cost"]
    table = costs.agg(cost="mean", cost_sd="std").reset_index()
    facets = sorted({config.facet for config in group.measured(table)})
    return [cost_page(group, table, page) for page in pages(facets, PANELS)]


def cost_page(group: Group, table: pd.DataFrame, facets: list[int]) -> Figure:
    """One page of `training_cost`."""
    configs = [config for config in group.measured(table) if config.facet in facets]
    rows = pages(facets, COLUMNS)
    figure, axes = grid(len(rows), len(rows[0]), group.note("an SAE's own time in its steps, without reading batches"))
    for ax, facet in zip(axes.flat, facets, strict=False):
        ax.set_title(group.row_title(facet))
        draw(ax, [config for config in configs if config.facet == facet], table)
    for ax in axes.flat[len(facets) :]:
        ax.set_axis_off()
    scale(axes.flat, "x", 2)
    scale(axes.flat, "y")
    name_axes(axes, "dictionary size d_sae (latents)", "seconds per million tokens")
    legend(figure, [entry(config.shown, config.name) for config in configs])
    return figure


def draw(ax: Axes, configs: list[Config], table: pd.DataFrame) -> None:
    """Draw one line per variant."""
    for variant, others in dict.fromkeys((config.variant, config.others) for config in configs):
        mine = [config for config in configs if (config.variant, config.others) == (variant, others)]
        sizes = pd.DataFrame({"configuration": [c.number for c in mine], "d_sae": [c.d_sae for c in mine]})
        points = table.merge(sizes).sort_values(by="d_sae")
        series(ax, points, "d_sae", "cost", mine[0].shown, mine[0].name)
