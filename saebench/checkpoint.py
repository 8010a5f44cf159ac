"""Checkpoints: a member's whole training state on disk, so that an interrupted command, given again, goes on from there.

Each is two files, step-<n>.safetensors and step-<n>.json; the JSON is written last and holds the checksum of the other and, as
its seal, one of itself. The two newest are kept: a torn one is passed over.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from safetensors.torch import load_file

from saebench.checks import InputError
from saebench.member import Member
from saebench.parallel import SOLO, World
from saebench.progress import say
from saebench.store import checksum, key_of, read_json, read_mapping, write_json, write_tensors

KEPT = 2
FAILED = "failed.json"  # says why a run stopped; its last good checkpoint stays beside it
SHARE = 0.05  # of the time that checkpoints may take


def save_checkpoint(member: Member, folder: Path) -> None:
    """Write the state of a member into `folder`, and remove all but the newest KEPT; a state that is not finite is not."""
    tensors, record = member.state()
    if not all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point()):
        return
    path = folder / f"step-{member.done:09d}.safetensors"
    write_tensors(path, tensors)
    record["sha256"] = checksum(path)
    write_json(path.with_suffix(".json"), record | {"seal": key_of(record)})
    for old in checkpoints(folder)[KEPT:]:
        remove(old)


def load_checkpoint(member: Member, folder: Path) -> bool:
    """Give a fresh member the newest whole checkpoint in `folder`; whether there was one."""
    for path in checkpoints(folder):
        if whole(path):
            member.restore(load_file(path.with_suffix(".safetensors")), read_json(path))
            return True
        say(f"{path}: this checkpoint is not whole and is passed over")
        remove(path)
    return False


def checkpoints(folder: Path) -> list[Path]:
    """The JSON files of the checkpoints in `folder`, the newest first."""
    return sorted(folder.glob("step-*.json"), reverse=True)


def whole(path: Path) -> bool:
    """Whether both files of a checkpoint are what was written."""
    tensors = path.with_suffix(".safetensors")
    try:
        record = read_mapping(path)
    except InputError:
        return False
    seal = record.pop("seal", None)
    return seal == key_of(record) and tensors.is_file() and record.get("sha256") == checksum(tensors)


def remove(path: Path) -> None:
    """Remove both files of a checkpoint, the JSON first."""
    path.unlink(missing_ok=True)
    path.with_suffix(".safetensors").unlink(missing_ok=True)


def why_failed(folder: Path) -> str:
    """Why the run whose unfinished stage is `folder` stopped for good; nothing if it did not."""
    path = folder / FAILED
    return str(read_mapping(path).get("failure")) if path.is_file() else ""


def clear(folder: Path) -> None:
    """Remove what checkpoints left in a folder."""
    for path in (*folder.glob("step-*"), folder / FAILED):
        path.unlink(missing_ok=True)


class Saver:
    """Saves members every `seconds` (0: never), less often where that would take more than SHARE of the time.

    Fresh members first go on from their newest checkpoints. Inside `watching()` the first SIGINT or SIGTERM is only noted;
    `after_step` then saves and raises KeyboardInterrupt; a second one interrupts at once. Among several ranks rank 0 saves, and
    a signal to one of them is noted by all.
    """

    def __init__(self, folders: dict[Path, Member], seconds: float, world: World = SOLO) -> None:
        self.folders, self.seconds, self.world = folders, seconds, world
        with world.first():  # which removes what is torn
            going_on = sum([load_checkpoint(member, folder) for folder, member in folders.items()])
            for folder in folders:
                (folder / FAILED).unlink(missing_ok=True)
        if going_on:
            say(f"{going_on} of {len(folders)} SAEs go on from a checkpoint")
        self.next = time.monotonic() + seconds
        self.asked = False

    def after_step(self) -> None:
        """Save if it is time."""
        if self.world.either(self.asked):
            self.save()
            raise KeyboardInterrupt
        if self.seconds > 0 and self.world.decided(lambda: time.monotonic() >= self.next):
            took = self.save()
            self.next = time.monotonic() + max(self.seconds, took / SHARE)

    def save(self) -> float:
        """Save every member that did not fail and has steps to go; returns the seconds it took."""
        began = time.monotonic()
        for folder, member in self.folders.items():
            member.settle()
            if member.failure is not None or member.done == 0:
                continue
            if self.world.leads:
                save_checkpoint(member, folder)
            else:
                deque(member.shared(), maxlen=0)  # this rank's share of what rank 0 saves
        return time.monotonic() - began

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note the signals that end a process, as far as this thread may."""
        try:
            before = {number: signal.signal(number, self.note) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def mark_failed(self) -> None:
        """Leave word in the folders of members that failed."""
        for folder, member in self.folders.items():
            if member.failure is not None and self.world.leads:
                write_json(folder / FAILED, {"failure": member.failure})

    def note(self, number: int, frame: FrameType | None) -> None:
        """A signal came."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        say(f"{signal.Signals(number).name}: saving after this step; once more interrupts at once")
