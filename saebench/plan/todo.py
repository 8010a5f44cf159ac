"""What a sweep has left to do, from its configs and the done.json of stages; no text is tokenised and nothing is written."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from saebench.activations import activation_inputs, shard_inputs
from saebench.config import RunConfig
from saebench.data import token_inputs
from saebench.devices import resolve_device, resolve_dtype
from saebench.gangs import gangs, passes
from saebench.lm import check_seq_len, describe, load_tokenizer
from saebench.pipeline import evaluation_inputs, evaluation_stage, run_folder, run_inputs
from saebench.search import Group, group, read_rows, with_rate
from saebench.store import is_done, key_of
from saebench.stream import Stream


@dataclass(frozen=True)
class Source:
    """A gang's activations as far as they are known without their text: all of a Stream that names folders."""

    inputs: dict[str, Any]
    device: torch.device
    d_in: int
    tokenised: bool


@dataclass(frozen=True)
class Todo:
    """What a gang has left to do. `evaluations` are measured group by group."""

    first: RunConfig
    source: Source
    cached: int  # tokens to write to the cache
    read: int  # tokens that the language model runs on: those, or with cache=stream all that training reads
    found: list[RunConfig]  # a trial of each search, as the best one stays as a run
    trials: list[RunConfig]
    runs: list[RunConfig]
    evaluations: list[list[RunConfig]]


def look(cfg: RunConfig, device: torch.device | None = None) -> Source:
    """What `open_stream` would open (on another machine's `device`). Raises its InputErrors but for text that is too short."""
    given, info = cfg.train.lm_device, describe(cfg.model)
    device = device or resolve_device(cfg.device)
    lm_device = device if given is None else resolve_device(given, "train.lm_device")
    check_seq_len(cfg.data.seq_len, info.max_positions, cfg.model.name)
    tokens = token_inputs(cfg.data, load_tokenizer(cfg.model))
    dtype = str(resolve_dtype(cfg.model.dtype, lm_device)).removeprefix("torch.")
    inputs = activation_inputs(cfg, tokens, info.fingerprint(), dtype)
    return Source(inputs, device, info.d_model, is_done(Path(cfg.outputs) / "tokens" / key_of(tokens), tokens))


def outstanding(configs: list[RunConfig]) -> list[Todo]:
    """What each gang of a sweep has left to do."""
    groups = group(configs)
    missing = [g for g in groups if not (g.path / "done.json").is_file()]
    rated = known_rates(configs, [g for g in groups if g not in missing])
    found: list[Todo] = []
    for gang in gangs(rated):
        searches = [g for g in missing if g.jobs[0] in gang]
        found.append(left_of({i: rated[i] for i in gang}, searches, {cache_folder(t.first, t.source) for t in found}))
    served = read_for_others([t.first for t in found if t.cached])
    return [dataclasses.replace(t, read=0) if t.cached and id(t.first) in served else t for t in found]


def read_for_others(configs: list[RunConfig]) -> set[int]:
    """The ids of configs whose sites are cached in the pass of the model that goes deepest, among several sites."""
    served: set[int] = set()
    for same in passes(configs):
        deepest = max(same, key=lambda cfg: (cfg.model.layer, cfg.model.site != "resid_pre"))
        served |= {id(cfg) for cfg in same} - {id(deepest)}
    return served


def known_rates(configs: list[RunConfig], groups: list[Group]) -> list[RunConfig]:
    """The configs with the learning rates that finished searches chose."""
    chosen = list(configs)
    for g in groups:
        rate = next(float(row["lr"]) for row in read_rows(g.path / "search.csv") if row["chosen"] == "True")
        for i in g.jobs:
            chosen[i] = with_rate(configs[i], rate)
    return chosen


def left_of(gang: dict[int, RunConfig], searches: list[Group], cached: set[Path]) -> Todo:
    """What a gang, its jobs by number, has left; `cached` are the caches that earlier gangs will have written.

    The key of a job whose rate is still to be found is not known, so that it counts as not done; the best trial of each
    search stays as the run of its job, which then need not be trained.
    """
    first = next(iter(gang.values()))
    source = look(first)
    stream = cast("Stream", source)  # keys need of a stream its inputs and its device alone
    unrated = {i for g in searches for i in g.jobs}
    folders = {i: run_folder(cfg, stream) for i, cfg in gang.items()}
    untrained = {
        folders[i]: c for i, c in gang.items() if i in unrated or not is_done(folders[i], run_inputs(c, stream))
    }
    found = {run_folder(unset(g.trials[0]), stream): g.trials[0] for g in searches}
    groups: dict[str, dict[Path, RunConfig]] = {}
    for i, cfg in gang.items():
        if folders[i] in untrained or not is_done(*evaluation_stage(folders[i], cfg)):
            groups.setdefault(key_of(evaluation_inputs(cfg)), {})[folders[i]] = cfg
    trials = [t for g in searches for t in g.trials if not trial_is_done(t, stream)]
    runs = [cfg for folder, cfg in untrained.items() if folder not in found]
    evaluations = [list(jobs.values()) for jobs in groups.values()]
    written = 0 if first.cache == "stream" or cache_folder(first, source) in cached else uncached(first, source)
    read = streamed(first, source, [trials, runs], len(evaluations)) if first.cache == "stream" else written
    return Todo(first, source, written, read, list(found.values()), trials, runs, evaluations)


def unset(trial: RunConfig) -> RunConfig:
    """The job that a trial was made from: without its learning rate."""
    return dataclasses.replace(trial, train=dataclasses.replace(trial.train, lr=None))


def trial_is_done(trial: RunConfig, stream: Stream) -> bool:
    """Whether an interrupted search has trained it."""
    folder = Path(trial.outputs) / "searches" / "trials" / run_folder(trial, stream).name
    return is_done(folder, run_inputs(trial, stream))


def in_blocks(tokens: int, cfg: RunConfig) -> int:
    """Tokens rounded up to whole blocks."""
    return -(-tokens // cfg.data.seq_len) * cfg.data.seq_len


def cache_folder(cfg: RunConfig, source: Source) -> Path:
    """outputs/activations/<key>."""
    return Path(cfg.outputs) / "activations" / key_of(shard_inputs(source.inputs))


def uncached(cfg: RunConfig, source: Source) -> int:
    """Tokens whose activations are not on disk yet; an interrupted cache goes on from its last shard."""
    path = cache_folder(cfg, source)
    if is_done(path, shard_inputs(source.inputs)):
        return 0
    shards = list(path.with_name(path.name + ".partial").glob("shard-*.safetensors"))
    return max(0, in_blocks(cfg.data.n_tokens, cfg) - len(shards) * shard_tokens(cfg))


def shard_tokens(cfg: RunConfig) -> int:
    """Tokens in a whole shard."""
    return max(1, cfg.data.shard_tokens // cfg.data.seq_len) * cfg.data.seq_len


def streamed(cfg: RunConfig, source: Source, passes: list[list[RunConfig]], evaluations: int) -> int:
    """Tokens the model runs on with cache=stream: for statistics, training, importance (a window), a shard per evaluation."""
    path = Path(cfg.outputs) / "activations" / f"{key_of(source.inputs)}-stats"
    every, shard = in_blocks(cfg.data.n_tokens, cfg), shard_tokens(cfg)
    stats = 0 if is_done(path, source.inputs) else max(shard, cfg.data.stats_tokens // shard * shard)
    window = max(cfg.train.window_tokens, cfg.train.importance_tokens)
    training = sum(max(c.train_tokens for c in jobs) + min(every, window) for jobs in passes if jobs)
    return min(every, stats) + training + evaluations * min(every, shard)
