"""Damage on disk: found, named, and repaired by making only that part again; a full disk loses nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from saebench import pipeline
from saebench.checks import InputError
from saebench.lm import LM
from saebench.verify import verify
from tests.configs import run_config
from tests.test_checkpoint import SMALL, whole_run


def flip(path: Path) -> None:
    """Change one bit near the end."""
    raw = bytearray(path.read_bytes())
    raw[-9] ^= 16
    path.write_bytes(bytes(raw))


HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "flip": (flip, "checksum differs"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-5]), "bytes, not the"),
    "gone": (lambda path: path.unlink(), "is missing"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An outputs folder with one finished run; its cache has four shards."""
    outputs = tmp_path_factory.mktemp("made")
    pipeline.run([run_config("sae=topk", *SMALL, "data.shard_tokens=6_000", f"outputs={outputs}")])
    return outputs


@pytest.fixture
def outputs(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(made, tmp_path / "outputs")
    return tmp_path / "outputs"


def again(outputs: Path, *overrides: str) -> Path:
    """The same command."""
    given = ["sae=topk", *SMALL, "data.shard_tokens=6_000", *overrides, f"outputs={outputs}"]
    return pipeline.run([run_config(*given)])[0]


def test_what_is_whole_is_said_to_be(outputs: Path) -> None:
    assert verify(outputs) == []
    with pytest.raises(InputError, match="there is no such folder"):
        verify(outputs / "nowhere")


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_shard_is_named_and_made_again_alone(
    harm: str, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = next((outputs / "activations").rglob("shard-00002.safetensors"))
    before = {path.name: path.read_bytes() for path in shard.parent.glob("shard-*")}
    spoil, what = HARMS[harm]
    spoil(shard)
    with pytest.raises(InputError, match=rf"shard-00002\.safetensors: .*{what}.*verify --repair"):
        again(outputs, "seed=4")  # when it is read
    (damage,) = verify(outputs)
    assert what in str(damage)
    assert str(shard) in str(damage)
    verify(outputs, repair=True)
    sequences, activations = [], LM.activations

    def counted(self: LM, tokens: object) -> object:
        sequences.append(len(tokens))  # pyright: ignore[reportArgumentType]
        return activations(self, tokens)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(LM, "activations", counted)
    again(outputs)
    assert {path.name: path.read_bytes() for path in shard.parent.glob("shard-*")} == before
    assert verify(outputs) == []
    assert sum(sequences) < 0.6 * 20_000 / 64


@pytest.mark.parametrize("name", ["sae.safetensors", "latents.csv", "done.json"])
def test_a_damaged_run_is_made_again(name: str, outputs: Path) -> None:
    (run,) = (outputs / "runs").iterdir()
    wanted = whole_run(run)
    (run / name).write_text("{" if name == "done.json" else "x")
    assert [(damage.stage.name, damage.name) for damage in verify(outputs, repair=True)] == [(run.name, name)]
    assert whole_run(again(outputs)) == wanted
    assert verify(outputs) == []


def test_a_manifest_that_lists_nothing_usable_is_named(outputs: Path) -> None:
    (run,) = (outputs / "runs").iterdir()
    record = json.loads((run / "done.json").read_text())
    (run / "done.json").write_text(json.dumps(record | {"files": {"sae.json": {"bytes": "many"}}}))
    assert [str(damage) for damage in verify(outputs)] == [
        f"{run / 'done.json'}: does not say what the stage consists of"
    ]


def test_a_manifest_that_points_elsewhere_removes_nothing_there(outputs: Path) -> None:
    (cache,) = (path.parent for path in outputs.rglob("manifest.json"))
    other = outputs.parent / "precious.txt"
    other.write_text("mine")
    record = json.loads((cache / "done.json").read_text())
    record["files"]["../../../precious.txt"] = {"bytes": 1, "sha256": ""}
    (cache / "done.json").write_text(json.dumps(record))
    assert [damage.name for damage in verify(outputs, repair=True)] == ["done.json"]
    assert other.read_text() == "mine"


def test_a_run_and_its_evaluation_damaged_together_are_made_again(outputs: Path) -> None:
    (run,) = (outputs / "runs").iterdir()
    wanted = whole_run(run)
    flip(run / "sae.safetensors")
    flip(next((run / "evaluations").rglob("metrics.csv")))
    assert len(verify(outputs, repair=True)) == 2
    assert not run.exists()
    assert whole_run(again(outputs)) == wanted


def saebench(*arguments: str, **given: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "saebench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | given, check=False)


def test_the_command_names_damage_with_exit_code_2(outputs: Path) -> None:
    assert saebench("verify", str(outputs)).returncode == 0
    flip(next((outputs / "runs").rglob("sae.safetensors")))
    done = saebench("verify", str(outputs))
    assert done.returncode == 2
    assert "sae.safetensors: is not what was written (its checksum differs)" in done.stdout
    assert "--repair" in done.stderr.splitlines()[-1]
    mended = saebench("verify", "--repair", str(outputs))
    assert mended.returncode == 0
    assert "1 damaged files were removed" in mended.stdout


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB, where that may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(folder)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode != 0:
        pytest.skip("a file system can be mounted by root alone")
    yield folder
    subprocess.run(["umount", str(folder)], check=False)


def test_a_full_disk_is_one_line_and_nothing_finished_is_lost(small_disk: Path, made: Path) -> None:
    outputs, ballast = small_disk / "outputs", small_disk / "ballast"
    given = ["train", "sae=topk", *SMALL, "data.shard_tokens=6_000", f"outputs={outputs}"]
    (wanted,) = (made / "runs").iterdir()
    shutil.copytree(made / "tokens", outputs / "tokens")
    shutil.copytree(made / "activations", outputs / "activations")
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - 60_000))
    full = saebench(*given)
    assert full.returncode == 2
    assert "No space left on device; nothing finished is lost" in full.stderr.splitlines()[-1]
    assert [path for path in (outputs / "runs").glob("*") if path.suffix not in (".partial", ".lock")] == []
    assert verify(outputs) == []
    ballast.unlink()
    assert saebench(*given).returncode == 0
    (found,) = (outputs / "runs").glob("topk-*")
    assert whole_run(found) == whole_run(wanted)
