"""Stages: done means equal inputs, nothing appears under a final name before it is whole, an interrupted one goes on."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path

import pytest

from saebench.checks import InputError
from saebench.store import is_done, key_of, lock, stage


def test_a_stage_is_made_once_for_equal_inputs(tmp_path: Path) -> None:
    made = []

    def make(partial: Path) -> None:
        made.append(1)
        (partial / "value").write_text("7")

    assert stage(tmp_path / "s", {"a": 1}, make)
    assert not stage(tmp_path / "s", {"a": 1}, make)
    assert stage(tmp_path / "s", {"a": 2}, make)
    assert len(made) == 2
    record = json.loads((tmp_path / "s" / "done.json").read_text())
    assert record["inputs"] == {"a": 2}
    assert record["files"]["value"]["bytes"] == 1


def test_an_interrupted_stage_goes_on_only_with_equal_inputs(tmp_path: Path) -> None:
    def fails(partial: Path) -> None:
        (partial / "half").write_text("x")
        raise RuntimeError("power cut")

    seen = []

    def continues(partial: Path) -> None:
        seen.append((partial / "half").exists())

    with pytest.raises(RuntimeError):
        stage(tmp_path / "once", {"a": 1}, fails)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError):
        stage(tmp_path / "s", {"a": 1}, fails, resumes=True)
    assert not (tmp_path / "s").exists()
    assert not is_done(tmp_path / "s", {"a": 1})
    stage(tmp_path / "s", {"a": 1}, continues, resumes=True)
    with pytest.raises(RuntimeError):
        stage(tmp_path / "t", {"a": 1}, fails, resumes=True)
    stage(tmp_path / "t", {"a": 2}, continues, resumes=True)
    assert seen == [True, False]


def test_keys_depend_on_values_not_on_order() -> None:
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})


def test_broken_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "done.json").write_text("{")
    with pytest.raises(InputError, match=r"done\.json: not valid JSON"):
        is_done(tmp_path / "s", {})


def hold(path: Path, seconds: float) -> None:
    with lock(path):
        path.with_suffix(".held").touch()
        time.sleep(seconds)


def test_a_lock_is_waited_for_and_freed_when_its_owner_dies(tmp_path: Path) -> None:
    path = tmp_path / "s"
    owner = multiprocessing.get_context("spawn").Process(target=hold, args=(path, 60))
    owner.start()
    while not path.with_suffix(".held").exists():
        time.sleep(0.01)
    owner.kill()
    owner.join()
    with lock(path):
        pass


def test_a_folder_that_cannot_be_made_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another folder"):
        stage(tmp_path / "file" / "runs" / "s", {}, lambda partial: None)
