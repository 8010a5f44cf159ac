"""Bad disks, odd clocks and company: a full or read-only disk, no temporary folder, time running backwards, two at once."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from saebench import pipeline, store
from saebench.checks import InputError
from saebench.cli.main import main
from saebench.tables import write_tables
from saebench.verify import verify
from tests.configs import run_config
from tests.synthetic_runs import write_run
from tests.test_checkpoint import SMALL, whole_run

GIVEN = ["sae=topk", *SMALL, "data.shard_tokens=6_000"]


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the run is when nothing goes wrong."""
    (run,) = pipeline.run([run_config(*GIVEN, f"outputs={tmp_path_factory.mktemp('wanted')}")])
    return whole_run(run)


class Full:
    """A disk that takes no more from the n-th write on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails_at: int) -> None:
        self.writes, self.fails_at = 0, fails_at
        for owner, name in ((store, "write_text"), (store, "sync"), (os, "replace"), (Path, "mkdir")):
            monkeypatch.setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, write: Callable[..., Any]) -> Callable[..., Any]:
        """The same, until it fails."""

        def attempt(*given: Any, **named: Any) -> Any:
            self.writes += 1
            if self.writes >= self.fails_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(given[0]))
            return write(*given, **named)

        return attempt


def finals(outputs: Path) -> list[Path]:
    """Files under final names."""
    busy = (".partial", ".lock", ".part")
    return [p for p in outputs.rglob("*") if p.is_file() and not any(part.endswith(busy) for part in p.parts)]


def test_a_disk_full_at_any_write_of_a_stage_leaves_no_torn_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(partial: Path) -> None:
        store.write_text(partial / "a", "1")
        store.write_json(partial / "b", 2)

    for resumes in (False, True):
        n = 0
        for n in itertools.count(1):
            path = tmp_path / f"{resumes}-{n}" / "stage"
            with monkeypatch.context() as patch:
                disk = Full(patch, n)
                with suppress(OSError, InputError):
                    store.stage(path, {"n": n}, make, resumes)
                if disk.writes < n:
                    break
            assert not path.exists()
            assert finals(path.parent) == []
            assert store.stage(path, {"n": n}, make, resumes)
            assert [(path / name).read_text() for name in "ab"] == ["1", "2\n"]
        assert n > 5


@pytest.mark.long
def test_a_run_goes_on_whichever_write_found_the_disk_full(
    tmp_path: Path, wanted: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = tmp_path / "outputs"
    monkeypatch.setattr(sys, "argv", ["saebench", "train", *GIVEN, f"outputs={outputs}"])
    n = 0
    for n in itertools.count(1, 2):
        shutil.rmtree(outputs, ignore_errors=True)
        with monkeypatch.context() as patch:
            disk = Full(patch, n)
            with pytest.raises(SystemExit) as stopped:
                main()
        if disk.writes < n:
            break
        assert stopped.value.code == 2, n
        assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
        assert verify(outputs) == [] if outputs.exists() else True
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 0, n
        (run,) = (outputs / "runs").iterdir()
        assert whole_run(run) == wanted, n
    assert n > 30


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts small file systems, where that may be done."""
    folders: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"disk{len(folders)}"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True, check=False
        )
        if done.returncode != 0:
            pytest.skip("a file system can be mounted by root alone")
        folders.append(folder)
        return folder

    if shutil.which("mount") is None:
        pytest.skip("there is no mount")
    yield mount
    for folder in folders:
        subprocess.run(["umount", str(folder)], check=False)


