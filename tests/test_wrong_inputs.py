"""Every wrong input of tests/wrong_inputs.py: exit code 2, one line with key, value and remedy, outputs left as they were."""

from __future__ import annotations

import hashlib
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from saebench import pipeline
from saebench.cli.main import main
from saebench.lm import EMBEDDED
from tests.configs import run_config
from tests.test_checkpoint import SMALL
from tests.wrong_inputs import WRONG, nothing, run_of

AFTER_WORK = ("runs: damage that verify finds",)  # says first how far it got

TEXT = "\n\n".join(f"Sentence {i} of a short text, the {i % 7}th of its week." for i in range(40))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An outputs folder with one finished run."""
    outputs = tmp_path_factory.mktemp("made") / "outputs"
    pipeline.run([run_config("sae=topk", *SMALL, f"outputs={outputs}")])
    (outputs.parent / "text.txt").write_text(TEXT)
    shutil.copytree(EMBEDDED, outputs.parent / "model")
    return outputs


@pytest.fixture
def folder(made: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a command runs in; one for all where nothing is spoilt before."""
    folder = made.parent if WRONG[name].prepare is nothing else tmp_path
    if folder is tmp_path:
        shutil.copytree(made, folder / "outputs")
        shutil.copytree(EMBEDDED, folder / "model")
        (folder / "text.txt").write_text(TEXT)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


def tree(folder: Path) -> dict[str, str]:
    """Every file and folder below `folder`, with the checksums of files, but for stages that were begun (NAME.partial)."""
    found = sorted(folder.rglob("*")) if folder.is_dir() else [folder]
    found = [p for p in found if not any(part.endswith(".partial") for part in p.parts)]
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "" for p in found}


CASES = [pytest.param(name, marks=pytest.mark.long if "alike" in name else ()) for name in WRONG]


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_input_is_one_line_and_changes_nothing(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command, says, prepare = WRONG[name]
    run = str(run_of(folder).relative_to(folder))
    prepare(folder)
    before = tree(folder / "outputs")
    given = command.replace("{run}", run).replace("{same}", " ".join(["sae=topk", *SMALL, "outputs=outputs"]))
    monkeypatch.setattr(sys, "argv", ["saebench", *shlex.split(given)])
    with pytest.raises(SystemExit) as stopped:
        main()
    *progress, line = capfd.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert progress == [] or name in AFTER_WORK, progress
    assert line.startswith("saebench: ")
    assert says in line
    assert len(line) < 1000
    assert tree(folder / "outputs") == before
    assert sorted(path.name for path in folder.glob("owned*")) == []


def test_there_are_sixty_of_them() -> None:
    assert len([name for name in WRONG if "alike" not in name]) >= 60
