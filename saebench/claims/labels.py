"""Words for rows and comparisons."""

from __future__ import annotations

from typing import Any


def describe(side: dict[str, Any]) -> str:
    """A side, or a part of it, in one line."""
    return ", ".join(f"{name}={'empty' if value is None else value}" for name, value in side.items())


def differing(labels: list[dict[str, Any]]) -> list[str]:
    """The columns that tell labels apart."""
    names = dict.fromkeys(name for label in labels for name in label)
    return [name for name in names if len({label.get(name) for label in labels}) > 1]


def name_of(label: dict[str, Any], told: list[str]) -> str:
    """A label by the columns that tell it from others."""
    return ", ".join(f"{name} {'none' if label[name] is None else label[name]}" for name in told if name in label)


def few(names: list[str]) -> str:
    """Some names and the number of the others."""
    return "; ".join(names[:3]) + (f"; {len(names) - 3} more" if len(names) > 3 else "")


def ambiguous(rows: list[dict[str, Any]]) -> str:
    """What tells rows apart, measurements left aside."""
    names = ("variant", "view", "rule", "order", "m", "budget", "mode", "d_sae", "k", "levels", "coefficient", "run")
    told = [name for name in names if len({row.get(name) for row in rows}) > 1][:3]
    return "they differ in " + ", ".join(f"{name} ({', '.join(str(row[name]) for row in rows[:4])})" for name in told)
