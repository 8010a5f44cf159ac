"""What workers are given: each gang whole, or cut into parts; what is done is found without any worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from saebench.config import RunConfig, as_dict
from saebench.engine_configs import EngineConfig, SubmititConfig
from saebench.pipeline import evaluation_stage, gangs, publish, run_folder, run_inputs
from saebench.plan.todo import Source, cache_folder, look, uncached
from saebench.search import group, rates
from saebench.store import is_done, key_of
from saebench.stream import Stream


@dataclass(frozen=True)
class Task:
    """What one worker does: `sweep`, `evaluate` or `cache` runs of one gang, `jobs` by their place in the sweep."""

    name: str
    does: str
    jobs: dict[int, RunConfig]
    source: Source  # the activations that they read

    @property
    def first(self) -> RunConfig:
        """One of its runs, for what all agree in."""
        return next(iter(self.jobs.values()))

    def order(self) -> dict[str, Any]:
        """What the worker is told, as JSON can hold it."""
        return {"does": self.does, "configs": [as_dict(cfg) for cfg in self.jobs.values()]}

    def __str__(self) -> str:
        variants = ", ".join(sorted({cfg.sae.name for cfg in self.jobs.values()}))
        what = "activations" if self.does == "cache" else f"{len(self.jobs)} SAEs: {variants}"
        return f"{self.name} ({what})"


@dataclass(frozen=True)
class Outcome:
    """What came of a task: folders if all went well, else what a user typed wrong, or what else failed; and the log."""

    folders: list[str] = field(default_factory=list)
    wrong: str = ""
    failed: str = ""
    log: str = ""


def divide(configs: Sequence[RunConfig], engine: EngineConfig, does: str) -> list[Task]:
    """Every gang as one task, or as engine.parts of them. Raises InputErrors of the model and the data."""
    cut: list[tuple[dict[int, RunConfig], Source]] = []
    for gang in gangs(configs):
        source = look(configs[gang[0]], device_of(engine, configs[gang[0]]))
        jobs = {i: configs[i] for i in gang}
        cut += [({i: jobs[i] for i in part}, source) for part in balanced(jobs, getattr(engine, "parts", 1))]
    return [Task(f"part {n} of {len(cut)}", does, jobs, source) for n, (jobs, source) in enumerate(cut, 1)]


def device_of(engine: EngineConfig, cfg: RunConfig) -> torch.device | None:
    """The device that a job of a cluster will have, on which keys depend; None: that of this machine."""
    if not isinstance(engine, SubmititConfig) or engine.cluster == "debug":
        return None
    gpu = cfg.device.startswith("cuda") or (cfg.device == "auto" and bool(engine.gpus_per_node))
    return torch.device("cuda" if gpu else "cpu")


def balanced(jobs: dict[int, RunConfig], parts: int) -> list[list[int]]:
    """The jobs of a gang in at most `parts` lists of about equal latents times tokens, their order kept."""
    lists: list[list[int]] = [[] for _ in range(parts)]
    loads = [0] * parts
    work = {i: cfg.sae.d_sae * cfg.train_tokens for i, cfg in jobs.items()}
    for unit in sorted(units(jobs), key=lambda unit: -sum(work[i] for i in unit)):
        lightest = loads.index(min(loads))
        lists[lightest] += unit
        loads[lightest] += sum(work[i] for i in unit)
    return [sorted(found) for found in lists if found]


def units(jobs: dict[int, RunConfig]) -> list[list[int]]:
    """Jobs that must stay together: those of one search, and those that are one run, evaluated in several ways."""
    places, configs = list(jobs), list(jobs.values())
    found = [[places[j] for j in searching.jobs] for searching in group(configs)]
    searching = {i for unit in found for i in unit}
    runs: dict[str, list[int]] = {}
    for i, cfg in jobs.items():
        if i not in searching:
            config = as_dict(cfg)
            runs.setdefault(key_of({name: config[name] for name in ("sae", "sparsity", "train", "seed")}), []).append(i)
    return [*found, *runs.values()]


def finished(task: Task) -> list[Path] | None:
    """The run folders, their evaluations published, if nothing is left to do."""
    jobs = list(task.jobs.values())
    if not all((searching.path / "done.json").is_file() for searching in group(jobs)):
        return None
    stream = cast("Stream", task.source)  # keys need of a stream its inputs and its device alone
    rated, _ = rates(jobs)
    folders = [run_folder(cfg, stream) for cfg in rated]
    for cfg, folder in zip(rated, folders, strict=True):
        if not (is_done(folder, run_inputs(cfg, stream)) and is_done(*evaluation_stage(folder, cfg))):
            return None
    for cfg, folder in zip(rated, folders, strict=True):
        publish(folder, cfg)
    return folders


def caching(tasks: Sequence[Task]) -> list[Task]:
    """Tasks that cache what several of these read and is not cached yet, so that no worker waits for another."""
    readers: dict[Path, list[Task]] = {}
    for task in tasks:
        if task.first.cache == "disk":
            readers.setdefault(cache_of(task), []).append(task)
    shared = [found[0] for found in readers.values() if len(found) > 1 and uncached(found[0].first, found[0].source)]
    return [Task(f"cache {n} of {len(shared)}", "cache", task.jobs, task.source) for n, task in enumerate(shared, 1)]


def cache_of(task: Task) -> Path:
    """The folder of the activations that a task reads."""
    return cache_folder(task.first, task.source)
