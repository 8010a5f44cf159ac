"""The runs of an outputs folder as their files tell of them: what each is, how far it is, what was measured of it; no torch."""

from __future__ import annotations

import csv
import difflib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from saebench.checks import InputError, require
from saebench.config import flatten
from saebench.runconfig import read_config
from saebench.running import live
from saebench.store import held, partial_of, read_json

STATES = ("done", "trained", "training", "evaluating", "interrupted", "failed", "damaged")
MODES = ("threshold", "batch", "topk")  # of a full view, the one a user of the SAE gets first
SHORT = {"variant": "sae.name", "model": "model.name", "data": "data.name"}  # of filters, beside each key's last part
COLUMNS = {  # heading: of Shelved.measured, decimals
    "L0": ("l0", 1),
    "FVU": ("fvu", 4),
    "FVU std": ("fvu_std", 4),
    "CE increase": ("ce_increase", 4),
    "dead": ("dead_fraction", 3),
}
UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


@dataclass(frozen=True)
class Shelved:
    """A run: its folder (where it will be, if it is not finished), one of STATES, config, full view, last change (Unix time).

    `config` has dotted keys and values as text; of unfinished runs those that their weights depend on. `measured` is of
    typical held-out tokens, in the mode a user of the SAE gets first; without entries before the evaluation.
    """

    folder: Path
    state: str
    config: dict[str, str]
    measured: dict[str, float]
    changed: float

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name


def list_runs(outputs: Path, filters: Sequence[str] = ()) -> list[Shelved]:
    """The runs in outputs/runs that pass every filter, by name.

    A filter is KEY=VALUE[,VALUE ...] with * and ? in the values; KEY is run, state, variant, or a config key or its last part.
    Raises InputError for a folder without runs, and for a key that no run has.
    """
    root = outputs / "runs"
    require(root.is_dir(), f"outputs={outputs}: no runs in {root}; name a folder that saebench wrote")
    names = {p.name.removesuffix(".partial") for p in root.iterdir() if p.is_dir()}
    evaluated = {run for status in live(outputs) if status["doing"] == "evaluating" for run in status["runs"]}
    runs = [shelved(root / name, name in evaluated) for name in sorted(names)]
    for text in filters:
        runs = [run for run in runs if passes(run, *parsed(text, runs))]
    return runs


def find_run(outputs: Path, name: str) -> Path:
    """The folder of a run given as a path, or as a name in outputs/runs or its beginning. Raises InputError."""
    if (Path(name) / "config.yaml").is_file():
        return Path(name)
    found = sorted(p for p in (outputs / "runs").glob("*") if p.is_dir() and p.name.startswith(Path(name).name))
    exact = [p for p in found if p.name == Path(name).name]
    finished = [p for p in found if not p.name.endswith(".partial")]
    found = exact or finished or found
    require(bool(found), f"{name}: no such run here or in {outputs / 'runs'}; `saebench ls` lists them")
    require(len(found) == 1, f"{name}: {len(found)} runs begin so, such as {found[0].name}; write more of the name")
    return found[0]


def shelved(folder: Path, evaluated: bool = False) -> Shelved:
    """The run whose folder is, or will be, `folder`; `evaluated` says that a living process is measuring it."""
    state = "evaluating" if evaluated else state_of(folder)
    try:
        config, measured = flatten(config_of(folder)), measured_of(folder / "metrics.csv")
    except (InputError, KeyError, ValueError):
        state, config, measured = "damaged", {}, {}
    return Shelved(folder, state, config, measured, changed(folder))


def state_of(folder: Path) -> str:
    """One of STATES but evaluating, from the files alone."""
    if (folder / "done.json").is_file():
        return "done" if (folder / "metrics.csv").is_file() else "trained"
    if not partial_of(folder).is_dir():
        return "damaged"
    if held(folder):
        return "training"
    return "failed" if (partial_of(folder) / "failed.json").is_file() else "interrupted"


def config_of(folder: Path) -> dict[str, Any]:
    """config.yaml of a finished run, with the evaluation its metrics are of; of an unfinished one what begun.json says."""
    if (folder / "done.json").is_file():
        config = read_config(folder / "config.yaml")
        asked = folder / "evaluation.json"
        return config | ({"evaluate": read_json(asked)["evaluate"]} if asked.is_file() else {})
    begun = partial_of(folder) / "begun.json"
    inputs: dict[str, Any] = read_json(begun) if begun.is_file() else {}
    known = inputs.pop("activations", {})
    return {**inputs, "model": known.get("site", {}), "data": known.get("tokens", {})}


