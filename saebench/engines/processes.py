"""engine=joblib: joblib hands out the tasks of this machine, each to a fresh process.

A process of its own, not one of joblib's, so that a gang that is killed or spoils its GPU takes no other with it, that all of
its memory is free for the next, and that it can save its checkpoints when the sweep is interrupted.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from saebench.engine_configs import JoblibConfig
from saebench.engines.tasks import Outcome, Task
from saebench.progress import say
from saebench.store import read_json, write_json

WITHOUT_GPUS = 2  # processes at once


class Processes:
    """At most engine.n_jobs processes at once, the GPUs dealt out among them."""

    def __init__(self, engine: JoblibConfig, folder: Path, gpus: list[str]) -> None:
        self.n_jobs, self.folder = engine.n_jobs or len(gpus) or WITHOUT_GPUS, folder
        self.settings: SimpleQueue[dict[str, str]] = SimpleQueue()  # environments that no process has
        for slot in range(self.n_jobs):
            self.settings.put({"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {})
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopping = False

    def hand_out(self, tasks: list[Task]) -> Iterator[tuple[Task, Outcome]]:
        """Do the tasks, and yield them as they are done. An interrupt is passed on, and ends when all have ended."""
        from joblib import Parallel, delayed

        self.folder.mkdir(parents=True, exist_ok=True)
        parallel: Any = Parallel(self.n_jobs, backend="threading", return_as="generator_unordered")
        try:
            with interruptible():
                yield from parallel(delayed(self.make)(task) for task in tasks)
        except KeyboardInterrupt:
            self.stop()
            raise

    def make(self, task: Task) -> tuple[Task, Outcome]:
        """Do a task in a process of its own, with a log file beside its order."""
        if self.stopping:
            return task, Outcome(failed="not begun")
        settings = self.settings.get()
        try:
            return task, self.outcome(task, settings)
        finally:
            self.settings.put(settings)

    def outcome(self, task: Task, settings: dict[str, str]) -> Outcome:
        """Start a process and wait for it."""
        path = self.folder / f"{task.name.replace(' ', '-')}.json"
        log, left = path.with_suffix(".log"), path.with_suffix(".outcome.json")
        write_json(path, task.order())
        where = "".join(f", GPU {gpu}" for gpu in settings.values())
        say(f"{task}: begins{where}, log in {log}")
        command = [sys.executable, "-m", "saebench.engines", str(path)]
        with log.open("ab") as file:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=self.environment() | settings,
                start_new_session=True,
            )  # fmt: skip
            self.running.add(process)
            code = process.wait()
            self.running.discard(process)
        if not left.is_file():
            return Outcome(failed=f"its process ended with code {code}", log=str(log))
        return Outcome(**read_json(left), log=str(log))

    def environment(self) -> dict[str, str]:
        """This process's environment; unless it says how many threads, the processors are shared out."""
        from joblib import cpu_count

        return {"OMP_NUM_THREADS": str(max(1, cpu_count() // self.n_jobs))} | os.environ

    def stop(self) -> None:
        """Tell the processes to save and end, and wait for them; interrupted again, tell them again."""
        self.stopping = True
        while self.running:
            with suppress(KeyboardInterrupt):
                for process in list(self.running):
                    process.terminate()
                for process in list(self.running):
                    process.wait()
                    self.running.discard(process)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM interrupt as SIGINT does, as far as this thread may: the processes have a session of their own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None and torch.cuda.is_available():
        return [gpu.strip() for gpu in named.split(",") if gpu.strip()]
    return [str(i) for i in range(torch.cuda.device_count())]
