"""Trackers: what they are sent, that they change nothing and fail no run, and each real library where it is installed."""

from __future__ import annotations

import csv
import dataclasses
import sys
import threading
import time
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

from saebench import track
from saebench.checkpoint import Saver
from saebench.checks import InputError
from saebench.claims.rows import FREE
from saebench.config import UNRECORDED, RunConfig, as_dict, from_dict
from saebench.pipeline import check_outputs, run
from tests.configs import run_config
from tests.test_pipeline import SMALL

QUICK = [*SMALL, "evaluate.sizes=[0.5]", "evaluate.rules=[]", "evaluate.budgets=[]", "evaluate.ce_tokens=0"]


@cache
def composed(*overrides: str) -> RunConfig:
    return run_config(*QUICK, *overrides)


def small(outputs: Path, *overrides: str) -> RunConfig:
    return dataclasses.replace(composed(*overrides), outputs=str(outputs))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class Sent:
    """Stands for a run of wandb or trackio: what it was given; `fails` raises from then on."""

    def __init__(self, given: dict[str, Any], fails: bool = False) -> None:
        self.given, self.fails, self.ended = given, fails, False
        self.rows: list[dict[str, Any]] = []

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "step")

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        assert threading.current_thread().name == "tracker"
        if self.fails:
            raise ConnectionError("the server\nis gone")
        self.rows.append(values if step is None else {"step": step} | values)

    def finish(self) -> None:
        self.ended = True


def pretend(monkeypatch: pytest.MonkeyPatch, name: str, fails: bool = False) -> list[Sent]:
    """Put a module in the library's place; the runs that it opens."""
    opened: list[Sent] = []

    def init(**given: Any) -> Sent:
        opened.append(Sent(given, fails))
        return opened[-1]

    module = ModuleType(name)
    module.__dict__["init"] = init
    monkeypatch.setitem(sys.modules, name, module)
    return opened


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_each_run_is_told_of_its_own_rows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = pretend(monkeypatch, name)
    folders = run([small(tmp_path, f"tracker={name}", f"seed={seed}", "tracker.project=p") for seed in (0, 1)])
    assert len(opened) == 4  # in training, and again when evaluated
    assert all(sent.ended and sent.given["project"] == "p" for sent in opened)
    for folder in folders:
        training, evaluation = (sent for sent in opened if sent.given["name"] == folder.name)
        logged = rows_of(folder / "train.csv")
        assert [row["step"] for row in training.rows] == [int(row["step"]) for row in logged]
        assert [row["train/loss"] for row in training.rows] == [float(row["loss"]) for row in logged]
        (final,) = evaluation.rows
        assert final["step"] == int(logged[-1]["step"])
        (full,) = [r for r in rows_of(folder / "metrics.csv") if r["view"] == "full" and r["tokens"] == "typical"]
        assert final["eval/typical/fvu"] == float(full["fvu"])
        assert "eval/typical/ce_sae" not in final  # it was not measured
    assert run([small(tmp_path, f"tracker={name}")]) == folders[:1]
    assert len(opened) == 4  # nothing new to tell


def test_a_tracker_changes_no_byte_and_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "wandb")
    told, plain = run([small(tmp_path / "a", "tracker=wandb")])[0], run([small(tmp_path / "b")])[0]
    assert told.name == plain.name
    for name in ("sae.safetensors", "metrics.csv", "latents.csv"):
        assert (told / name).read_bytes() == (plain / name).read_bytes()
    recorded = yaml.safe_load((told / "config.yaml").read_text())
    assert not {*UNRECORDED} & {*recorded}
    assert {*UNRECORDED} <= {*FREE}
    assert from_dict(recorded) == small(tmp_path / "a")


def test_configs_go_through_json_unchanged(tmp_path: Path) -> None:
    cfg = small(tmp_path, "tracker=wandb", "sae=matryoshka", "train.lr=1e-3")
    assert from_dict(as_dict(cfg)) == cfg


def test_a_tracker_that_fails_is_named_once_and_fails_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = pretend(monkeypatch, "wandb", fails=True)
    cfg = small(tmp_path, "tracker=wandb")
    members = {"a": cfg, "b": cfg}
    with track.Tracking(members) as trackers:
        for step in range(5):
            trackers.log("a", step, {"x": 1.0})
            trackers.log("b", step, {"x": 1.0})
    assert capsys.readouterr().err.splitlines() == [
        "tracker=wandb: ConnectionError: the server is gone; nothing more is sent to it, the CSV files go on"
    ]
    assert not any(sent.rows for sent in opened)
    (folder,) = run([cfg])
    assert len(rows_of(folder / "train.csv")) > 1


