"""How many latents are active on a token: the distribution that a mean L0 hides (arXiv 2412.06410, Figure 3)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saebench.figures.data import MODES, Config, Group, largest, pages
from saebench.figures.style import entry, grid, key, legend, name_axes

COLUMNS, PANELS = 3, 6  # in a row, on a page
BINS = 32  # from no latent to the quantile below
REACH = 0.995  # of tokens are within the axis
ORDINARY = ("typical", "outlier")


def l0_histogram(group: Group) -> list[Figure]:
    """Share of tokens against active latents, one panel per k; special tokens (BOS), where kept, as a line at their mean."""
    table = group.histograms
    if table.empty:
        return []
    table = table.loc[table["view"] == "full"]
    ranks = table["mode"].map(MODES.index)
    table = table.loc[ranks == ranks.groupby(table["run"]).transform("min")]  # as a user of the SAE gets it
    configs = [config for config in largest(group.configs) if config.number in set(table["configuration"])]
    facets = sorted({config.facet for config in configs})
    return [histogram_page(group, table, configs, page) for page in pages(facets, PANELS)]


def histogram_page(group: Group, table: pd.DataFrame, configs: list[Config], facets: list[int]) -> Figure:
    """One page of `l0_histogram`."""
    configs = [config for config in configs if config.facet in facets]
    rows = pages(facets, COLUMNS)
    figure, axes = grid(len(rows), len(rows[0]), group.note("held-out tokens but special ones", ""), "col")
    edges = np.linspace(0, max(reach(table, configs), 1.5), BINS + 1)
    for ax, facet in zip(axes.flat, facets, strict=False):
        ax.set_title(group.row_title(facet))
        for config in configs:
            if config.facet == facet:
                draw(ax, config, table.loc[table["configuration"] == config.number], edges)
        ax.set_xlim(0, edges[-1])
    for ax in axes.flat[len(facets) :]:
        ax.set_axis_off()
    name_axes(axes, "active latents per token, as a multiple of k", "tokens (%)")
    special = bool((table["group"] == "special").any())
    keys = [key("special tokens (BOS)", "", ":")] if special else []
    legend(figure, [*(entry(config.shown, config.name, marker=False) for config in configs), *keys])
    return figure


def draw(ax: Axes, config: Config, table: pd.DataFrame, edges: np.ndarray) -> None:
    """Draw the histogram of a configuration as steps, or a line if all tokens have one number; x is in units of its facet."""
    look, ordinary = config.shown, table["group"].isin(ORDINARY)
    rows, special = table.loc[ordinary], table.loc[~ordinary]
    places = rows["l0"].to_numpy(float) / config.facet
    if len(set(places)) == 1:
        ax.axvline(places[0], color=look.colour, alpha=look.alpha, linestyle=look.dash)
    else:
        share, _ = np.histogram(places, edges, weights=100 * rows["tokens"] / rows["tokens"].sum())
        ax.stairs(share, edges, color=look.colour, alpha=look.alpha, linestyle=look.dash)
    if not special.empty:
        mean = np.average(special["l0"], weights=special["tokens"]) / config.facet
        ax.axvline(float(mean), color=look.colour, alpha=look.alpha, linestyle=":")


def reach(table: pd.DataFrame, configs: list[Config]) -> float:
    """The multiple of k, in halves, that REACH of each configuration's ordinary tokens do not exceed."""
    ends = [0.0]
    for config in configs:
        rows = table.loc[(table["configuration"] == config.number) & table["group"].isin(ORDINARY)].sort_values(by="l0")
        share = rows["tokens"].cumsum() / rows["tokens"].sum()
        ends.append(float(rows["l0"].to_numpy()[int(np.searchsorted(share, REACH))]) / config.facet)
    return float(np.ceil(2 * max(ends)) / 2)
