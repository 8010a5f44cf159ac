"""Checks of everything finished under outputs/ against the checksums written with it, and the repair of what is damaged."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saebench.checks import InputError
from saebench.progress import Progress
from saebench.store import discard, fault_of, is_record, lock, partial_of, read_json, read_mapping, write_json


@dataclass(frozen=True)
class Damage:
    """A file of a finished stage that is not what was written: `what` says how."""

    stage: Path
    name: str
    what: str

    def __str__(self) -> str:
        return f"{self.stage / self.name}: {self.what}"


def verify(outputs: Path, repair: bool = False) -> list[Damage]:
    """Everything damaged in the finished stages of an outputs folder; with `repair` it is removed, so that it is made again.

    Of an activation cache only the damaged shards go; of anything else the whole stage. Raises InputError for no folder.
    """
    if not outputs.is_dir():
        raise InputError(f"outputs={outputs}: there is no such folder; name one that saebench wrote")
    stages = sorted(record.parent for record in outputs.rglob("done.json"))
    records = {stage: files_of(stage) for stage in stages if not stage.name.endswith(".partial")}
    total = sum(int(record["bytes"]) for files in records.values() for record in (files or {}).values())
    found: list[Damage] = []
    with Progress(total, "bytes", f"verifying {len(records)} stages") as progress:
        for stage, files in records.items():
            if files is None:
                found.append(Damage(stage, "done.json", "does not say what the stage consists of"))
            for name, record in (files or {}).items():
                what = fault_of(stage / name, record)
                found += [Damage(stage, name, what)] if what else []
                progress.advance(int(record["bytes"]))
    if repair:
        for stage in sorted({damage.stage for damage in found}):  # a run before its evaluations, which go with it
            if stage.exists():
                mend(stage, [damage.name for damage in found if damage.stage == stage])
    return found


def files_of(stage: Path) -> dict[str, dict[str, Any]] | None:
    """The files that a done.json names, with bytes and checksums; None if it cannot be read or points elsewhere."""
    try:
        whole = read_mapping(stage / "done.json")
        files = whole.get("files")
        if "inputs" not in whole or not isinstance(files, dict) or not all(map(is_record, files.values())):
            return None
        places = [(stage / name).resolve() for name in files]
        for place in places:
            place.exists()  # raises for a name that no file can have
        return files if all(stage.resolve() in place.parents for place in places) else None
    except (InputError, OSError, ValueError):
        return None


def mend(stage: Path, names: list[str]) -> None:
    """Take damaged files away, so that the command that made the stage makes them again."""
    with lock(stage):
        if stage.parent.name != "activations" or not (stage / "manifest.json").is_file() or "done.json" in names:
            discard(stage)
            return
        inputs = read_json(stage / "done.json")["inputs"]
        for name in names:
            (stage / name).unlink(missing_ok=True)
        (stage / "done.json").unlink()
        write_json(stage / "begun.json", inputs)
        shutil.rmtree(partial_of(stage), ignore_errors=True)
        stage.rename(partial_of(stage))
