"""Experiment trackers: a copy of train.csv's rows as they are settled, and of the evaluation's full views, for those who watch.

The CSV files are the record and do not depend on this. A tracker's library is imported only when `tracker` asks for it. It is
called on a thread of its own, so that training waits for no network; its first failure is said once and ends it, not the run.
"""

from __future__ import annotations

import importlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any, Protocol, Self

from saebench.checks import InputError
from saebench.config import RunConfig, as_dict
from saebench.member import Member
from saebench.progress import say
from saebench.runs import METRICS

PATIENCE = 300.0  # seconds that the end of a gang waits for what is still to be sent
MEASURED = METRICS[METRICS.index("n_tokens") :]  # the columns of metrics.csv that are numbers, not names
MLFLOW_BATCH = 100  # parameters, or metrics, in one request


class Tracker(Protocol):
    """One run as a tracker's library knows it. A run that was told of before is gone on with."""

    def start(self, run: str, config: dict[str, Any]) -> None:
        """Open the run named `run`."""
        ...

    def log(self, step: int, values: dict[str, float]) -> None:
        """Add values by name, at a training step."""
        ...

    def end(self) -> None:
        """Close the run."""
        ...


class WandB:
    """Weights & Biases. `step` is a value of its own, as wandb drops rows whose step it has passed, as a resumed run's."""

    def __init__(self, project: str, folder: Path) -> None:
        self.project, self.folder = project, folder

    def start(self, run: str, config: dict[str, Any]) -> None:
        wandb: Any = importlib.import_module("wandb")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project=self.project, id=run, name=run, config=config, dir=self.folder, resume="allow", reinit="create_new"
        )
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, values: dict[str, float]) -> None:
        self.run.log({"step": step, **values})

    def end(self) -> None:
        self.run.finish()


class TensorBoard:
    """Event files in folder/RUN."""

    def __init__(self, project: str, folder: Path) -> None:
        self.folder = folder

    def start(self, run: str, config: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.folder / run))
        self.writer.add_text("config", "\n".join(f"    {key}: {value}" for key, value in flat(config).items()))

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def end(self) -> None:
        self.writer.close()


