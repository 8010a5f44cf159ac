"""A search over any keys of the configuration with Optuna, in rounds: each round's trials are trained as one gang, in one pass.

Optuna stores nothing. trials.csv holds what was tried and what came of it; every round's sampler (a tree-structured Parzen
estimator, Bergstra et al. 2011) is made of that and of a seed. So a search that was interrupted goes on as if it had not been,
and a longer one begins where a shorter one ended. The value of a trial is the mean of a column of train.csv over the last tenth
of the steps, on tokens that were not seen before (search.py); held-out tokens play no part.
"""

from __future__ import annotations

import importlib
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saebench.checks import InputError, at_least, one_of, require
from saebench.compose import load
from saebench.config import RunConfig, recorded
from saebench.pipeline import Members, check_outputs, gangs, run, run_folder, run_inputs, train_gang
from saebench.progress import say
from saebench.runs import write_csv
from saebench.search import adopt, read_rows, tail_mean
from saebench.space import Axis, Choice, Interval
from saebench.store import is_done, key_of, lock, partial_of, seed_of
from saebench.stream import open_stream

VALUES = ("loss", "fvu")  # columns of train.csv that a search can lower
UNKEYED = ("outputs", "compile", "shard", "checkpoint", "experiment")  # of the config: no search depends on them

Row = dict[str, Any]


@dataclass(frozen=True)
class Search:
    """What is searched: the overrides that all trials share, the axes by key, what is lowered, and where it is kept."""

    fixed: list[str]
    axes: Mapping[str, Axis]
    by: str
    seed: int
    base: RunConfig  # a trial at the axes' first values
    config_dir: str | None = None

    @property
    def path(self) -> Path:
        """outputs/searches/optuna-<key>."""
        config = {name: value for name, value in recorded(self.base).items() if name not in UNKEYED}
        axes = {key: axis.ends if isinstance(axis, Interval) else axis.values for key, axis in self.axes.items()}
        inputs = {"config": config, "axes": axes, "by": self.by, "seed": self.seed}
        return Path(self.base.outputs) / "searches" / f"optuna-{key_of(inputs)}"

    def config(self, point: Mapping[str, Any]) -> RunConfig:
        """The trial at a point: values by key. Raises InputError for values that do not go together."""
        return load([*self.fixed, *(f"{key}={value}" for key, value in point.items())], self.config_dir)


def open_search(
    fixed: list[str], axes: Mapping[str, Axis], by: str = "loss", seed: int = 0, config_dir: str | None = None
) -> Search:
    """The search, its first and its last trial checked. Raises InputError, also if Optuna is not installed."""
    one_of("--by", by, VALUES)
    ends = [[f"{key}={axis.ends[end]}" for key, axis in axes.items()] for end in (0, 1)]
    base, _ = (load([*fixed, *values], config_dir) for values in ends)
    require(base.engine.name == "local", f"engine={base.engine.name}: `saebench search` works in this process")
    try:
        importlib.import_module("optuna")
    except ImportError as error:
        raise InputError(f"search: cannot import optuna ({error}); pip install 'saebench[optuna]'") from error
    return Search(fixed, axes, by, seed, base, config_dir)


def tune(search: Search, trials: int, at_once: int) -> list[Row]:
    """Try until there are `trials` (those of before count), `at_once` in a gang; the rows of trials.csv.

    The best trial becomes the run that it is and is evaluated. Raises InputError if the value of every trial is NaN or inf.
    """
    at_least("--trials", trials, 1)
    at_least("--at-once", at_once, 1)
    check_outputs([search.base])
    with lock(search.path):
        rows = read(search)
        if rows:
            say(f"{len(rows)} trials of this search are done already")
        while len(rows) < trials:
            points = ask(search, rows, min(at_once, trials - len(rows)), at_once)
            rows = rows + tried(search, points, rows)
            write(search, rows)
        return crowned(search, rows)


def ask(search: Search, rows: Sequence[Row], n: int, startup: int) -> list[dict[str, Any]]:
    """The next n points, given the trials so far; the first `startup` are random."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = seed_of(search.seed, len(rows)) % 2**32
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True)
    study = optuna.create_study(sampler=sampler)
    axes = {key: distribution(axis) for key, axis in search.axes.items()}
    for row in rows:
        params = {key: row[key] for key in axes}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=axes, value=row[search.by]))
    points = [study.ask(axes).params for _ in range(n)]
    return [{key: shortened(search.axes[key], point[key]) for key in axes} for point in points]


def distribution(axis: Axis) -> Any:
    """An axis as Optuna knows it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(axis, Choice):
        return CategoricalDistribution(axis.values)
    if isinstance(axis.low, int) and isinstance(axis.high, int):
        return IntDistribution(axis.low, axis.high, log=axis.log)
    return FloatDistribution(axis.low, axis.high, log=axis.log)


