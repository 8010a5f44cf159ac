"""Removal of runs, and of caches that no run refers to: what would go and how much that is, then its going.

A run refers to the activations and the tokens it was made from, a cache of activations to its tokens. What a living process
makes or measures stays.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saebench.checks import InputError, require
from saebench.running import live
from saebench.shelf import Shelved, bytes_in, find_run, list_runs
from saebench.store import held, lock, partial_of, read_json

UNITS = ("B", "kB", "MB", "GB", "TB")
BUSY = ("training", "evaluating")


@dataclass(frozen=True)
class Removal:
    """A stage to be removed, finished or not: its folder when it is finished, its bytes, what speaks against it."""

    path: Path
    bytes: int
    note: str = ""


def choose(outputs: Path, words: Sequence[str]) -> list[Shelved]:
    """The runs that are named, and those that pass all of the filters among the words. Raises InputError."""
    filters = [word for word in words if "=" in word]
    named = {finished(find_run(outputs, word)).resolve() for word in words if "=" not in word}
    strange = sorted(str(folder) for folder in named if folder.parent != (outputs / "runs").resolve())
    require(not strange, f"{', '.join(strange)}: not in {outputs / 'runs'}; give its outputs folder as --outputs")
    passing = {run.folder for run in list_runs(outputs, filters)} if filters else set()
    return [run for run in list_runs(outputs) if run.folder in passing or run.folder.resolve() in named]


def finished(folder: Path) -> Path:
    """The folder of a run once it is finished."""
    return folder.with_name(folder.name.removesuffix(".partial"))


def doomed_runs(outputs: Path, runs: Sequence[Shelved]) -> list[Removal]:
    """The removal of runs but for those that are being made; those that claims.csv rests on say so."""
    behind = behind_claims(outputs / "claims.csv")
    return [
        Removal(run.folder, size_of(run.folder), "behind claims.csv" if run.name in behind else "")
        for run in runs
        if run.state not in BUSY
    ]


def doomed_caches(outputs: Path, without: Iterable[Path] = ()) -> list[Removal]:
    """The removal of the caches that no run refers to but those `without`, and that nobody is making.

    Raises InputError naming a record that cannot be read, as what it refers to is not known.
    """
    gone = {*without}
    kept = [inputs_of(run) for run in stages(outputs / "runs") if run not in gone]
    wanted = [made_from(inputs["activations"]) for inputs in kept if "activations" in inputs]
    activations = {path: inputs_of(path) for path in stages(outputs / "activations")}
    unused = [path for path, inputs in activations.items() if made_from(inputs) not in wanted and not held(path)]
    tokens = [inputs["tokens"] for inputs in wanted]
    tokens += [inputs.get("tokens") for path, inputs in activations.items() if path not in unused]
    unused += [path for path in stages(outputs / "tokens") if inputs_of(path) not in tokens and not held(path)]
    return [Removal(path, size_of(path)) for path in unused]


def stages(folder: Path) -> list[Path]:
    """The stages in a folder, finished or not, by name."""
    names = {p.name.removesuffix(".partial") for p in folder.glob("*") if p.is_dir()}
    return [folder / name for name in sorted(names)]


def inputs_of(path: Path) -> dict[str, Any]:
    """What a stage was, or is being, made from; {} if it does not say."""
    if (path / "done.json").is_file():
        return read_json(path / "done.json").get("inputs", {})
    begun = partial_of(path) / "begun.json"
    return read_json(begun) if begun.is_file() else {}


def made_from(inputs: dict[str, Any]) -> dict[str, Any]:
    """What of the inputs of activations both their shards and their statistics depend on."""
    return {name: value for name, value in inputs.items() if name != "special"}


def behind_claims(path: Path) -> set[str]:
    """The runs that a claims.csv names."""
    if not path.is_file():
        return set()
    with path.open(encoding="utf-8", newline="") as file:
        return {run for row in csv.DictReader(file) for run in (row.get("runs") or "").split()}


def size_of(path: Path) -> int:
    """Bytes of a stage, finished and unfinished."""
    return bytes_in(path) + bytes_in(partial_of(path))


def remove(outputs: Path, removals: Sequence[Removal]) -> Iterator[str]:
    """Remove each under its lock; yields why one that a process took up meanwhile stays."""
    for removal in removals:
        if removal.path.name in {run for status in live(outputs) for run in status["runs"]}:
            yield f"{removal.path}: a process is at it; it stays"
            continue
        try:
            with lock(removal.path, wait=False):
                take_away(removal.path)
        except InputError as error:
            yield str(error)


def take_away(path: Path) -> None:
    """Remove a stage: first the record that says it is finished, so that a half removed one is made again."""
    (path / "done.json").unlink(missing_ok=True)
    for folder in (path, partial_of(path)):
        if folder.is_dir():
            shutil.rmtree(folder)


def removal_table(removals: Sequence[Removal]) -> str:
    """What would go, as text, with the sum."""
    rows = [(f"{r.path.parent.name}/{r.path.name}", readable(r.bytes), r.note) for r in removals]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
    lines = [f"{name:<{widths[0]}}  {size:>{widths[1]}}  {note}".rstrip() for name, size, note in rows]
    return "\n".join([*lines, f"{len(removals)} folders, {readable(sum(r.bytes for r in removals))}"])


def readable(size: float) -> str:
    """A number of bytes in its largest unit."""
    for unit in UNITS[:-1]:
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} {UNITS[-1]}"
