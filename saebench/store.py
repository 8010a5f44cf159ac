"""Stages on disk: a folder appears under its name only when it is whole, and says what it was made from.

`stage(path, inputs, make)` locks `path`, lets `make` fill `path` + ".partial" (going on from what an interrupted process
left there for equal inputs), writes done.json with inputs, checksums and versions, and renames. Done means equal inputs.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeGuard

from saebench.checks import InputError, require
from saebench.progress import say

REMEDY = "`saebench verify --repair OUTPUTS` lets"
PACKAGES = ("saebench", "torch", "transformers", "numpy")


def key_of(inputs: dict[str, Any]) -> str:
    """The first 12 hex digits of the SHA-256 of `inputs` as canonical JSON."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def seed_of(*parts: int) -> int:
    """A 63-bit seed from small integers, so that nearby ones give unrelated streams."""
    return int(key_of({"seed": list(parts)}), 16)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that `path` holds either the old text or the whole new one, even if the power fails."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n", lasting=True)


def write_text(path: Path, text: str, lasting: bool = False) -> None:
    """Write text so that `path` holds either the old text or the whole new one; `lasting`: even if the power fails."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    if lasting:
        sync(part)
    os.replace(part, path)


def sync(path: Path) -> None:
    """Wait until a file's content is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def read_json(path: Path) -> Any:
    """The JSON in `path`. Raises InputError naming the file if it is not JSON, or nested too deep."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError: bytes, syntax, a number of too many digits
        raise InputError(f"{path}: not valid JSON ({error}); remove it and run the command again") from error


def read_mapping(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises InputError naming the file if it is anything else."""
    value = read_json(path)
    require(isinstance(value, dict), f"{path}: holds no keys and values; remove it and run the command again")
    return value


def checked(folder: Path, name: str, deep: bool = True, files: dict[str, Any] | None = None) -> Path:
    """The file `name` of a finished stage, compared with its record in done.json; only in size unless `deep`.

    `files` are the records, if they were read before. Raises InputError naming file and remedy.
    """
    record = (records_of(folder) if files is None else files).get(name)
    if not is_record(record):
        raise InputError(f"{folder / 'done.json'}: holds no checksum of {name}; {REMEDY} this stage be made again")
    fault = fault_of(folder / name, record, deep)
    require(not fault, f"{folder / name}: {fault}; {REMEDY} it be made again")
    return folder / name


def records_of(folder: Path) -> dict[str, Any]:
    """What done.json says of a stage's files, by name. Raises InputError naming it if that is nothing."""
    files = read_mapping(folder / "done.json").get("files")
    if not isinstance(files, dict):
        raise InputError(f"{folder / 'done.json'}: names no files; {REMEDY} this stage be made again")
    return files


def is_record(record: Any) -> TypeGuard[dict[str, Any]]:
    """Whether this is what done.json holds of a file."""
    return isinstance(record, dict) and type(record.get("bytes")) is int and isinstance(record.get("sha256"), str)


def discard(path: Path) -> None:
    """Remove a finished stage; one that is removed in part is no longer done."""
    (path / "done.json").unlink(missing_ok=True)
    shutil.rmtree(path)


def checksum(path: Path) -> str:
    """SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def fault_of(path: Path, record: dict[str, Any], deep: bool = True) -> str:
    """How a file differs from its record in done.json (bytes and sha256), or nothing; only in size unless `deep`."""
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != record["bytes"]:
        return f"has {size:,} bytes, not the {record['bytes']:,} that were written"
    return "is not what was written (its checksum differs)" if deep and checksum(path) != record["sha256"] else ""


def write_tensors(path: Path, tensors: dict[str, Any]) -> None:
    """Write torch tensors as safetensors, so that `path` holds either nothing or all. Raises OSError as other writing does."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    part = path.with_name(path.name + ".part")
    try:
        save_file(tensors, part)
    except SafetensorError as error:
        code = errno.ENOSPC if "os error 28" in str(error) else errno.EIO
        raise OSError(code, os.strerror(code), str(part)) from error
    sync(part)
    os.replace(part, path)


