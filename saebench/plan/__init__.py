"""How long a sweep will take, before it is started: what is left to do (todo.py) times what its parts cost here (cost.py).

The stages of a gang run one after another and its members take turns, so that times add.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch

from saebench.activations import DTYPES
from saebench.config import RunConfig
from saebench.lm import load_lm
from saebench.memory import keep_freed_memory
from saebench.pipeline import check_outputs, heldout_key
from saebench.plan.cost import Bench, Kind, ViewCost
from saebench.plan.todo import Todo, in_blocks, outstanding
from saebench.progress import Progress, duration
from saebench.recapture import ABLATIONS
from saebench.room import Need, kind_of, peak
from saebench.store import key_of

NOT_COUNTED = """not in the time: reading and shuffling the cache, AuxK once latents are dead, compilation, writing files
not in the memory: the language model, windows of activations, held-out activations"""


class Line(NamedTuple):
    """A stage, how much of it there is, and its seconds; for what is no stage the seconds are None."""

    stage: str
    amount: str
    seconds: float | None


class Costs(NamedTuple):
    """What the parts of a gang's work cost: seconds of a token in the model's lower half and of a spliced one above the site.

    `kinds` by kind_of; `views` for the jobs of every group of evaluations.
    """

    lower: float
    spliced: float
    kinds: dict[str, Kind]
    views: list[list[ViewCost]]


def plan(configs: list[RunConfig]) -> str:
    """The table of what a sweep would take, measured now. Raises InputError as the sweep would; writes nothing."""
    check_outputs(configs)
    keep_freed_memory()
    gangs = outstanding(configs)
    lines = stages([(todo, costs(todo)) for todo in gangs])
    untokenised = any(not todo.source.tokenised for todo in gangs)
    notes = ["not in the time: tokenising the text, which comes first"] if untokenised else []
    where = f"measured on {gangs[0].source.device} with {torch.get_num_threads()} threads"
    return "\n".join([table(lines), where, *notes, NOT_COUNTED])


def costs(todo: Todo) -> Costs:
    """Measure what is needed for what a gang has left to do."""
    if not (todo.read or todo.trials or todo.runs or todo.evaluations):
        return Costs(0.0, 0.0, {}, [])
    bench = Bench(load_lm(todo.first.model, todo.source.device), todo.first)
    kinds: dict[str, Kind] = {}
    seen: dict[str, ViewCost] = {}
    evaluations = [job for jobs in todo.evaluations for job in jobs]
    for job in evaluations:
        bench.held_out(job)
    with Progress(len(todo.found + todo.trials + todo.runs + evaluations), "SAEs", "measuring") as progress:
        for job in [*todo.found, *todo.trials, *todo.runs]:
            kinds[kind_of(job)] = bench.kind(job)
            progress.advance()
        for job in evaluations:
            if (key := evaluated_kind(job)) not in seen:
                seen[key] = bench.views(job, in_blocks(job.data.eval_tokens, job))
            progress.advance()
    views = [[seen[evaluated_kind(job)] for job in jobs] for jobs in todo.evaluations]
    spliced = (
        bench.spliced() if any(spliced_tokens(*pair) for pair in zip(todo.evaluations, views, strict=True)) else 0.0
    )
    return Costs(bench.lower, spliced, kinds, views)


def evaluated_kind(job: RunConfig) -> str:
    """The key of all that the cost of an evaluation depends on."""
    return key_of({"kind": kind_of(job), "evaluate": vars(job.evaluate)})


def spliced_tokens(jobs: list[RunConfig], views: list[ViewCost]) -> int:
    """Held-out tokens on which a group of evaluations measures cross-entropy."""
    cfg = jobs[0]
    wanted = min(in_blocks(cfg.evaluate.ce_tokens, cfg), in_blocks(cfg.data.eval_tokens, cfg))
    return wanted if any(v.spliced_views for v in views) else 0


def stages(gangs: list[tuple[Todo, Costs]]) -> list[Line]:
    """The lines of the table, of all gangs together."""
    todos = [todo for todo, _ in gangs]
    trials, runs = [j for t in todos for j in t.trials], [j for t in todos for j in t.runs]
    views = sum(v.views for _, c in gangs for group in c.views for v in group)
    passes = sum(held_out_passes(t) for t in todos)
    read, caching = sum(t.read for t in todos), sum(t.read * c.lower for t, c in gangs)
    rate = f" at {read / caching:,.0f}/s" if read else ""
    searching = [f"{sum(len(t.found) for t in todos)} searches", f"{len(trials)} SAEs", steps_of(trials)]
    timed = [
        Line("caching", f"{read:,} tokens{rate}", caching),
        Line("learning-rate search", ", ".join(searching), sum(training(t.trials, c)[2] for t, c in gangs)),
        Line("training", f"{len(runs)} SAEs, {steps_of(runs)}", sum(training(t.runs, c)[0] for t, c in gangs)),
        Line("importance of latents", f"{len(runs)} SAEs", sum(training(t.runs, c)[1] for t, c in gangs)),
        Line("held-out pass", f"{passes} pass" + "es" * (passes != 1), sum(held_out_seconds(t, c) for t, c in gangs)),
        Line("evaluation of views", f"{views} views", sum(v.seconds for _, c in gangs for g in c.views for v in g)),
        Line("cross-entropy", recaptured(gangs), sum(splicing(t, c) for t, c in gangs)),
    ]
    return [*timed, Line("total", "", sum(line.seconds or 0 for line in timed)), *sizes(gangs)]


def steps_of(jobs: list[RunConfig]) -> str:
    """How many steps some jobs take together."""
    return f"{sum(steps(job) for job in jobs):,} steps"


def steps(job: RunConfig) -> int:
    """Training steps of a job."""
    return max(1, job.train_tokens // job.train.batch_size)


def training(jobs: list[RunConfig], c: Costs) -> tuple[float, float, float]:
    """Seconds of the steps of some jobs, of the importance of their latents, and of both."""
    each = [(job, c.kinds[kind_of(job)]) for job in jobs]
    stepping = sum(steps(job) * kind.step for job, kind in each)
    encoding = sum(max(1, job.train.importance_tokens // job.train.batch_size) * kind.encode for job, kind in each)
    return stepping, encoding, stepping + encoding


def held_out_passes(todo: Todo) -> int:
    """How often the held-out tokens go through the model's lower half: once while evaluations differ only in their views."""
    return sum(1 for _ in itertools.groupby(heldout_key(jobs[0]) for jobs in todo.evaluations))


