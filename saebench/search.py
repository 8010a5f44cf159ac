"""The learning rate of each variant and size, chosen before a sweep by a small search at equal budget.

experiment.lr_factors are multiples of the default rate. Jobs that differ only in the sparsity knob, the seed and how they are
evaluated form a group; each group trains one job (its middle knob, its first seed) at every factor, all on the same batches
and as many as the sweep trains on. The rate whose loss over the last tenth of the steps is lowest is given to the whole
group. No token is seen twice in one epoch, so that this is a loss on unseen tokens, and held-out tokens play no part.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from saebench.checks import InputError
from saebench.config import RunConfig, as_dict
from saebench.parallel import join
from saebench.pipeline import Members, gangs, run_folder, run_inputs, train_gang
from saebench.progress import say
from saebench.runs import write_csv
from saebench.sae_configs import keyed
from saebench.store import discard, is_done, key_of, partial_of, stage
from saebench.stream import Stream, open_stream

KNOBS = ("k", "l1", "l0", "target_l0")  # how sparse: a rate is chosen for all of them
TAIL = 0.1  # share of the steps, at the end, over which losses are compared
TABLE = "lr_search.csv"


@dataclass(frozen=True)
class Group:
    """Jobs that share a learning rate: their places in the sweep, and what is tried for them."""

    jobs: list[int]
    trials: list[RunConfig]
    factors: list[float]
    path: Path  # outputs/searches/<variant>-<key>


def searched(configs: list[RunConfig]) -> list[RunConfig]:
    """The configs with the learning rates that their searches chose; searches that are missing are made first."""
    search(configs)
    return with_rates(configs)


def search(configs: list[RunConfig]) -> None:
    """Make the searches that are missing."""
    missing = [g for g in group(configs) if not (g.path / "done.json").is_file()]
    trials = [(g, trial) for g in missing for trial in g.trials]
    for gang in gangs([trial for _, trial in trials]):
        stream = open_stream(trials[gang[0]][1])
        try_all(list({id(trials[i][0]): trials[i][0] for i in gang}.values()), stream)


def with_rates(configs: list[RunConfig]) -> list[RunConfig]:
    """The configs with the learning rates of the searches that are done; writes them as outputs/tables/lr_search.csv."""
    chosen, tables = rates(configs)
    for outputs, rows in tables.items() if join().leads else ():
        folder = Path(outputs) / "tables"
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(folder / TABLE, rows)
    return chosen


def rates(configs: list[RunConfig]) -> tuple[list[RunConfig], dict[str, list[dict[str, Any]]]]:
    """The configs with the learning rates of the searches that are done, and the rows of all trials by outputs folder."""
    chosen = list(configs)
    tables: dict[str, list[dict[str, Any]]] = {}
    for g in group(configs):
        if not (g.path / "done.json").is_file():
            continue
        rows = read_rows(g.path / "search.csv")
        rate = next(float(row["lr"]) for row in rows if row["chosen"] == "True")
        for i in g.jobs:
            chosen[i] = with_rate(configs[i], rate)
        tables.setdefault(configs[g.jobs[0]].outputs, []).extend(rows)
    return chosen, tables


def group(configs: list[RunConfig]) -> list[Group]:
    """The groups of a sweep's jobs whose rate is to be searched: those with experiment.lr_factors and no train.lr."""
    members: dict[tuple[str, str], list[int]] = {}
    for i, cfg in enumerate(configs):
        if cfg.experiment.lr_factors and cfg.train.lr is None:
            members.setdefault((cfg.outputs, key_of(shared(cfg))), []).append(i)
    return [make_group(key, jobs, configs) for (_, key), jobs in members.items()]


def shared(cfg: RunConfig) -> dict[str, Any]:
    """All that the jobs of a group agree in, but for their outputs folder, which may be moved."""
    config = as_dict(cfg)
    sae = {key: value for key, value in keyed(config["sae"]).items() if key not in KNOBS}
    keep = ("model", "data", "sparsity", "train", "cache", "device")
    return {"sae": sae, "lr_factors": cfg.experiment.lr_factors, **{key: config[key] for key in keep}}