def measured_of(path: Path) -> dict[str, float]:
    """The numbers of the full view in a metrics.csv, in the first of MODES that it has; {} without the file."""
    if not path.is_file():
        return {}
    rows: list[dict[str, str]] = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["view"] == "full":
                rows += [row] if row["tokens"] == "typical" else []
            elif rows:
                break  # full views come first
    if not rows:
        return {}
    best = min(rows, key=lambda row: MODES.index(row["mode"]))
    numbers = {name: number for name, text in best.items() if (number := as_number(text)) is not None}
    if "ce_sae" in numbers and "ce_clean" in numbers:
        numbers["ce_increase"] = numbers["ce_sae"] - numbers["ce_clean"]
    return numbers


def changed(folder: Path) -> float:
    """When a run's folder, or that of the unfinished run, last changed."""
    files = [folder / "done.json", folder / "metrics.csv", *partial_of(folder).glob("*")]
    return max(
        (p.stat().st_mtime for p in files if p.exists()), default=folder.stat().st_mtime if folder.exists() else 0
    )


# filters


def parsed(text: str, runs: Sequence[Shelved]) -> tuple[str, list[str]]:
    """Key and values of a filter, the key in full."""
    key, equals, values = text.partition("=")
    require(bool(equals and key and values), f"{text}: write a filter as key=value, such as sae.k=32 or state=done")
    known = {name for run in runs for name in run.config} | {"run", "state"}
    full = SHORT.get(key, key)
    ends = sorted(name for name in known if name.rpartition(".")[2] == full)
    if full not in known and len(ends) == 1:
        full = ends[0]
    if runs and full not in known:
        ends += difflib.get_close_matches(key, [*known, *SHORT], n=1, cutoff=0.5)
        raise InputError(f"{key}: no run has this key" + (f"; did you mean {' or '.join(ends)}?" if ends else ""))
    require(
        full != "state" or all(v in STATES for v in values.split(",")), f"{text}: the states are {', '.join(STATES)}"
    )
    return full, values.split(",")


def passes(run: Shelved, key: str, values: Sequence[str]) -> bool:
    """Whether a run's key has one of the values; numbers are compared as such."""
    own = {"run": run.name, "state": run.state}.get(key, run.config.get(key))
    if own is None:
        return False
    number = as_number(own)
    return any(fnmatchcase(own, value) or (number is not None and number == as_number(value)) for value in values)


def as_number(text: str) -> float | None:
    """The number that a text says, or None."""
    try:
        return float(text)
    except ValueError:
        return None


# showing


def shelf_table(runs: Sequence[Shelved], now: float | None = None) -> str:
    """The runs as aligned text; a last line says how many there are in each state."""
    if not runs:
        return "no run"
    now = time.time() if now is None else now
    several = [
        key for key in ("model.name", "model.layer", "data.name") if len({run.config.get(key) for run in runs}) > 1
    ]
    head = [
        "run",
        "state",
        *(key.removesuffix(".name").removeprefix("model.") for key in several),
        "d_sae",
        "sparsity",
        "seed",
        *COLUMNS,
        "age",
    ]
    rows = [row_of(run, several, now) for run in runs]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    left = 2 + len(several)
    lines = [
        "  ".join(f"{text:{'<' if i < left else '>'}{widths[i]}}" for i, text in enumerate(row))
        for row in [head, *rows]
    ]
    counts = ", ".join(f"{n} {state}" for state in STATES if (n := sum(run.state == state for run in runs)))
    return "\n".join([*(line.rstrip() for line in lines), counts])


def row_of(run: Shelved, several: Sequence[str], now: float) -> list[str]:
    """A line of the table."""
    keys = [run.config.get(key, "") for key in several]
    knobs = [run.config.get("sae.d_sae", ""), sparsity_of(run.config), run.config.get("seed", "")]
    numbers = [f"{run.measured[key]:.{n}f}" if key in run.measured else "" for key, n in COLUMNS.values()]
    return [run.name, run.state, *keys, *knobs, *numbers, duration(now - run.changed)]


def sparsity_of(config: dict[str, str]) -> str:
    """What sets how many latents are active: k, the L0 a penalty is steered to, or its coefficient."""
    knobs = {"sae.k": "k", "sae.target_l0": "L0", "sae.l1": "l1", "sae.l0": "l0"}
    return next((f"{name} {config[key]}" for key, name in knobs.items() if config.get(key, "null") != "null"), "")


def duration(seconds: float) -> str:
    """A time in its largest unit: 3 d, 5 h, 12 min, 40 s."""
    size, unit = next(((size, unit) for size, unit in UNITS if seconds >= size), UNITS[-1])
    return f"{max(0.0, seconds) / size:.0f} {unit}"


def bytes_in(path: Path) -> int:
    """Bytes of a file or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(os.lstat(Path(root) / name).st_size for root, _, names in os.walk(path) for name in names)