def shortened(axis: Axis, value: Any) -> Any:
    """A value in few digits, if it is a number."""
    return axis.short(value) if isinstance(axis, Interval) else value


def tried(search: Search, points: list[dict[str, Any]], before: Sequence[Row]) -> list[Row]:
    """Train the trials of a round, and keep the SAE of the best one if it is the best so far."""
    configs = [search.config(point) for point in points]
    values = [math.inf] * len(configs)
    least = min([row[search.by] for row in before], default=math.inf)
    for gang in gangs(configs):
        stream = open_stream(configs[gang[0]])
        folders = {i: trial_folder(search, run_folder(configs[i], stream)) for i in gang}
        for i, folder in folders.items():
            if is_done(folder, run_inputs(configs[i], stream)):  # by an interrupted round
                values[i] = tail_mean(read_rows(folder / "train.csv"), search.by)

        def best(members: Members, folders: Mapping[int, Path] = folders) -> Members:
            """The best of the round, if no trial was better before."""
            for i, folder in folders.items():
                if folder in members:
                    values[i] = finite(tail_mean(members[folder].log, search.by))
            i = min(folders, key=values.__getitem__)
            return {folders[i]: members[folders[i]]} if values[i] < least and folders[i] in members else {}

        train_gang([configs[i] for i in gang], list(folders.values()), stream, best)
        for folder in folders.values():
            shutil.rmtree(partial_of(folder), ignore_errors=True)  # of trials that failed
    return [
        {"trial": len(before) + i, **point, search.by: value}
        for i, (point, value) in enumerate(zip(points, values, strict=True))
    ]


def trial_folder(search: Search, final: Path) -> Path:
    """Where a trial is until it is the best of all."""
    return search.path / "trials" / final.name


def finite(value: float) -> float:
    """The value, infinite if it is NaN."""
    return value if math.isfinite(value) else math.inf


def crowned(search: Search, rows: list[Row]) -> list[Row]:
    """Make the best trial the run that it is, evaluate it, and mark it in the rows."""
    best = min(rows, key=lambda row: row[search.by])
    require(
        math.isfinite(best[search.by]),
        f"search: the {search.by} of all {len(rows)} trials became NaN or inf; search lower rates",
    )
    cfg = search.config({key: best[key] for key in search.axes})
    final = run_folder(cfg, open_stream(cfg))
    if (trial_folder(search, final) / "done.json").is_file():
        adopt(trial_folder(search, final), final)
    shutil.rmtree(search.path / "trials", ignore_errors=True)
    (folder,) = run([cfg])
    rows = [row | {"run": folder.name if row is best else ""} for row in rows]
    write(search, rows)
    return rows


def write(search: Search, rows: list[Row]) -> None:
    """Write trials.csv."""
    search.path.mkdir(parents=True, exist_ok=True)
    write_csv(search.path / "trials.csv", rows, ["trial", *search.axes, search.by, "run"])


def read(search: Search) -> list[Row]:
    """The trials of before."""
    path = search.path / "trials.csv"
    return [] if not path.is_file() else [parsed(search, row) for row in read_rows(path)]


def parsed(search: Search, row: Mapping[str, str]) -> Row:
    """A row of trials.csv with its numbers."""
    kinds = {key: str if isinstance(axis, Choice) else type(axis.low) for key, axis in search.axes.items()}
    values = {key: kind(row[key]) for key, kind in kinds.items()}
    return {"trial": int(row["trial"]), **values, search.by: float(row[search.by])}


def trial_table(search: Search, rows: Sequence[Row]) -> str:
    """The trials as aligned text, the best first."""
    import pandas as pd

    from saebench.tables import align

    ranked = sorted(rows, key=lambda row: row[search.by])
    names = ["trial", *search.axes, search.by]
    shown = [
        {name: f"{row[name]:.4g}" if isinstance(row[name], float) else str(row[name]) for name in names}
        for row in ranked
    ]
    return align(pd.DataFrame(shown))
