"""From a config to its activations: text as tokens, the model, caches of one or of several sites, statistics, batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from saebench.activations import ActivationStats, Batches, Shards, activation_inputs, open_stats
from saebench.caching import cache_of, make_caches, open_shards
from saebench.checks import require
from saebench.config import RunConfig
from saebench.data import TokenStore, token_inputs, tokenise
from saebench.devices import resolve_device, resolve_dtype
from saebench.gangs import passes
from saebench.lm import LM, check_model, describe, load_lm, load_tokenizer, special_ids
from saebench.memory import check_memory
from saebench.parallel import SOLO, World, join
from saebench.store import is_done


@dataclass(frozen=True)
class Source:
    """A run's text as tokens, and the model that makes activations of them, loaded when needed.

    SAEs are trained on `device`; `inputs` are all that the activations depend on, d_in is their width.
    """

    inputs: dict[str, Any]
    store: TokenStore
    lm: Callable[[], LM]
    d_in: int
    device: torch.device
    world: World


@dataclass(frozen=True)
class Stream:
    """Activations that runs share: their tokens, shards and statistics, and the model that makes them, loaded when needed."""

    inputs: dict[str, Any]
    store: TokenStore
    shards: Shards
    stats: ActivationStats
    lm: Callable[[], LM]
    device: torch.device
    world: World = SOLO


def open_source(cfg: RunConfig) -> Source:
    """Tokens and model of `cfg`. Raises InputError for what the model or the data lack."""
    world = join()
    device = world.device(resolve_device(cfg.device), cfg.device)
    given = cfg.train.lm_device
    require(world.size == 1 or given is None, f"train.lm_device={given}: each rank has one GPU for both; use null")
    lm_device = device if given is None else resolve_device(given, "train.lm_device")
    info = describe(cfg.model)
    check_model(cfg.model, info, cfg.data.seq_len)
    check_memory(cfg, info.d_model, device, world.size)
    tokenizer = load_tokenizer(cfg.model)
    with world.first():
        store = tokenise(cfg.data, tokenizer, special_ids(tokenizer), cfg.model.name, Path(cfg.outputs))
    dtype = str(resolve_dtype(cfg.model.dtype, lm_device)).removeprefix("torch.")
    inputs = activation_inputs(cfg, token_inputs(cfg.data, tokenizer), info.fingerprint(), dtype)
    return Source(inputs, store, cache(lambda: load_lm(cfg.model, lm_device)), info.d_model, device, world)


def open_stream(cfg: RunConfig) -> Stream:
    """Tokens and activations of `cfg`, made if missing. Raises InputError for what the model or the data lack."""
    source = open_source(cfg)
    inputs, store, lm, d_in, device, world = vars(source).values()
    shards = open_shards(cfg, inputs, store, lm, d_in, world)
    with world.first():
        stats = open_stats(cfg, inputs, shards)
    return Stream(inputs, store, shards, stats, lm, device, world)


def cache_sites(configs: Sequence[RunConfig]) -> None:
    """Write the missing caches of runs that read the same text at several sites of one model, in one pass of it for them all."""
    for same in passes(configs):
        sources = [open_source(cfg) for cfg in same]
        caches = {c.path: c for c in map(cache_of, same, [source.inputs for source in sources])}
        first = sources[0]
        if sum(not is_done(c.path, c.inputs) for c in caches.values()) > 1:
            shards = Shards(same[0].data, first.store, first.lm, same[0].model.batch)
            make_caches(list(caches.values()), shards, first.d_in, first.world)


def open_batches(cfg: RunConfig, stream: Stream) -> Batches:
    """The batches of activations that `cfg` trains on."""
    train = cfg.train
    rows = stream.stats.summary["rows"]
    pinned = stream.device.type == "cuda"
    return Batches(stream.shards, rows, train.batch_size, train.window_tokens, train.order_seed, pinned, stream.world)
