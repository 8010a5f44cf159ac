"""A sweep handed to other processes: whole gangs, or parts of them, to joblib (this machine) or submitit (a SLURM cluster).

Every worker does what `saebench sweep` does in one process, on its part of the runs; all meet in the outputs folder, whose
locks and done.json files keep them apart. So an engine changes no number, and a sweep that is given again skips what is done.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from saebench.checks import InputError, WorkError, require
from saebench.config import RunConfig
from saebench.engine_configs import EngineConfig, JoblibConfig, LocalConfig
from saebench.engines.tasks import Outcome, Task, cache_of, caching, divide, finished
from saebench.parallel import join
from saebench.pipeline import check_outputs, run
from saebench.progress import say
from saebench.search import searched, with_rates

EXTRAS = {"joblib": "joblib", "submitit": "slurm"}  # the extra that installs an engine's library
SHOWN = 3  # failures named in the error at the end

HandOut = Callable[[list[Task]], Iterator[tuple[Task, Outcome]]]
Results = list[tuple[Task, Outcome]]


def sweep(configs: Sequence[RunConfig], evaluate_only: bool = False) -> list[Path]:
    """Train (unless evaluate_only) and evaluate every run that is not done, by the sweep's engine; the run folders in order.

    Learning rates that are to be searched are searched first. Raises, once all else is done, InputError if parts failed for
    what a user typed, and WorkError if any failed otherwise.
    """
    configs = list(configs)
    engine = the_engine(configs)
    check_outputs(configs)
    if isinstance(engine, LocalConfig):
        return run(with_rates(configs), True) if evaluate_only else run(searched(configs))
    hand_out = opened(engine, configs)
    tasks = divide(configs, engine, "evaluate" if evaluate_only else "sweep")
    done = {task.name: folders for task in tasks if (folders := finished(task)) is not None}
    if done:
        say(f"{len(done)} of {len(tasks)} parts are done already")
    results = made([task for task in tasks if task.name not in done], hand_out, evaluate_only)
    with_rates(configs)  # writes the table of all searches
    check(results)
    done |= {task.name: [Path(folder) for folder in outcome.folders] for task, outcome in results}
    folders = {i: folder for task in tasks for i, folder in zip(task.jobs, done[task.name], strict=True)}
    return [folders[i] for i in range(len(configs))]


def the_engine(configs: Sequence[RunConfig]) -> EngineConfig:
    """The engine of a sweep. Raises InputError if its runs name several, one for several ranks, or a GPU

    where the engine deals them out.
    """
    engine: EngineConfig = configs[0].engine
    names = ",".join(sorted({cfg.engine.name for cfg in configs}))
    require(all(cfg.engine == engine for cfg in configs), f"engine={names}: give one for the whole sweep")
    alone = isinstance(engine, LocalConfig) or join().size == 1
    require(alone, f"engine={names}: ranks share every gang; leave engine out, or start without torchrun")
    if isinstance(engine, JoblibConfig):
        for cfg in configs:
            free = not cfg.device.startswith("cuda:")
            require(free, f"device={cfg.device}: engine=joblib gives each process a GPU; use device=cuda")
    return engine


def require_local(cfg: RunConfig, command: str) -> None:
    """Raise InputError if a command that works in this process alone was given an engine."""
    name = cfg.engine.name
    require(name == "local", f"engine={name}: `saebench {command}` works in this process; use `saebench sweep`")


def opened(engine: EngineConfig, configs: Sequence[RunConfig]) -> HandOut:
    """What hands tasks to an engine's library. Raises InputError if that is not installed."""
    assert not isinstance(engine, LocalConfig)
    try:
        importlib.import_module(engine.name)
    except ImportError as error:
        raise InputError(
            f"engine={engine.name}: cannot import it ({error}); pip install 'saebench[{EXTRAS[engine.name]}]', "
            "or leave engine out"
        ) from error
    parent = Path(engine.folder or Path(configs[0].outputs) / "engine")
    folder = parent / time.strftime(f"{engine.name}-%Y%m%d-%H%M%S")
    if isinstance(engine, JoblibConfig):
        from saebench.engines.processes import Processes, visible_gpus

        on_cpu = all(cfg.device == "cpu" for cfg in configs)
        return Processes(engine, folder, [] if on_cpu else visible_gpus()).hand_out
    from saebench.engines.slurm import Cluster

    return Cluster(engine, folder).hand_out


def made(tasks: list[Task], hand_out: HandOut, evaluate_only: bool) -> Results:
    """Do the tasks, after caching what several of them read; what came of each, and of caching that failed."""
    failed = [] if evaluate_only else [pair for pair in told(caching(tasks), hand_out) if not pair[1].folders]
    lost = {cache_of(task) for task, _ in failed}
    return failed + told([task for task in tasks if cache_of(task) not in lost], hand_out)


def told(tasks: list[Task], hand_out: HandOut) -> Results:
    """Do tasks, and say of each when it is done."""
    results: Results = []
    if not tasks:
        return results
    began = time.monotonic()
    for task, outcome in hand_out(tasks):
        results.append((task, outcome))
        reason = outcome.wrong or outcome.failed
        after = f"{len(results)} of {len(tasks)}, after {time.monotonic() - began:.0f} s"
        say(f"{task}: {'failed, ' + reason if reason else 'done'} ({after})")
    return results


def check(results: Results) -> None:
    """Raise one error for all that failed: InputError if nothing but what a user typed was wrong, else WorkError."""
    failed = [(task, outcome) for task, outcome in results if not outcome.folders]
    if not failed:
        return
    reasons = [f"{task.name}: {o.wrong or o.failed} (log: {o.log})" for task, o in failed[:SHOWN]]
    more = f"; and {len(failed) - SHOWN} more" if len(failed) > SHOWN else ""
    text = f"{len(failed)} of {len(results)} parts failed, the others are done: {'; '.join(reasons)}{more}"
    raise InputError(text) if all(o.wrong for _, o in failed) else WorkError(text)
