"""A whole job in one process that SIGKILLs itself: `python -m tests.killed OUTPUTS PHASE SECONDS` (none: it lives).

The clock starts when the phase begins, so that every kill meets work and none the seconds that imports take. Prints the
seconds that each phase took.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saebench import caching, pipeline, tables
from saebench.frontier import write_frontier
from saebench.seeds import write_seeds
from tests.configs import run_config
from tests.test_checkpoint import SMALL

PHASES = {"caching": (caching, "write_caches"), "training": (pipeline, "train"), "evaluating": (pipeline, "measure")}
MORE = ["train.n_tokens=100_000", "checkpoint=0.02", "data.shard_tokens=2_000"]


def die() -> None:
    """As with kill -9: nothing is flushed, no handler runs."""
    os.kill(os.getpid(), signal.SIGKILL)


def watched(phase: str, work: Callable[..., Any], doomed: str, seconds: float) -> Callable[..., Any]:
    """`work`, timed, and killed after `seconds` if it is the doomed phase."""

    def timed(*given: Any, **named: Any) -> Any:
        if phase == doomed:
            threading.Timer(seconds, die).start()
        began = time.monotonic()
        result = work(*given, **named)
        print(phase, time.monotonic() - began, flush=True)
        if phase == doomed:
            die()  # it was faster than before
        return result

    return timed


def write_all(outputs: Path) -> None:
    """What `saebench tables` writes."""
    for make in (tables.write_tables, write_seeds, write_frontier):
        make(outputs)


def main() -> None:
    """Cache, train, evaluate and write tables."""
    outputs, doomed, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    for phase, (module, name) in PHASES.items():
        setattr(module, name, watched(phase, getattr(module, name), doomed, seconds))
    variants = ("matryoshka", "topk")
    pipeline.run([run_config(f"sae={variant}", *SMALL, *MORE, f"outputs={outputs}") for variant in variants])
    watched("tables", write_all, doomed, seconds)(outputs)


if __name__ == "__main__":
    main()
