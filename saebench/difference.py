"""How two runs differ: in their configs, in their environments, and in what was measured of each view that both have."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from saebench.checks import require
from saebench.config import flatten
from saebench.shelf import as_number, config_of
from saebench.store import read_json

VIEW = ("view", "rule", "order", "m", "budget", "mode", "tokens")
NAMES = ("run", "variant", "model", "layer", "site", "data", "seed", "order_seed", "d_in", "d_sae", "k", "coefficient")
ABSENT = "-"
Pair = tuple[str, str]


def describe_difference(a: Path, b: Path, every: bool = False) -> str:
    """The differences of two finished runs as text: configs, environments, metrics of the full views or of every view.

    A change is b - a; its percentage is of a. Raises InputError for a folder that is not a finished run.
    """
    for folder in (a, b):
        require((folder / "done.json").is_file(), f"{folder}: not a finished run; `saebench ls` lists them")
    heads = ["", a.name, b.name]
    parts = [titled("config", aligned([heads, *listed(differing(*(flatten(config_of(f)) for f in (a, b))))]))]
    parts.append(titled("environment", aligned([heads, *listed(differing(*(environment(f) for f in (a, b))))])))
    views = [views_of(folder / "metrics.csv") for folder in (a, b)]
    shared = [view for view in views[0] if view in views[1]]
    shown = [view for view in shared if every or view[0] == "full"]
    heads = ["", a.name, b.name, "change", "%"]
    parts += [titled(label(view), aligned([heads, *changes(views[0][view], views[1][view])])) for view in shown]
    alone = [f"{len(v) - len(shared)} of {f.name}" for f, v in zip((a, b), views, strict=True)]
    parts.append(f"{len(shared)} views are in both runs, {len(shown)} shown; not in the other run: {', '.join(alone)}")
    return "\n\n".join(parts)


def differing(a: dict[str, str], b: dict[str, str]) -> dict[str, Pair]:
    """The keys whose values differ, or that only one has."""
    pairs = {key: (a.get(key, ABSENT), b.get(key, ABSENT)) for key in [*a, *(key for key in b if key not in a)]}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def environment(folder: Path) -> dict[str, str]:
    """Device, threads and versions of a run."""
    found: dict[str, Any] = read_json(folder / "env.json") if (folder / "env.json").is_file() else {}
    return flatten({key: value for key, value in found.items() if key != "activations"})


def listed(pairs: dict[str, Pair]) -> list[list[str]]:
    """Rows of a table."""
    return [[key, *pair] for key, pair in pairs.items()]


def views_of(path: Path) -> dict[tuple[str, ...], dict[str, str]]:
    """The rows of a metrics.csv by view; without the file none."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {view_of(row): row for row in csv.DictReader(file)}


def view_of(row: dict[str, str]) -> tuple[str, ...]:
    """What tells a row from the others of its run; without d_sae and k, in which runs may differ, where they are its own."""
    own = {"m": row["d_sae"], "budget": row["k"]}
    return tuple("" if row[name] == own.get(name) else row[name] for name in VIEW)


def label(view: tuple[str, ...]) -> str:
    """A view in words."""
    kind, rule, order, m, budget, mode, tokens = view
    words = [kind, rule, order, f"m {m}" if m else "", f"budget {budget}" if budget else ""]
    return ", ".join(word for word in (*words, mode, f"{tokens} tokens") if word)


def changes(a: dict[str, str], b: dict[str, str]) -> list[list[str]]:
    """A row for each number that both runs have: a, b, b - a, and that as a percentage of a."""
    rows = []
    for name in a:
        x, y = as_number(a[name]), as_number(b.get(name) or "")
        if name in (*VIEW, *NAMES) or x is None or y is None:
            continue
        share = f"{100 * (y - x) / abs(x):+.2f}" if x else ""
        rows.append([name, f"{x:.6g}", f"{y:.6g}", f"{y - x:+.3g}", share])
    return rows


def titled(title: str, table: str) -> str:
    """A table under its title; one without rows says so."""
    return f"{title}\n{table}" if "\n" in table else f"{title}: no difference"


def aligned(rows: list[list[str]]) -> str:
    """Columns padded to equal width: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{t:{'>' if i else '<'}{widths[i]}}" for i, t in enumerate(row)) for row in rows)
    return "\n".join(f"  {line.rstrip()}" for line in lines)
