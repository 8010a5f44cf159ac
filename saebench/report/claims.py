"""The claims of outputs/claims.csv with their verdicts, what was found under each condition, and each pair's effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from saebench.figures.claims import MARGIN, NUMBERS, read
from saebench.report.studies import listed, rounded

SHOWN = ["condition", "comparison", "verdict", *NUMBERS, "p", "pairs", "seeds", "reason"]
COUNTS = ["p", "pairs", "seeds"]


def read_verdicts(outputs: Path) -> list[dict[str, Any]]:
    """Every claim, in the order of claims.csv; none without that file. Effects and margins are in the unit of `unit`."""
    claims, pairs = read(outputs / "claims.csv"), read(outputs / "tables" / "pairs.csv")
    if claims.empty:
        return []
    found = []
    for (experiment, name), rows in claims.groupby(["experiment", "id"], sort=False):  # pyright: ignore
        own = pairs.loc[(pairs["experiment"] == experiment) & (pairs["id"] == name)] if len(pairs) else pairs
        found.append(verdict_of(rows, own))
    return found


def verdict_of(rows: pd.DataFrame, pairs: pd.DataFrame) -> dict[str, Any]:
    """A claim: its verdict, the first of its rows; what was found, the others; the effect of every pair by finding."""
    head, below = rows.iloc[0], numbered(rows.iloc[1:])
    effects: dict[tuple[str, str], list[float]] = {}
    for pair in pairs.to_dict("records"):
        effects.setdefault((pair["condition"], pair["comparison"]), []).append(rounded(pair["effect"]))
    keys = zip(below["condition"], below["comparison"], strict=True)
    named = {name: head[name] for name in ("experiment", "id", "verdict", "unit", "reason", "source", "text")}
    margin = [*numbered(rows)[MARGIN].iloc[0]] if set(MARGIN) <= set(rows) else [None, None]
    return {
        **named,
        **{name: listed(numbered(rows)[name])[0] for name in (*NUMBERS, *COUNTS)},
        "margin": listed(margin),
        "runs": head["runs"].split(),
        "findings": {name: listed(below[name]) for name in SHOWN},
        "effects": [effects.get(key, []) for key in keys],
    }


def numbered(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with numbers as such."""
    return rows.assign(**{name: pd.to_numeric(rows[name]) for name in (*COUNTS, *MARGIN) if name in rows})
