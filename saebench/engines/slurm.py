"""engine=submitit: every task is a job of a SLURM cluster, all of them one array; or a process here, to try it out.

A job that reaches its time limit, or is preempted, is queued again and goes on from its newest checkpoint.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench.checks import require
from saebench.engine_configs import SubmititConfig
from saebench.engines.tasks import Outcome, Task
from saebench.engines.work import work
from saebench.progress import say

if TYPE_CHECKING:
    from submitit import AutoExecutor, Job
    from submitit.helpers import DelayedSubmission

POLL = {"slurm": 10.0, "local": 0.2, "debug": 0.0}  # seconds between looks at the jobs


class Worker:
    """`work`, as submitit calls it."""

    def __call__(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Do the task."""
        return work(order)

    def checkpoint(self, order: Mapping[str, Any]) -> DelayedSubmission:
        """What is queued when the time is over: the same, as what is done is skipped."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, order)


class Cluster:
    """Jobs of a cluster."""

    def __init__(self, engine: SubmititConfig, folder: Path) -> None:
        srun = engine.cluster != "slurm" or shutil.which("srun") is not None
        require(srun, "engine.cluster=slurm: there is no srun here; run this on a node of the cluster, or choose local")
        self.engine, self.folder = engine, folder

    def executor(self) -> AutoExecutor:
        """submitit's, with the parameters of the config."""
        from submitit import AutoExecutor

        engine = self.engine
        executor = AutoExecutor(self.folder, cluster=engine.cluster, slurm_max_num_timeout=engine.requeues)
        executor.update_parameters(
            name="saebench",
            stderr_to_stdout=True,
            timeout_min=engine.timeout_min,
            gpus_per_node=engine.gpus_per_node,
            cpus_per_task=engine.cpus_per_task,
            mem_gb=engine.mem_gb,
            slurm_partition=engine.partition,
            slurm_array_parallelism=engine.array_parallelism,
            slurm_setup=engine.setup or None,
            slurm_additional_parameters=engine.additional or None,
        )
        return executor

    def hand_out(self, tasks: list[Task]) -> Iterator[tuple[Task, Outcome]]:
        """Queue the tasks, and yield them as they are done."""
        from submitit.helpers import as_completed

        executor = self.executor()
        with executor.batch():
            jobs = [executor.submit(Worker(), task.order()) for task in tasks]
        named = dict(zip([job.job_id for job in jobs], tasks, strict=True))
        for job in jobs:
            say(f"{named[job.job_id]}: job {job.job_id}, log in {job.paths.stdout}")
        try:
            for job in as_completed(jobs, poll_frequency=POLL[self.engine.cluster]):
                yield named[job.job_id], outcome(job)
        except KeyboardInterrupt:
            self.leave(jobs)
            raise

    def leave(self, jobs: list[Job[Any]]) -> None:
        """Interrupted: jobs of a cluster go on, those of this machine are stopped."""
        left = [job for job in jobs if not job.done()]
        if self.engine.cluster == "slurm":
            names = " ".join(sorted({job.job_id.partition("_")[0] for job in left}))
            say(f"{len(left)} jobs go on without this command; to end them: scancel {names}")
            return
        for job in left:
            job.cancel()


def outcome(job: Job[dict[str, Any]]) -> Outcome:
    """What came of a job."""
    log, error = str(job.paths.stdout), job.exception()
    if error is None:
        return Outcome(**job.result(), log=log)
    return Outcome(failed=f"the job ended without an outcome (state {job.state})", log=log)