def saebench(*arguments: str, **given: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "saebench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | given, check=False)


@pytest.mark.long
def test_a_small_disk_filled_to_any_degree(
    mounted: Callable[[str], Path], wanted: dict[str, bytes], tmp_path: Path
) -> None:
    disk, rng = mounted("size=24m"), random.Random(4)
    given = ["train", *GIVEN, "checkpoint=0.05", f"outputs={disk / 'outputs'}"]
    full = 0
    for free in sorted(rng.randrange(0, 12 << 20) for _ in range(12)):
        (disk / "ballast").write_bytes(bytes(max(0, shutil.disk_usage(disk).free - free)))
        done = saebench(*given)
        assert done.returncode in (0, 2), done.stderr
        full += done.returncode == 2
        assert "Traceback" not in done.stderr
        if done.returncode == 2:
            last = done.stderr.splitlines()[-1]
            assert "No space left on device" in last or "GB free" in last
        if (disk / "outputs").exists():
            assert verify(disk / "outputs") == []
        (disk / "ballast").unlink()
    assert full > 2
    assert saebench(*given).returncode == 0
    (run,) = (disk / "outputs" / "runs").iterdir()
    assert whole_run(run) == wanted


@pytest.mark.long
def test_a_full_temporary_folder_and_read_only_outputs(
    mounted: Callable[[str], Path], wanted: dict[str, bytes], tmp_path: Path
) -> None:
    temporary = mounted("size=64k")
    (temporary / "ballast").write_bytes(bytes(shutil.disk_usage(temporary).free))
    given = ["train", *GIVEN, f"outputs={tmp_path / 'outputs'}"]
    done = saebench(*given, TMPDIR=str(temporary))
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs" / "runs").iterdir()
    assert whole_run(run) == wanted
    figures = saebench("tables", str(tmp_path / "outputs"), TMPDIR=str(temporary))
    assert figures.returncode == 0, figures.stderr
    disk = mounted("size=24m")
    shutil.copytree(tmp_path / "outputs", disk / "outputs")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for command in (["train", *GIVEN, "seed=7", f"outputs={disk / 'outputs'}"], ["tables", str(disk / "outputs")]):
        refused = saebench(*command)
        assert refused.returncode == 2, refused.stderr
        *progress, line = refused.stderr.splitlines()
        assert [one for one in progress if not one.startswith("latents: ")] == []
        assert "outputs" in line
        assert "Read-only file system" in line or "cannot be written to" in line


def test_tables_on_a_disk_that_fills_keep_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path)
    write_tables(tmp_path)
    before = {p.name: p.read_bytes() for p in (tmp_path / "tables").iterdir()}
    for n in range(2, 10):
        with monkeypatch.context() as patch:
            Full(patch, n)
            with pytest.raises(OSError, match="No space left"):
                write_tables(tmp_path)
        assert {p.name: p.read_bytes() for p in (tmp_path / "tables").iterdir() if p.suffix != ".part"} == before


def test_a_clock_that_runs_backwards_changes_nothing(
    tmp_path: Path, wanted: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    backwards = itertools.count(2_000_000_000, -3600)
    monkeypatch.setattr(time, "time", lambda: float(next(backwards)))
    pipeline.open_stream(run_config(*GIVEN, f"outputs={tmp_path}"))
    for number, path in enumerate(sorted(tmp_path.rglob("*"))):
        os.utime(path, (4e9 - number, 4e9 - number))  # made in the future, the last first
    (run,) = pipeline.run([run_config(*GIVEN, "checkpoint=0.01", f"outputs={tmp_path}")])
    assert whole_run(run) == wanted
    assert verify(tmp_path) == []


@pytest.mark.long
def test_two_processes_asked_for_the_same_run_make_it_once(tmp_path: Path, wanted: dict[str, bytes]) -> None:
    command = [sys.executable, "-m", "saebench", "train", *GIVEN, f"outputs={tmp_path}"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    (run,) = (tmp_path / "runs").iterdir()
    assert [out.splitlines()[-1] for out, _ in said] == [str(run)] * 2
    assert any("another process is making" in err for _, err in said)
    assert whole_run(run) == wanted
    assert verify(tmp_path) == []
    assert list(tmp_path.rglob("*.lock")) == []


def test_what_a_killed_process_told_is_removed_even_if_nothing_is_left_to_do(tmp_path: Path) -> None:
    cfg = run_config(*GIVEN, f"outputs={tmp_path}")
    done = pipeline.run([cfg])
    for name in ("evaluating-elsewhere-1.json", "evaluating-elsewhere-1.json.lock", "training-elsewhere-2.json.lock"):
        (tmp_path / "running" / name).write_text("{}")
    assert pipeline.run([cfg]) == done
    assert list((tmp_path / "running").iterdir()) == []


def test_a_lock_file_left_by_a_dead_process_stops_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "stage.lock").write_text("12345")
    assert store.stage(tmp_path / "stage", {}, lambda partial: None)
    assert "waiting" not in capsys.readouterr().err
    assert list(tmp_path.glob("*.lock")) == []
