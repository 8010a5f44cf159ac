"""Against dictionary size: pruned SAEs, prefixes and SAEs trained at each size; and the pruning rules side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saebench.figures.data import ORDERS, Config, Group, largest, pages
from saebench.figures.style import (
    BOUNDED,
    DASHES,
    NAMES,
    Look,
    blank,
    entry,
    grid,
    head,
    key,
    legend,
    name_axes,
    scale,
    series,
)

RULE = "energy"  # the best rule of the progressive-coding paper
PRUNED, PREFIX, TRAINED = "pruned by E[z²]", "first m latents (prefix)", "trained at size m"
RULES = {
    "energy": ("E[z²]", "o", DASHES[0]),
    "frequency": ("firing frequency", "s", DASHES[1]),
    "norm_energy": ("E[z²] |W_dec|²", "^", DASHES[3]),
    "decoder_norm": ("|W_dec|", "v", DASHES[4]),
    "random": ("random", "x", DASHES[2]),
    "unsorted": ("unsorted (first m)", "P", DASHES[5]),
    "": ("dictionary order (first m)", "D", DASHES[5]),
}
REFERENCE = "reference"  # the gid of lines of reference
ROWS = {"size": 4, "rules": 6}  # of panels on a page


def against_size(group: Group, metric: str) -> list[Figure]:
    """A metric against m: one row of panels per k, one column per order of selecting and pruning."""
    cuts = cuts_of(group, metric)
    cuts = cuts.loc[cuts["rule"].isin([RULE, ""])]
    parents = largest(group.measured(cuts))
    facets = sorted({parent.facet for parent in parents})
    return [size_page(group, metric, cuts, parents, page) for page in pages(facets, ROWS["size"])]


def size_page(group: Group, metric: str, cuts: pd.DataFrame, parents: list[Config], facets: list[int]) -> Figure:
    """One page of `against_size`."""
    hows = hows_of(cuts)
    figure, axes = grid(len(facets), len(hows), group.note())
    head(axes, [ORDERS[how] for how in hows], [group.row_title(facet) for facet in facets])
    full = group.full(metric)
    for parent in (parent for parent in parents if parent.facet in facets):
        mine = cuts.loc[cuts["configuration"] == parent.number]
        for ax, how in zip(axes[facets.index(parent.facet)], hows, strict=True):
            cut = mine.loc[mine["how"] == how]
            if not cut.empty:
                draw_parent(ax, metric, parent, cut, full, like(group, parent, how))
    scale_axes(axes, metric)
    keys = [key(PRUNED, "o", DASHES[1]), key(PREFIX, "o", width=2.2), key(TRAINED, "o", filled=False, width=0)]
    legend(figure, [*(entry(parent.shown, parent.name) for parent in parents), *keys])
    return figure


def draw_parent(
    ax: Axes, metric: str, parent: Config, cuts: pd.DataFrame, full: pd.DataFrame, smaller: list[Config]
) -> None:
    """Draw what becomes of one large SAE cut to smaller sizes, and its like trained at those sizes."""
    shown = parent.shown
    pruned, prefix = (cuts.loc[cuts["rule"] == rule] for rule in (RULE, ""))
    if not pruned.empty:
        series(ax, with_whole(pruned, full), "m", metric, shown._replace(dash=DASHES[1]), parent.name)
    if shown.nested and not prefix.empty:
        series(ax, with_whole(prefix, full), "m", metric, shown._replace(dash="-"), parent.name, width=2.2)
    trained = full.loc[full["configuration"].isin([config.number for config in smaller])]
    trained = trained.drop_duplicates("configuration").sort_values(by="m")
    if not trained.empty:
        series(ax, trained, "m", metric, shown, parent.name, filled=False, width=0)


def hows_of(cuts: pd.DataFrame) -> list[str]:
    """The orders that any of the cuts was made in."""
    return [how for how in ORDERS if how in set(cuts["how"])]


def cuts_of(group: Group, metric: str) -> pd.DataFrame:
    """The pruned and prefix views in which `metric` was measured, by size."""
    views = group.views.loc[group.views["view"].isin(["pruned", "prefix"]) & group.views[metric].notna()]
    return views.assign(rule=views["rule"].fillna("")).sort_values(by="m")


def with_whole(cut: pd.DataFrame, full: pd.DataFrame) -> pd.DataFrame:
    """A cut's views and, behind them, the uncut SAE: in the mode of the cut if it was measured so."""
    own = full.loc[full["configuration"] == cut["configuration"].iloc[0]]
    same = own.loc[own["mode"] == cut["mode"].iloc[0]]
    return pd.concat([cut, (own if same.empty else same).head(1)])


def like(group: Group, parent: Config, how: str) -> list[Config]:
    """The smaller SAEs like `parent`, of its k or, where k is scaled, of k * m / d_sae."""
    smaller = [config for config in group.configs if config.d_sae < parent.d_sae]
    if how == "scaled":
        return [config for config in smaller if is_scaled(config, parent)]
    return [config for config in smaller if config.like == parent.like]