class Trackio:
    """Trackio, whose own settings say where it keeps its data."""

    def __init__(self, project: str, folder: Path) -> None:
        self.project = project

    def start(self, run: str, config: dict[str, Any]) -> None:
        trackio: Any = importlib.import_module("trackio")
        self.run = trackio.init(project=self.project, name=run, config=flat(config), resume="allow")

    def log(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def end(self) -> None:
        self.run.finish()


class MLflow:
    """MLflow, through its client, as its global run is one at a time; at MLFLOW_TRACKING_URI, else in folder/mlflow.db."""

    def __init__(self, project: str, folder: Path) -> None:
        self.project, self.folder = project, folder

    def start(self, run: str, config: dict[str, Any]) -> None:
        self.mlflow: Any = importlib.import_module("mlflow")
        self.folder.mkdir(parents=True, exist_ok=True)
        uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{(self.folder / 'mlflow.db').absolute()}")
        self.client = self.mlflow.MlflowClient(uri)
        known = self.client.get_experiment_by_name(self.project)
        experiment = known.experiment_id if known else self.client.create_experiment(self.project)
        found = self.client.search_runs([experiment], f"tags.`mlflow.runName` = '{run}'", max_results=1)
        self.id = (found[0] if found else self.client.create_run(experiment, run_name=run)).info.run_id
        if not found:
            params = [self.mlflow.entities.Param(key, value[:500]) for key, value in flat(config).items()]
            for i in range(0, len(params), MLFLOW_BATCH):
                self.client.log_batch(self.id, params=params[i : i + MLFLOW_BATCH])

    def log(self, step: int, values: dict[str, float]) -> None:
        metric, now = self.mlflow.entities.Metric, int(time.time() * 1000)  # milliseconds
        self.client.log_batch(self.id, [metric(name, value, now, step) for name, value in values.items()])

    def end(self) -> None:
        self.client.set_terminated(self.id)


TRACKERS: dict[str, tuple[str, Callable[[str, Path], Tracker]]] = {  # name: module, class
    "wandb": ("wandb", WandB),
    "tensorboard": ("tensorboard", TensorBoard),
    "trackio": ("trackio", Trackio),
    "mlflow": ("mlflow", MLflow),
}


def check_trackers(names: Iterable[str]) -> None:
    """Raise InputError unless the library of each can be imported; none needs none."""
    for name in {*names} - {"none"}:
        try:
            importlib.import_module(TRACKERS[name][0])
        except ImportError as error:
            raise InputError(
                f"tracker={name}: cannot import it ({error}); pip install 'saebench[{name}]', or leave tracker out"
            ) from error


def make_tracker(cfg: RunConfig) -> Tracker:
    """The tracker of a run, not yet started; files go to tracker.folder, or outputs/trackers/NAME."""
    folder = Path(cfg.tracker.folder or Path(cfg.outputs) / "trackers" / cfg.tracker.name)
    return TRACKERS[cfg.tracker.name][1](cfg.tracker.project, folder)


class Tracking:
    """The trackers of some runs, by name, called in order on one thread; within `with`. Runs without a tracker are ignored."""

    def __init__(self, configs: Mapping[str, RunConfig]) -> None:
        asked = {run: cfg for run, cfg in configs.items() if cfg.tracker.name != "none"}
        self.name = ", ".join(sorted({cfg.tracker.name for cfg in asked.values()}))
        self.trackers = {run: make_tracker(cfg) for run, cfg in asked.items()}
        self.calls: Queue[Callable[[], None] | None] = Queue()
        self.thread = threading.Thread(target=self.work, name="tracker", daemon=True)
        for run, tracker in self.trackers.items():
            self.calls.put(partial(tracker.start, run, as_dict(asked[run])))

    def __enter__(self) -> Self:
        if self.trackers:
            self.thread.start()
        return self

    def log(self, run: str, step: int, values: dict[str, float]) -> None:
        """Send values of a run, if it has a tracker and none has failed."""
        if run in self.trackers and self.thread.is_alive():
            self.calls.put(partial(self.trackers[run].log, step, values))

    def work(self) -> None:
        """Make the calls as they come, until there are no more or one fails."""
        try:
            for call in iter(self.calls.get, None):
                call()
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            say(
                f"tracker={self.name}: {type(error).__name__}: {reason}; nothing more is sent to it, the CSV files go on"
            )

    def __exit__(self, *failure: object) -> None:
        if not self.thread.is_alive():
            return
        for tracker in self.trackers.values():
            self.calls.put(tracker.end)
        self.calls.put(None)
        self.thread.join(PATIENCE)
        if self.thread.is_alive():
            say(f"tracker={self.name}: still sending after {PATIENCE:.0f} s; not waited for any longer")


class Following(Tracking):
    """The trackers of members in training: after each step, the rows that their logs have gained (not those of a checkpoint)."""

    def __init__(self, members: Mapping[str, Member]) -> None:
        super().__init__({run: member.cfg for run, member in members.items()})
        self.members = {run: member for run, member in members.items() if run in self.trackers}
        self.sent = {run: len(member.log) for run, member in self.members.items()}

    def before(self, after_step: Callable[[], None]) -> Callable[[], None]:
        """Send, then do what else is to be done after a step."""

        def both() -> None:
            self.send()
            after_step()

        return both

    def send(self) -> None:
        """Send what is new."""
        for run, member in self.members.items():
            for row in member.log[self.sent[run] :]:
                self.log(run, row["step"], {f"train/{name}": value for name, value in row.items() if name != "step"})
            self.sent[run] = len(member.log)

    def __exit__(self, *failure: object) -> None:
        self.send()
        super().__exit__(*failure)


def tell_metrics(runs: Mapping[Path, RunConfig], metrics: Mapping[Path, list[dict[str, Any]]]) -> None:
    """Send the full views of finished evaluations (rows of metrics.csv by run folder), at the last step of training.

    Names are eval/TOKENS/METRIC by the SAE's own rule at inference, eval/TOKENS/batch/METRIC when it selects by batch.
    """
    with Tracking({folder.name: cfg for folder, cfg in runs.items()}) as trackers:
        for folder, cfg in runs.items():
            steps = max(1, cfg.train_tokens // cfg.train.batch_size)
            trackers.log(folder.name, steps, dict(full_values(metrics[folder])))


def full_values(rows: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, float]]:
    """Name and number of every metric of the full views."""
    for row in rows:
        if row["view"] == "full":
            mode = "batch/" if row["mode"] == "batch" else ""
            yield from (
                (f"eval/{row['tokens']}/{mode}{name}", float(row[name]))
                for name in MEASURED
                if row.get(name) is not None
            )


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested config as text by dotted key."""
    found: dict[str, str] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": str(value)}
    return found