def held_out_seconds(todo: Todo, c: Costs) -> float:
    """Seconds of the language model's lower half on the held-out tokens."""
    return held_out_passes(todo) * in_blocks(todo.first.data.eval_tokens, todo.first) * c.lower


def splicing(todo: Todo, c: Costs) -> float:
    """Seconds of the recaptured LM loss: each reconstruction, and the upper half for each."""
    total = 0.0
    for jobs, views in zip(todo.evaluations, c.views, strict=True):
        passes = ABLATIONS + sum(v.spliced_views for v in views)
        total += spliced_tokens(jobs, views) * (passes * c.spliced + sum(v.per_spliced for v in views))
    return total


def recaptured(gangs: list[tuple[Todo, Costs]]) -> str:
    """How many views are spliced, and how many tokens that makes."""
    groups = [pair for t, c in gangs for pair in zip(t.evaluations, c.views, strict=True)]
    views = [(sum(v.spliced_views for v in group), spliced_tokens(jobs, group)) for jobs, group in groups]
    tokens = sum(n * (most + ABLATIONS) for most, n in views if n)
    return f"{sum(most for most, n in views if n)} views, {tokens:,} tokens"


def sizes(gangs: list[tuple[Todo, Costs]]) -> list[Line]:
    """Lines of disk and memory."""
    cache = sum(t.cached * (t.source.d_in * DTYPES[t.first.data.dtype].itemsize + 9) for t, _ in gangs)
    kept = sum(weights([*t.runs, *t.found], c) for t, c in gangs)
    trials = max((weights(t.trials, c) for t, c in gangs), default=0)
    memory = max((held(jobs, c) for t, c in gangs for jobs in (t.trials, t.runs)), default=0)
    disk = f"{gb(cache)} caches, {gb(kept)} SAEs, {gb(trials)} more while a search lasts"
    return [
        Line("disk", disk, None),
        Line("memory", f"{gb(memory)} for the SAEs of the largest gang; more than is free: in waves", None),
    ]


def weights(jobs: list[RunConfig], c: Costs) -> int:
    """Bytes of the SAEs of some jobs on disk."""
    return sum(c.kinds[kind_of(job)].saved for job in jobs)


def held(jobs: list[RunConfig], c: Costs) -> int:
    """Bytes of a gang in training, if it is not split into waves: see `room`."""
    kinds = [c.kinds[kind_of(job)] for job in jobs]
    return peak([Need(k.held, k.passing) for k in kinds])


def gb(size: int) -> str:
    """Bytes in GB or MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def table(lines: list[Line]) -> str:
    """The lines in columns: stage, amount, time."""
    rows = [(line.stage, line.amount, "" if line.seconds is None else duration(line.seconds)) for line in lines]
    stage, amount = (max(len(row[i]) for row in rows) for i in (0, 1))
    return "\n".join(f"{s:{stage}}  {a:{amount}}  {t:>9}".rstrip() for s, a, t in rows)
