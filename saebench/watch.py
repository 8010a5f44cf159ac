"""The live view: what processes make in an outputs folder, drawn anew on a terminal, as plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from saebench.checks import require
from saebench.running import live
from saebench.shelf import duration
from saebench.store import held, partial_of

REFRESH, LINES = 1.0, 10.0  # seconds between looks, on a terminal and elsewhere
GRACE = 10.0  # seconds without any work before the watch ends: between two stages a process holds nothing
MEMBERS = 40  # rows of a gang that are shown
NUMBERS = {"loss": "{:.4g}", "fvu": "{:.4f}", "l0": "{:.1f}", "dead": "{:,}", "tokens_per_s": "{:,.0f}"}
HEADS = {"fvu": "FVU", "l0": "L0", "tokens_per_s": "tokens/s"}


def watch(outputs: Path, once: bool = False) -> None:
    """Show what is going on in `outputs` until nothing is, or only once. Raises InputError if there is no such folder."""
    require(outputs.is_dir(), f"outputs={outputs}: there is no such folder; name one that saebench writes to")
    console = Console(soft_wrap=not sys.stdout.isatty(), highlight=False)
    if once or not console.is_terminal:
        for statuses, caches in looks(outputs, LINES, once):
            console.print("\n".join(lines_of(statuses, caches)), markup=False)
        return
    with Live(console=console, auto_refresh=False) as view:
        for statuses, caches in looks(outputs, REFRESH):
            view.update(drawn(statuses, caches), refresh=True)


def looks(outputs: Path, every: float, once: bool = False) -> Iterator[tuple[list[dict[str, Any]], list[str]]]:
    """What is told, `every` so many seconds, until nothing has been for GRACE seconds; at once if nothing is at first."""
    idle, first = 0.0, True
    while idle < GRACE:
        statuses, caches = live(outputs), caches_of(outputs)
        busy = bool(statuses or caches)
        if busy or first or idle == 0:
            yield statuses, caches
        if once or (first and not busy):
            return
        idle, first = 0.0 if busy else idle + every, False
        time.sleep(every)


def caches_of(outputs: Path) -> list[str]:
    """What is being cached, in words."""
    found = []
    for lock in sorted([*(outputs / "activations").glob("*.lock"), *(outputs / "tokens").glob("*.lock")]):
        path = lock.with_suffix("")
        if held(path):
            shards = len(list(partial_of(path).glob("shard-*.safetensors")))
            found.append(
                f"{path.parent.name}/{path.name}: being made" + (f", {shards} shards so far" if shards else "")
            )
    return found


def share_of(status: dict[str, Any]) -> float:
    """How much of its training a gang has done, from 0 to 1."""
    return sum(run["done"] for run in status["runs"].values()) / sum(run["steps"] for run in status["runs"].values())


def seconds_left(status: dict[str, Any]) -> float | None:
    """How long a gang will take at its speed since it began; None before its first steps."""
    runs = status["runs"].values()
    made = max(run["done"] - run["start"] for run in runs)
    left = max((run["steps"] - run["done"] for run in runs if run["failure"] is None), default=0)
    return left * (status["written"] - status["began"]) / made if made else None


def title_of(status: dict[str, Any]) -> str:
    """A process's work in one line."""
    runs, where = status["runs"], f"on {status['host']}, process {status['pid']}"
    if status["doing"] != "training":
        return f"{status['doing']} {len(runs)} SAEs for {duration(time.time() - status['began'])} {where}"
    left = seconds_left(status)
    rest = f", {duration(left)} left" if left is not None else ""
    return f"training {len(runs)} SAEs: {share_of(status):.0%}{rest} {where}"


def cells_of(run: dict[str, Any]) -> list[str]:
    """What a run's last logged row says."""
    return [form.format(run["last"][name]) if name in run["last"] else "" for name, form in NUMBERS.items()]


def lines_of(statuses: list[dict[str, Any]], caches: list[str]) -> list[str]:
    """Everything as plain text: a line for each process, and for each SAE in training."""
    lines = [*caches]
    for status in statuses:
        lines.append(title_of(status))
        if status["doing"] == "training":
            for name, run in status["runs"].items():
                named = zip(NUMBERS, cells_of(run), strict=True)
                numbers = ", ".join(f"{HEADS.get(key, key)} {text}" for key, text in named if text)
                lines.append(f"  {name}: step {run['done']:,} of {run['steps']:,}; {run['failure'] or numbers}")
    return lines or ["nothing is being made"]


def drawn(statuses: list[dict[str, Any]], caches: list[str]) -> Group:
    """Everything as a terminal shows it."""
    parts: list[Any] = [Text(text) for text in caches]
    for status in statuses:
        parts.append(Text(title_of(status), style="bold"))
        parts += [table_of(status)] if status["doing"] == "training" else []
    return Group(*(parts or [Text("nothing is being made; ends soon, or with Ctrl-C")]))


def table_of(status: dict[str, Any]) -> Table:
    """A row for each SAE of a gang, at most MEMBERS of them."""
    table = Table(box=None, pad_edge=False)
    table.add_column("run", no_wrap=True)
    table.add_column("")
    for name in ("step", *NUMBERS):
        table.add_column(HEADS.get(name, name), justify="right", no_wrap=True)
    shown = list(status["runs"].items())[:MEMBERS]
    for name, run in shown:
        bar = ProgressBar(total=run["steps"], completed=run["done"], width=16)
        state = Text(run["failure"], style="red") if run["failure"] else bar
        table.add_row(Text(name), state, f"{run['done']:,}", *cells_of(run))
    if len(status["runs"]) > MEMBERS:
        table.caption = f"and {len(status['runs']) - MEMBERS} more"
    return table