def test_a_tracker_that_hangs_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, "wandb")
    release = threading.Event()
    monkeypatch.setattr(Sent, "log", lambda *_: release.wait())
    monkeypatch.setattr(track, "PATIENCE", 0.05)
    with track.Tracking({"a": small(tmp_path, "tracker=wandb")}) as trackers:
        began = time.monotonic()
        trackers.log("a", 1, {"x": 1.0})
        assert time.monotonic() - began < 0.05  # who trains does not wait
    release.set()
    trackers.thread.join()
    assert "still sending after 0 s; not waited for" in capsys.readouterr().err


def test_a_library_that_is_missing_is_named_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("wandb", "tensorboard", "trackio", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(InputError, match=rf"tracker={name}: cannot import it .*pip install 'saebench\[{name}\]'"):
            run([small(tmp_path), small(tmp_path, f"tracker={name}")])
    assert list(tmp_path.iterdir()) == []
    check_outputs([small(tmp_path)])
    with pytest.raises(InputError, match="did you mean wandb"):
        small(tmp_path, "tracker.name=wandbb")


def test_rows_of_a_checkpoint_are_not_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = pretend(monkeypatch, "trackio")
    cfg = small(tmp_path, "tracker=trackio", "train.log_every=1")
    after_step = Saver.after_step

    def interrupt(self: Saver) -> None:
        self.asked = next(iter(self.folders.values())).done == 9
        after_step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Saver, "after_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run([cfg])
    run([cfg])
    steps = [[row["step"] for row in sent.rows] for sent in opened[:2]]
    assert steps[0] == list(range(1, 10))
    assert steps[1] == list(range(10, 10 + len(steps[1])))


class Client:
    """Stands for mlflow.MlflowClient: one experiment, runs by name."""

    runs: dict[str, dict[str, Any]]

    def __init__(self, uri: str) -> None:
        assert uri.startswith("sqlite:///")

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str) -> str:
        return "7"

    def search_runs(self, experiments: list[str], wanted: str, max_results: int) -> list[Any]:
        name = wanted.split("'")[1]
        return [SimpleNamespace(info=SimpleNamespace(run_id=name))] if name in self.runs else []

    def create_run(self, experiment: str, run_name: str) -> Any:
        assert experiment == "7"
        self.runs[run_name] = {"params": {}, "metrics": []}
        return SimpleNamespace(info=SimpleNamespace(run_id=run_name))

    def log_batch(self, run: str, metrics: list[Any] = [], params: list[Any] = []) -> None:  # noqa: B006
        assert len(params) <= 100
        self.runs[run]["params"] |= dict(params)
        self.runs[run]["metrics"] += metrics

    def set_terminated(self, run: str) -> None:
        assert run in self.runs


def test_mlflow_goes_on_with_a_run_that_it_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Client.runs = {}
    module = ModuleType("mlflow")
    entities = SimpleNamespace(Param=lambda *values: values, Metric=lambda *values: values)
    module.__dict__.update(MlflowClient=Client, entities=entities)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    (folder,) = run([small(tmp_path, "tracker=mlflow")])
    (found,) = Client.runs.values()
    assert found["params"]["sae.d_sae"] == "64"
    losses = {step: value for name, value, _, step in found["metrics"] if name == "train/loss"}
    assert losses == {int(row["step"]): float(row["loss"]) for row in rows_of(folder / "train.csv")}
    assert any(name == "eval/typical/fvu" for name, *_ in found["metrics"])


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # the libraries' own
def test_tensorboard_itself(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (folder,) = run([small(tmp_path, "tracker=tensorboard")])
    events = reader.EventAccumulator(str(tmp_path / "trackers" / "tensorboard" / folder.name))
    events.Reload()
    logged = rows_of(folder / "train.csv")
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [(int(row["step"]), pytest.approx(float(row["loss"]), rel=1e-6)) for row in logged]
    assert len(events.Scalars("eval/typical/fvu")) == 1


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_mlflow_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")  # mlflow-skinny comes without
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (folder,) = run([small(tmp_path, "tracker=mlflow")])
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'trackers' / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("saebench")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == folder.name
    assert found.data.params["sae.name"] == "topk"
    losses = {m.step: m.value for m in client.get_metric_history(found.info.run_id, "train/loss")}
    assert losses == {int(row["step"]): float(row["loss"]) for row in rows_of(folder / "train.csv")}
    assert "eval/typical/fvu" in found.data.metrics


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_wandb_itself_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folders = run([small(tmp_path, "tracker=wandb", f"seed={seed}") for seed in (0, 1)])
    kept = [path.name for path in (tmp_path / "trackers" / "wandb").rglob("*.wandb")]
    assert {name.removeprefix("run-").removesuffix(".wandb") for name in kept} == {folder.name for folder in folders}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_trackio_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "kept"))
    pytest.importorskip("trackio")
    run([small(tmp_path, "tracker=trackio")])
    assert "nothing more is sent" not in capsys.readouterr().err
    assert list((tmp_path / "kept").rglob("*.db"))