def is_scaled(config: Config, parent: Config) -> bool:
    """Whether `config` is `parent` with d_sae and k scaled alike."""
    alike = (config.variant, config.others) == (parent.variant, parent.others)
    return alike and parent.k is not None and config.k == max(1, round(parent.k * config.d_sae / parent.d_sae))


def pruning_rules(group: Group) -> list[Figure]:
    """FVU against m under each pruning rule: one row per SAE, one column per order of selecting and pruning."""
    cuts = cuts_of(group, "fvu")
    parents = sorted(largest(group.measured(cuts.loc[cuts["rule"] != ""])), key=lambda parent: parent.facet)
    return [rules_page(group, cuts, page) for page in pages(parents, ROWS["rules"])]


def rules_page(group: Group, cuts: pd.DataFrame, parents: list[Config]) -> Figure:
    """One page of `pruning_rules`."""
    hows = hows_of(cuts)
    figure, axes = grid(len(parents), len(hows), group.note())
    head(axes, [ORDERS[how] for how in hows], [f"{parent.name}\n{parent.sparsity}" for parent in parents])
    full = group.full("fvu")
    for row, parent in zip(axes, parents, strict=True):
        mine = cuts.loc[cuts["configuration"] == parent.number]
        own = full.loc[full["configuration"] == parent.number]
        for ax, how in zip(row, hows, strict=True):
            draw_rules(ax, parent, mine.loc[mine["how"] == how], own)
            if how in set(mine["how"]):
                draw_references(ax, references(group, parent, how), cuts.loc[cuts["how"] == how], full)
            else:
                blank(ax, "not measured" if parent.k else "as on the left: without k\nlatents do not compete")
    scale_axes(axes, "fvu")
    drawn = set(cuts.loc[cuts["configuration"].isin([parent.number for parent in parents]), "rule"])
    keys = [key(label, marker, dash) for rule, (label, marker, dash) in RULES.items() if rule in drawn]
    legend(figure, [*keys, *(line for ax in axes.flat for line in ax.get_lines() if line.get_gid() == REFERENCE)])
    return figure


def draw_rules(ax: Axes, parent: Config, cuts: pd.DataFrame, full: pd.DataFrame) -> None:
    """Draw one SAE's FVU against m, a line per rule, in the variant's colour."""
    for rule, (label, marker, dash) in RULES.items():
        cut = cuts.loc[cuts["rule"] == rule]
        if not cut.empty:
            shown = parent.shown._replace(marker=marker, dash=dash)
            series(ax, with_whole(cut, full), "m", "fvu", shown, label)


def references(group: Group, parent: Config, how: str) -> tuple[list[Config], list[Config]]:
    """What `parent` cut is to be held against: nested SAEs of its size and sparsity, and its like trained smaller."""
    nested = [
        config
        for config in group.configs
        if config.shown.nested and (config.d_sae, config.facet) == (parent.d_sae, parent.facet)
    ]
    return [config for config in nested if config.variant != parent.variant], like(group, parent, how)


def draw_references(
    ax: Axes, against: tuple[list[Config], list[Config]], cuts: pd.DataFrame, full: pd.DataFrame
) -> None:
    """Draw, in thin lines, the prefixes of the nested SAEs and, unfilled, the SAEs trained at each size."""
    nested, smaller = against
    for config in nested:
        prefix = cuts.loc[(cuts["configuration"] == config.number) & (cuts["rule"] == "")]
        if not prefix.empty:
            reference(ax, with_whole(prefix, full), config.shown, f"{config.name} (prefix)", "-", "")
    trained = full.loc[full["configuration"].isin([config.number for config in smaller])]
    if not trained.empty:
        points = trained.drop_duplicates("configuration").sort_values(by="m")
        reference(
            ax, points, smaller[0].shown, f"{smaller[0].name}, trained at size m", DASHES[2], smaller[0].shown.marker
        )


def reference(ax: Axes, table: pd.DataFrame, shown: Look, label: str, dash: Any, marker: str) -> None:
    """Draw means against m as a thin line under the others."""
    style = {"color": shown.colour, "alpha": shown.alpha, "linestyle": dash, "linewidth": 0.8}
    x, y = (table[name].to_numpy(dtype=float) for name in ("m", "fvu"))
    ax.plot(x, y, marker=marker, markersize=5, markerfacecolor="none", label=label, gid=REFERENCE, zorder=1.5, **style)


def scale_axes(axes: np.ndarray, metric: str) -> None:
    """Scale and name the axes of a figure against size."""
    scale(axes.flat, "x", 2)
    if metric not in BOUNDED:
        scale(axes.flat, "y")
    name_axes(axes, NAMES["m"], NAMES[metric])