def make_group(key: str, jobs: list[int], configs: list[RunConfig]) -> Group:
    """The group of some jobs; its trials have the job of the (lower) middle knob with the first seed."""
    ranked = sorted(jobs, key=lambda i: knob(configs[i]))
    values = sorted({knob(configs[i]) for i in jobs})
    middle = values[(len(values) - 1) // 2]
    cfg = configs[next(i for i in ranked if knob(configs[i]) == middle)]
    factors = cfg.experiment.lr_factors
    rule = cfg.train.learning_rate(cfg.sae.d_sae)
    trials = [with_rate(cfg, float(f"{factor * rule:.4g}")) for factor in factors]
    return Group(jobs, trials, factors, Path(cfg.outputs) / "searches" / f"{cfg.sae.name}-{key}")


def knob(cfg: RunConfig) -> tuple[float, ...]:
    """What orders jobs by sparsity."""
    return tuple(float(getattr(cfg.sae, name, None) or 0) for name in KNOBS)


def with_rate(cfg: RunConfig, rate: float) -> RunConfig:
    """The config with train.lr set."""
    return dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, lr=rate))


def try_all(groups: list[Group], stream: Stream) -> None:
    """Train the trials of some groups in one pass, record each group's search, and keep the best as the run that it is."""
    trials = [trial for g in groups for trial in g.trials]
    final = {id(trial): run_folder(trial, stream) for trial in trials}
    folders = {key: folder.parent.parent / "searches" / "trials" / folder.name for key, folder in final.items()}
    inputs = {id(trial): run_inputs(trial, stream) for trial in trials}
    done = [folders[key] for key in folders if is_done(folders[key], inputs[key])]  # by an interrupted search
    losses = {folder: tail_loss(read_rows(folder / "train.csv")) for folder in done}

    def best(members: Members) -> Members:
        """Those of the lowest loss in their group."""
        losses.update({folder: tail_loss(member.log) for folder, member in members.items()})
        tried = [[folders[id(trial)] for trial in g.trials] for g in groups]
        chosen = {min(mine, key=lambda folder: losses.get(folder, math.inf)) for mine in tried}
        return {folder: member for folder, member in members.items() if folder in chosen}

    say(f"searching the learning rate of {len(groups)} variants and sizes, {len(trials)} trials")
    train_gang(trials, list(folders.values()), stream, best)
    measured = [(g, [losses.get(folders[id(trial)], math.inf) for trial in g.trials]) for g in groups]
    for g, mine in sorted(measured, key=lambda pair: min(pair[1])):  # a group without any comes last, with its error
        rows = describe(g, mine)
        if not stream.world.leads:
            continue
        record = {"trials": [inputs[id(trial)] for trial in g.trials]}
        stage(g.path, record, partial(write_search, rows=rows))
        for trial, row in zip(g.trials, rows, strict=True):
            if row["chosen"]:
                adopt(folders[id(trial)], final[id(trial)])
    for folder in folders.values() if stream.world.leads else ():
        shutil.rmtree(partial_of(folder), ignore_errors=True)  # of trials that failed
    stream.world.wait()


def write_search(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Fill the folder of a search."""
    write_csv(folder / "search.csv", rows)


def adopt(trial: Path, run: Path) -> None:
    """Move a trial's folder to where the run that it is belongs, unless that is there."""
    if run.exists():
        discard(trial)
        return
    run.parent.mkdir(parents=True, exist_ok=True)
    os.replace(trial, run)


def tail_loss(log: Sequence[Mapping[str, Any]]) -> float:
    """The mean loss over the logged steps of the last tenth."""
    return tail_mean(log, "loss")


def tail_mean(log: Sequence[Mapping[str, Any]], column: str) -> float:
    """The mean of a column of the log over the logged steps of the last tenth."""
    last = int(log[-1]["step"])
    values = [float(row[column]) for row in log if int(row["step"]) > (1 - TAIL) * last]
    return sum(values) / len(values)


def describe(g: Group, losses: list[float]) -> list[dict[str, Any]]:
    """The rows of a group's search. Raises InputError if every trial failed."""
    cfg = g.trials[0]
    best = min(range(len(losses)), key=losses.__getitem__)
    if not math.isfinite(losses[best]):
        raise InputError(
            f"experiment.lr_factors={g.factors}: every rate made the loss of {cfg.sae.name} NaN or inf; lower train.lr_scale"
        )
    at_edge = len(g.factors) > 1 and g.factors[best] in (min(g.factors), max(g.factors))
    named = {"variant": cfg.sae.name, "d_sae": cfg.sae.d_sae, "k": getattr(cfg.sae, "k", None), "seed": cfg.seed}
    named["search"] = g.path.name
    return [
        named
        | {"factor": factor, "lr": trial.train.lr, "loss": loss, "chosen": i == best, "at_edge": i == best and at_edge}
        for i, (factor, trial, loss) in enumerate(zip(g.factors, g.trials, losses, strict=True))
    ]


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file as text."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
