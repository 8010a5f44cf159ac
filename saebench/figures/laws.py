"""Importance laws: each quantity against rank with the power law fitted to its tail, one row of panels per SAE."""

from __future__ import annotations

from textwrap import wrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from saebench.figures.data import Config, Group, largest, pages
from saebench.figures.style import INK, decades, grid, head, key, legend, name_axes

QUANTITIES = {
    "energy": "energy E[z²]",
    "frequency": "firing frequency\n(share of tokens)",
    "eigenvalue": "eigenvalue of the\ndecoder covariance",
}
NAMES = {
    "power_law": "power law",
    "lognormal": "lognormal",
    "exponential": "exponential",
    "stretched": "stretched",
}
ROWS = 4  # of panels on a page
TAIL = "#F0F0F0"


def importance_laws(group: Group) -> list[Figure]:
    """Energy, firing frequency and decoder eigenvalues against rank, log-log, with the fitted tail and its exponent.

    Of SAEs that differ in size alone the largest is shown.
    """
    return [laws_page(group, page) for page in pages(largest(group.measured(group.laws)), ROWS)]


def laws_page(group: Group, configs: list[Config]) -> Figure:
    """One page of `importance_laws`."""
    figure, axes = grid(len(configs), len(QUANTITIES), note(group), share_y="col")
    figure.set_size_inches(figure.get_figwidth() * 1.15, figure.get_figheight() * 1.15)
    head(axes, list(QUANTITIES.values()), [f"{c.name}\n{c.sparsity}, d_sae = {c.d_sae}" for c in configs])
    for row, config in zip(axes, configs, strict=True):
        for ax, quantity in zip(row, QUANTITIES, strict=True):
            laws, ranks = (of(table, config, quantity) for table in (group.laws, group.ranks))
            draw_law(ax, config, laws.dropna(subset="alpha"), ranks)
    axes[0, 0].set_xlim(left=0.8)  # last: it ends the fitting of the axis that all panels share
    for column in axes.T:
        rule(column)
    name_axes(axes, "rank", "value")
    legend(
        figure,
        [key("measured (colour: variant)", ""), key("power law fitted to the shaded ranks", "", "--", width=1.4)],
    )
    return figure


def note(group: Group) -> str:
    """The lines above the figure."""
    seeds = max(len(set(runs)) for _, runs in group.laws.groupby("configuration")["run"])
    drawn = (
        "one seed" if seeds == 1 else f"up to {seeds} seeds, a line each; numbers: means, outermost ends of intervals"
    )
    return (
        f"{group.title}, training tokens; {drawn}\n"
        "α [95% interval] of p(x) ~ x^−α in the shaded tail; its share of the values; p of the fit (below 0.1: no power law)\n"
        "slope of log value on log rank, all ranks; then the laws of the tail that the likeliest does not beat at 0.05"
    )


def of(table: pd.DataFrame, config: Config, quantity: str) -> pd.DataFrame:
    """The rows of a configuration and a quantity."""
    return table.loc[(table["configuration"] == config.number) & (table["quantity"] == quantity)]


def draw_law(ax: Axes, config: Config, laws: pd.DataFrame, ranks: pd.DataFrame) -> None:
    """Draw the values of each run, its fitted power law and the ranks it covers, and the numbers."""
    for _, run in ranks.groupby("run"):
        ax.plot(run["rank"], run["value"], color=config.shown.colour, alpha=config.shown.alpha)
    for law in laws.to_dict("records"):
        n = law["tail_share"] * law["n"]
        rank = np.geomspace(1, n, 20)
        ax.axvspan(0.8, n, color=TAIL, zorder=0)
        fitted = law["xmin"] * (rank / n) ** (1 / (1 - law["alpha"]))
        ax.plot(rank, fitted, "--", color=INK, linewidth=1.4, scaley=False)
    ax.set(xscale="log", yscale="log")
    if not laws.empty:
        ax.text(0.04, 0.04, text(laws), transform=ax.transAxes, fontsize=6, color=INK, va="bottom", linespacing=1.3)


def rule(column: np.ndarray) -> None:
    """Fit the y axes of a column of panels to what was measured, with room for the numbers below; label few ticks."""
    measured = [line.get_ydata() for ax in column for line in ax.get_lines() if line.get_linestyle() != "--"]
    values = np.concatenate([np.asarray(part, dtype=float) for part in measured])
    low, high = values.min(), values.max()
    wide = high > 1000 * low
    for ax in column:
        ax.set_ylim(low / (high / low) ** 0.15, high * (high / low) ** 0.2)
        decades(ax, "x")
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 3.0), numticks=8))
        if not wide:
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_locator(NullLocator())


def text(laws: pd.DataFrame) -> str:
    """The numbers of a panel: exponent, tail, goodness of fit, slope, and the laws not beaten."""
    mean = laws[["alpha", "tail_share", "slope", "r2"]].mean()
    ends = (laws["p_gof"].min(), laws["p_gof"].max())
    best = dict.fromkeys(NAMES[name] for names in laws["best"] for name in names.split())
    lines = [
        f"α {mean['alpha']:.2f} [{laws['alpha_low'].min():.2f}, {laws['alpha_high'].max():.2f}]",
        f"tail {mean['tail_share']:.0%}, p {' to '.join(dict.fromkeys(f'{p:.2f}' for p in ends))}",
        f"slope {mean['slope']:.2f}, R² {mean['r2']:.2f}".replace("-", "−"),
        *wrap(", ".join(best), 24),
    ]
    return "\n".join(lines)
