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
    for ax, facet in zip(axes.flat, facets, strict=False):
        ax.set_title(group.row_title(facet))
        draw(ax, [config for config in configs if config.facet == facet], table, facet)
    for ax in axes.flat[len(facets) :]:
        ax.set_axis_off()
    name_axes(axes, "active latents per token, as a multiple of k", "tokens (%)")
    special = bool((table["group"] == "special").any())
    keys = [key("special tokens (BOS)", "", ":")] if special else []
    legend(figure, [*(entry(config.shown, config.name, marker=False) for config in configs), *keys])
    return figure


def draw(ax: Axes, configs: list[Config], table: pd.DataFrame, facet: int) -> None:
    """Draw the histogram of each configuration as steps; x is in units of `facet`, so that panels share it."""
    mine = table.loc[table["configuration"].isin([config.number for config in configs])]
    counted = mine.loc[mine["group"].isin(ORDINARY)]
    end = np.ceil(quantile(counted, REACH) / facet * 2) / 2
    edges = np.linspace(0, max(end, 1.5), BINS + 1)
    for config in configs:
        rows = counted.loc[counted["configuration"] == config.number]
        share, _ = np.histogram(rows["l0"] / facet, edges, weights=rows["tokens"])
        look = config.shown
        steps = 100 * share / rows["tokens"].sum()
        ax.stairs(steps, edges, color=look.colour, alpha=look.alpha, linestyle=look.dash, label=config.name)
        special = mine.loc[(mine["configuration"] == config.number) & (mine["group"] == "special")]
        if not special.empty:
            mean = np.average(special["l0"], weights=special["tokens"]) / facet
            ax.axvline(float(mean), color=look.colour, alpha=look.alpha, linestyle=":")
    ax.set_xlim(0, edges[-1])


def quantile(table: pd.DataFrame, share: float) -> float:
    """The L0 that `share` of the tokens do not exceed."""
    ordered = table.sort_values(by="l0")
    reached = ordered["tokens"].cumsum() / ordered["tokens"].sum()
    return float(ordered["l0"].to_numpy()[int(np.searchsorted(reached, share))])
