"""What the page's figures draw, as JSON: each model, layer, site and data set with its configurations, views and curves."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from saebench.figures.data import Config, configs_of, optional, unused, with_how
from saebench.figures.style import LOOKS, NAMES, Look
from saebench.tables import MEASURES, PLACE, missing, read_table, varying

TOKENS = "typical"
VIEWS = ["configuration", "view", "rule", "how", "m", "budget", "mode", "runs"]
CURVES = ["tokens", "loss", "fvu", "l0", "dead"]
RANKS = ["rank", "energy", "frequency"]
POINTS = 24_000  # of all curves together
SYMBOLS = {
    **{"o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down", ">": "triangle-right"},
    **{"<": "triangle-left", "P": "cross", "X": "x", "h": "hexagon", "p": "pentagon", "*": "star", "d": "diamond-tall"},
    "8": "octagon",
}


def read_studies(outputs: Path) -> list[dict[str, Any]]:
    """A study for each model, layer, site and data set. Raises InputError without the tables summary and runs.

    Without the tables views, curves and latents a study has none of these, and the page says so.
    """
    summary, runs = read_table(outputs, "summary"), read_table(outputs, "runs")
    split = [key for key in varying(summary) if "." in key]
    full = summary.loc[summary["tokens"] == TOKENS].assign(view="full", rule=None, order=None, m=summary["d_sae"])
    (views,), (curves,), (latents,) = (optional(outputs, name) for name in ("views", "curves", "latents"))
    cuts = views.loc[(views["tokens"] == TOKENS) & (views["view"] != "full")] if len(views) else views
    drawn = with_how(pd.concat([full.assign(budget=full["k"]), cuts])).drop(columns=unneeded(full))
    found = []
    for _, members in runs.groupby(PLACE, sort=True):
        own = drawn.loc[drawn["configuration"].isin(members["configuration"])]
        configs = configs_of(members, own, split)
        measures = [name for name in MEASURES if name in own and own[name].notna().any()]
        found.append(
            {
                "title": "{}, layer {}, {}; {}".format(*(members[name].iloc[0] for name in PLACE)),
                "configs": [described(config, members) for config in configs],
                "measures": {name: " ".join(NAMES.get(name, MEASURES[name][0]).split()) for name in measures},
                "heads": {name: MEASURES[name][0] for name in measures},
                "views": columns(own, [*VIEWS, *measures, *(f"{name}_sd" for name in measures)]),
                "curves": by_run(curves, members, CURVES),
                "latents": by_run(latents, members, RANKS),
                "costs": costs(curves, members),
            }
        )
    return found


def unneeded(table: pd.DataFrame) -> list[str]:
    """Columns that no figure reads."""
    return [name for name in table if unused(name) and name not in VIEWS]


def described(config: Config, members: pd.DataFrame) -> dict[str, Any]:
    """A configuration: what it is, its runs, how it looks."""
    shown = config.shown
    knobs = {"number": config.number, "variant": config.variant, "d_sae": int(config.d_sae), "facet": config.facet}
    text = {
        "name": config.name,
        "sparsity": config.sparsity,
        "like": " ".join(map(str, (config.variant, config.others))),
    }
    runs = members.loc[members["configuration"] == config.number, ["run", "seed", "order_seed"]]
    return {**knobs, **text, "k": config.k, "runs": runs.to_numpy().tolist(), "look": look_of(shown)}


def look_of(shown: Look) -> dict[str, Any]:
    """A look in Plotly's words."""
    dash = "solid" if shown.dash == "-" else ",".join(f"{2 * part:g}px" for part in shown.dash[1])
    symbol = SYMBOLS.get(shown.marker, "circle")
    return {"colour": shown.colour, "symbol": symbol, "dash": dash, "alpha": shown.alpha, "nested": shown.nested}


def looks() -> dict[str, str]:
    """Every variant's name in print."""
    return {variant: shown.name for variant, shown in LOOKS.items()}


def columns(table: pd.DataFrame, names: Iterable[str]) -> dict[str, list[Any]]:
    """The columns of a table as lists that JSON can hold."""
    return {name: listed(table[name]) for name in names if name in table}


def listed(column: Iterable[Any]) -> list[Any]:
    """Values as JSON holds them: numbers to five digits, None for what is missing."""
    return [None if missing(value) else rounded(value) for value in column]


def rounded(value: Any) -> Any:
    """A number with five significant digits, other values as they are; None for an infinite one."""
    value = value.item() if isinstance(value, np.generic) else value
    if not isinstance(value, float):
        return value
    return (int(value) if value == int(value) else float(f"{value:.5g}")) if np.isfinite(value) else None


def by_run(table: pd.DataFrame, members: pd.DataFrame, names: list[str]) -> list[dict[str, Any]]:
    """A run's curves, thinned so that all runs together have about POINTS points."""
    if not len(table):
        return []
    most = max(20, POINTS // len(set(table["run"])))
    found = []
    for run, rows in table.loc[table["run"].isin(members["run"])].groupby("run", sort=True):
        places = np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int))
        number = int(members.loc[members["run"] == run, "configuration"].iloc[0])
        found.append({"run": run, "configuration": number} | columns(rows.iloc[places], names))
    return found


def costs(curves: pd.DataFrame, members: pd.DataFrame) -> list[dict[str, Any]]:
    """Each run's own time in its steps (seconds) and the tokens it trained on; nothing of runs that did not measure it."""
    if "seconds" not in curves:
        return []
    mine = curves.loc[curves["run"].isin(members["run"])].dropna(subset="seconds")
    ends = mine.sort_values(by="tokens").drop_duplicates("run", keep="last")
    return [
        {"run": run, "seconds": rounded(float(seconds)), "tokens": int(tokens)}
        for run, seconds, tokens in zip(ends["run"], ends["seconds"], ends["tokens"], strict=True)
    ]
