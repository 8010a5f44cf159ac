"""The configs of the engines that a sweep's gangs are handed to (engines/); conf/engine holds the numbers. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from saebench.checks import at_least, one_of


@dataclass
class LocalConfig:
    """In this process, one gang after another."""

    name: str = "local"


@dataclass
class JoblibConfig:
    """Processes of this machine, each with a GPU of its own where there are GPUs."""

    name: str
    parts: int  # that each gang is cut into
    n_jobs: int | None  # processes at once; None: one for each GPU, two without any
    folder: str | None  # of logs; None: outputs/engine

    def __post_init__(self) -> None:
        at_least("engine.parts", self.parts, 1)
        at_least("engine.n_jobs", self.n_jobs, 1)


@dataclass
class SubmititConfig:
    """Jobs of a SLURM cluster (or, to try it out, processes of this machine) through submitit."""

    name: str
    parts: int  # that each gang is cut into
    cluster: str  # slurm; local: processes of this machine; debug: this process
    folder: str | None  # of logs, on a disk that all nodes see; None: outputs/engine
    partition: str | None
    timeout_min: int
    requeues: int  # after so many timeouts a job is not started again
    gpus_per_node: int | None
    cpus_per_task: int | None
    mem_gb: float | None
    array_parallelism: int  # jobs at once
    setup: list[str] = field(default_factory=list)  # shell commands before the job
    additional: dict[str, Any] = field(default_factory=dict)  # other parameters of sbatch, such as account

    def __post_init__(self) -> None:
        one_of("engine.cluster", self.cluster, ("slurm", "local", "debug"))
        for key in ("parts", "timeout_min", "array_parallelism"):
            at_least(f"engine.{key}", getattr(self, key), 1)
        for key in ("requeues", "gpus_per_node"):
            at_least(f"engine.{key}", getattr(self, key), 0)
        for key in ("cpus_per_task", "mem_gb"):
            at_least(f"engine.{key}", getattr(self, key), 1)


EngineConfig = LocalConfig | JoblibConfig | SubmititConfig
ENGINES: dict[str, type[EngineConfig]] = {"local": LocalConfig, "joblib": JoblibConfig, "submitit": SubmititConfig}
