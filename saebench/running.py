"""What living processes make in an outputs folder: outputs/running/ holds a small file of each, for `watch`, `ls` and `rm`.

A process holds the lock of its file, so a file without is what a killed process left. Nothing here is part of any key.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, Self

from saebench.checks import InputError
from saebench.progress import say
from saebench.store import held, lock, read_json, write_json

EVERY = 2.0  # seconds between writes


class Going(Protocol):
    """A run in training, as far as it is told of here (member.Member)."""

    done: int
    steps: int
    log: list[dict[str, Any]]
    failure: str | None


class Running:
    """Says what this process does to some runs, anew at most every EVERY seconds; within `with`.

    `runs` maps their names to what is in training, or to None. A disk that takes no more ends the telling, not the work.
    """

    def __init__(self, outputs: Path, doing: str, runs: Mapping[str, Going | None]) -> None:
        self.path = outputs / "running" / f"{doing}-{socket.gethostname()}-{os.getpid()}.json"
        self.doing, self.runs, self.began = doing, runs, time.time()
        self.start = {name: going.done for name, going in runs.items() if going is not None}
        self.next, self.open = 0.0, ExitStack()

    def __enter__(self) -> Self:
        self.open.enter_context(lock(self.path))
        self.open.callback(self.path.unlink, missing_ok=True)
        sweep(self.path.parent.parent)
        self.tell()
        return self

    def __exit__(self, *failure: object) -> None:
        self.open.close()

    def before(self, after_step: Callable[[], None]) -> Callable[[], None]:
        """Tell, if it is time, then do what else is to be done after a step."""

        def both() -> None:
            if time.monotonic() >= self.next:
                self.tell()
            after_step()

        return both

    def tell(self) -> None:
        """Write the file."""
        self.next = time.monotonic() + EVERY
        record = {"doing": self.doing, "host": socket.gethostname(), "pid": os.getpid()}
        record |= {"began": self.began, "written": time.time()}
        try:
            write_json(self.path, record | {"runs": {name: self.told(name) for name in self.runs}})
        except OSError as error:
            self.next = float("inf")
            say(f"{self.path}: {error.strerror}; `saebench watch` will not see how this goes on")

    def told(self, name: str) -> dict[str, Any]:
        """What is told of a run: steps at the start, done and in all, why it failed, the last row of its log."""
        going = self.runs[name]
        if going is None:
            return {}
        steps = {"start": self.start[name], "done": going.done, "steps": going.steps, "failure": going.failure}
        return steps | {"last": going.log[-1] if going.log else {}}


def sweep(outputs: Path) -> None:
    """Remove what killed processes left of what they told."""
    for left in (outputs / "running").glob("*.json*"):
        record = left.with_name(left.name.partition(".json")[0] + ".json")  # it, its lock or a torn part of it
        if not held(record):
            left.unlink(missing_ok=True)


def live(outputs: Path) -> list[dict[str, Any]]:
    """What the living processes told last, the oldest first; a file torn away or damaged meanwhile is passed over."""
    found = []
    for path in sorted((outputs / "running").glob("*.json")):
        try:
            if held(path):
                found.append(read_json(path))
        except (InputError, FileNotFoundError):
            continue
    return sorted(found, key=lambda status: status["began"])
