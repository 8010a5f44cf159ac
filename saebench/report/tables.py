"""The tables that the page shows as they are, beside those its figures draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saebench.figures.data import optional
from saebench.report.studies import listed

EXTRAS = {
    "summary": "Every configuration: mean and sd of what was measured of the full SAEs",
    "runs": "Which run is of which configuration",
    "lr_search": "Learning rates that were tried",
    "reached": "Runs that it took to reach a mean L0",
    "frontier": "Area under explained variance against log L0",
    "seeds": "How alike SAEs of different seeds are",
    "laws": "Power laws and their rivals",
    "levels": "Latents by nested group",
    "interpretability": "Scores of latents",
    "agreement": "How scores agree",
    "probing": "What latents know: labels, first letters",
}
MOST = 3000  # rows of a table


def read_extras(outputs: Path) -> list[dict[str, Any]]:
    """The tables of EXTRAS that are there, columns that are empty throughout left out; `left_out` rows are in the file alone."""
    found = []
    for name, title in EXTRAS.items():
        (table,) = optional(outputs, name)
        if not len(table):
            continue
        shown = table.head(MOST).dropna(axis="columns", how="all")
        columns = {str(column): listed(shown[column]) for column in shown if not str(column).endswith("_count")}
        found.append({"name": name, "title": title, "columns": columns, "left_out": len(table) - len(shown)})
    return found
