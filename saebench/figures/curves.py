"""Curves: how important each latent is against its rank, and how training went against tokens."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from saebench.figures.data import Config, Group, pages
from saebench.figures.style import band, decades, entry, grid, head, legend, name_axes, scale

IMPORTANCE = {"energy": "energy E[z²]", "frequency": "firing frequency\n(share of tokens)"}
TRAINING = {"fvu": "FVU of the batch", "l0": "L0 (latents per token)", "dead": "dead latents\n(share of d_sae)"}
ROWS = 4  # of panels on a page


def latent_importance(group: Group) -> list[Figure]:
    """Sorted E[z^2] and firing frequency against rank, log-log, zeros left out; one row of panels per (d_sae, k)."""
    latents = group.latents.copy()
    latents[list(IMPORTANCE)] = latents[list(IMPORTANCE)].where(lambda drawn: drawn > 0)
    return [importance_page(group, latents, page) for page in pages(panels_of(group, latents), ROWS)]


def importance_page(group: Group, latents: pd.DataFrame, panels: list[tuple[int, int]]) -> Figure:
    """One page of `latent_importance`."""
    figure, axes = curves_page(group, latents, panels, "rank", IMPORTANCE)
    for ax in axes.flat:
        ax.set(xscale="log", yscale="log")
        decades(ax, "x")
        decades(ax, "y")
    name_axes(axes, "rank of the latent", None)
    return figure


def training_curves(group: Group) -> list[Figure]:
    """FVU, L0 and dead latents against training tokens; one row of panels per (d_sae, k)."""
    sizes = group.curves["configuration"].replace({config.number: config.d_sae for config in group.configs})
    curves = group.curves.assign(dead=group.curves["dead"] / sizes)
    return [training_page(group, curves, page) for page in pages(panels_of(group, curves), ROWS)]


def training_page(group: Group, curves: pd.DataFrame, panels: list[tuple[int, int]]) -> Figure:
    """One page of `training_curves`."""
    figure, axes = curves_page(group, curves, panels, "tokens", TRAINING)
    for column in axes.T[:2]:
        scale(column, "y")
    for ax in axes[:, 2]:
        ax.set_ylim(bottom=0)
    for ax in axes.flat:
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    name_axes(axes, "training tokens", None)
    return figure


def panels_of(group: Group, table: pd.DataFrame) -> list[tuple[int, int]]:
    """The (d_sae, k) of every configuration with rows in `table`, rising."""
    return sorted({(config.d_sae, config.facet) for config in group.measured(table)})


def curves_page(
    group: Group, table: pd.DataFrame, panels: list[tuple[int, int]], x: str, columns: dict[str, str]
) -> tuple[Figure, np.ndarray]:
    """Rows of panels, one per (d_sae, k), with one line per configuration; one column per entry of `columns`."""
    figure, axes = grid(len(panels), len(columns), group.note("training tokens", "bands"), share_y="col")
    rows = [f"d_sae = {d_sae}\n{group.row_title(facet)}" for d_sae, facet in panels]
    head(axes, [""] * len(columns), rows)
    for row, (d_sae, facet) in zip(axes, panels, strict=True):
        for ax, (name, title) in zip(row, columns.items(), strict=True):
            ax.set_ylabel(title)
            draw(ax, [c for c in group.measured(table) if (c.d_sae, c.facet) == (d_sae, facet)], table, x, name)
    drawn = [config for config in group.measured(table) if (config.d_sae, config.facet) in panels]
    legend(figure, [entry(config.shown, config.name, marker=False) for config in drawn])
    return figure, axes


def draw(ax: Axes, configs: list[Config], table: pd.DataFrame, x: str, y: str) -> None:
    """Draw each configuration's mean over seeds, with a band; seeds logged at other places are interpolated."""
    for config in configs:
        rows = table.loc[table["configuration"] == config.number]
        runs = rows.pivot(index=x, columns="run", values=y)  # [x, runs]
        runs = runs.interpolate(method="index", limit_area="inside")
        mean, sd = runs.mean(axis=1).to_numpy(), runs.std(axis=1).to_numpy()
        band(ax, runs.index.to_numpy(dtype=float), mean, sd, config.shown, config.name)