def versions() -> dict[str, str]:
    """The versions that numbers depend on: Python and the packages named in PACKAGES."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def is_done(path: Path, inputs: dict[str, Any]) -> bool:
    """Whether `path` holds a finished stage made from exactly these inputs."""
    record = path / "done.json"
    return record.is_file() and read_mapping(record).get("inputs") == json.loads(json.dumps(inputs))


@contextmanager
def lock(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a stage; while another living process holds it wait, and say so, or else raise InputError.

    The lock is the kernel's, on path + ".lock", so it is freed when its owner dies; the file goes when it is released.
    """
    name = lock_of(path)
    while True:
        file = open_lock(name)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                file.close()
                raise InputError(f"{path}: another process is making it; wait until it ends, or stop it") from None
            say(f"another process is making {path.name}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        if is_at(file.fileno(), name):
            break
        file.close()  # its last owner removed the file while we waited
    with file:
        try:
            yield
        finally:
            name.unlink(missing_ok=True)


def is_at(descriptor: int, name: Path) -> bool:
    """Whether an open file is the one that now has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), name.stat())
    except FileNotFoundError:
        return False


def lock_of(path: Path) -> Path:
    """The file whose lock is that of a stage."""
    return path.with_name(path.name + ".lock")


def held(path: Path) -> bool:
    """Whether a living process holds the lock of a stage."""
    try:
        with lock_of(path).open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def open_lock(name: Path) -> Any:
    """The lock file, created if missing. Raises InputError where nothing can be written."""
    try:
        name.parent.mkdir(parents=True, exist_ok=True)
        return name.open("w")
    except OSError as error:
        raise InputError(f"outputs: cannot write {name.parent} ({error.strerror}); choose another folder") from error


def stage(path: Path, inputs: dict[str, Any], make: Callable[[Path], None], resumes: bool = False) -> bool:
    """Make the folder `path` from `inputs` unless it is done; True if it had to be made.

    `make(partial)` fills the folder `partial`. If it `resumes`, it finds there what an interrupted `make` with equal inputs
    left behind; otherwise it finds an empty folder, and nothing is left when it fails.
    """
    if is_done(path, inputs):
        return False
    with lock(path):
        if is_done(path, inputs):
            return False
        partial = open_partial(path, inputs)
        try:
            make(partial)
        except BaseException:
            if not resumes:
                shutil.rmtree(partial)
            raise
        finish(partial, path, inputs)
    return True


def begin(path: Path, inputs: dict[str, Any], locks: ExitStack) -> bool:
    """Whether a stage is to be made; then its lock is held in `locks` and its folder `partial_of(path)` is there."""
    if is_done(path, inputs):
        return False
    locks.enter_context(lock(path))
    if is_done(path, inputs):
        return False
    open_partial(path, inputs)
    return True


def partial_of(path: Path) -> Path:
    """Where a stage is while it is being made."""
    return path.with_name(path.name + ".partial")


def open_partial(path: Path, inputs: dict[str, Any]) -> Path:
    """The folder path + ".partial", kept if it was begun from equal inputs, empty otherwise."""
    partial = partial_of(path)
    begun = partial / "begun.json"
    if partial.exists() and not begun_from(begun, inputs):
        shutil.rmtree(partial)
    partial.mkdir(exist_ok=True)
    write_json(begun, inputs)
    return partial


def begun_from(begun: Path, inputs: dict[str, Any]) -> bool:
    """Whether begun.json says these inputs; a torn one says none."""
    try:
        return begun.is_file() and read_json(begun) == json.loads(json.dumps(inputs))
    except InputError:
        return False


def finish(partial: Path, path: Path, inputs: dict[str, Any]) -> None:
    """Write done.json into `partial` and give the folder its final name."""
    (partial / "begun.json").unlink()
    files = sorted(p for p in partial.rglob("*") if p.is_file())
    sums = {str(p.relative_to(partial)): {"bytes": p.stat().st_size, "sha256": checksum(p)} for p in files}
    write_json(partial / "done.json", {"inputs": inputs, "files": sums, "versions": versions()})
    if path.exists():
        discard(path)
    os.replace(partial, path)
