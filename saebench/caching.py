"""Writing caches of activations: of several sites of a model in one pass, each of several ranks its part of the shards."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from saebench.activations import DTYPES, DiskShards, Shards, shard_file, shard_inputs
from saebench.checks import InputError
from saebench.config import RunConfig
from saebench.data import TokenStore
from saebench.lm import LM, Site
from saebench.parallel import SOLO, World
from saebench.progress import Progress, say
from saebench.store import begin, finish, key_of, partial_of, write_json, write_tensors


@dataclass(frozen=True)
class Cache:
    """A cache on disk: its folder, what it is made from, and the site whose activations it holds."""

    path: Path
    inputs: dict[str, Any]
    site: Site


def cache_of(cfg: RunConfig, inputs: dict[str, Any]) -> Cache:
    """The cache of a run, given its `activation_inputs`."""
    inputs = shard_inputs(inputs)
    path = Path(cfg.outputs) / "activations" / key_of(inputs)
    return Cache(path, inputs, Site(cfg.model.layer, cfg.model.site))


def open_shards(
    cfg: RunConfig, inputs: dict[str, Any], store: TokenStore, lm: Callable[[], LM], d_in: int, world: World = SOLO
) -> Shards:
    """The shards as `cache` says: made on disk if missing (disk), or computed when read (stream)."""
    shards = Shards(cfg.data, store, lm, cfg.model.batch)
    if cfg.cache == "stream":
        return shards
    cache = cache_of(cfg, inputs)
    make_caches([cache], shards, d_in, world)
    return DiskShards(cfg.data, store, lm, cfg.model.batch, cache.path)


def make_caches(caches: Sequence[Cache], shards: Shards, d_in: int, world: World) -> None:
    """Make those caches that are missing, in one pass over the tokens; rank 0 locks and finishes them.

    What an interrupted process left is gone on from. `shards` are those of any of the sites.
    """
    with ExitStack() as locks:
        ordered = sorted(caches, key=lambda cache: cache.path)  # so that no two processes wait for each other
        todo = [c for c in ordered if world.decided(partial(begin, c.path, c.inputs, locks))]
        if todo:
            write_caches(todo, shards, d_in, world)
            world.wait()
        for cache in todo if world.leads else ():
            finish(partial_of(cache.path), cache.path, cache.inputs)
    world.wait()


def write_caches(caches: Sequence[Cache], shards: Shards, d_in: int, world: World) -> None:
    """Write every shard that an interrupted process did not; each rank its own."""
    own = range(world.rank, len(shards), world.size)
    tokens = {i: len(shards.block_ids(i)) * shards.store.seq_len for i in own}
    every = {i: [c for c in caches if not shard_file(partial_of(c.path), i).exists()] for i in own}
    left = {i: missing for i, missing in every.items() if missing}
    if world.leads:
        announce(caches, shards, {i: (tokens[i], len(missing)) for i, missing in left.items()}, d_in, world.size)
    total, title = sum(tokens.values()), f"caching activations of {len(caches)} sites"
    start = total - sum(tokens[i] for i in left)
    with Progress(total, "tokens", title if len(caches) > 1 else "caching activations", start=start) as progress:
        for i, missing in left.items():
            found = shards.read_sites(i, [cache.site for cache in missing], progress)
            for cache, shard in zip(missing, found, strict=True):
                tensors = {"x": shard.x, "tokens": shard.tokens.int(), "documents": shard.documents.int()}
                special = shards.store.special(shard.tokens)
                write_tensors(shard_file(partial_of(cache.path), i), tensors | {"special": special})
    for cache in caches if world.leads else ():
        manifest = {"shards": len(shards), "blocks": len(shards.order), "d_in": d_in}
        write_json(partial_of(cache.path) / "manifest.json", manifest)


def announce(caches: Sequence[Cache], shards: Shards, left: dict[int, tuple[int, int]], d_in: int, ranks: int) -> None:
    """Say how much is written and how long it takes; InputError if the disk is too small.

    `left` says of each shard that rank 0 makes how many tokens it has, and how many caches miss it; other ranks make as many.
    """
    row = d_in * DTYPES[shards.cfg.dtype].itemsize + 9  # bytes of a token
    tokens = sum(n for n, _ in left.values())
    size = sum(n * missing for n, missing in left.values()) * ranks * row
    folder = caches[0].path.parent
    free = shutil.disk_usage(folder).free
    if size > free:
        raise InputError(
            f"outputs: the activation cache needs {size / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free; "
            "lower data.n_tokens, use cache=stream, or choose another outputs folder"
        )
    probe, sites = shards.store.blocks("train", shards.order[: shards.batch]).tokens, [cache.site for cache in caches]
    shards.lm().activations_at(probe, sites)  # the first call pays for warming up
    began = time.monotonic()
    shards.lm().activations_at(probe, sites)
    seconds = (time.monotonic() - began) / probe.numel() * tokens
    of = f" at {len(caches)} sites in one pass" if len(caches) > 1 else ""
    say(f"caching {tokens * ranks:,} tokens of activations{of}, {size / 1e9:.2f} GB, about {seconds:,.0f} s")
