"""Activations in shards: cached on disk or computed as training goes, with the same numbers, and batches drawn from them.

The training blocks of tokens are permuted once (data.seed) and cut into shards. Each epoch visits the shards in an order
of its own and shuffles windows of several shards fully (train.order_seed), so batch s is a pure function of the manifest,
order_seed, batch size and s. Special tokens (BOS, separators) are in the shards, marked, and never in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from saebench.checks import InputError
from saebench.config import DataConfig, RunConfig
from saebench.data import TokenStore
from saebench.lm import LM, Site
from saebench.parallel import SOLO, World
from saebench.progress import Progress
from saebench.saes.base import Stats
from saebench.store import checked, key_of, read_json, records_of, seed_of, stage, write_json, write_tensors

NUMERICS = 1  # raised by hand when the activations of an unchanged config change
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1.0)


class Shard(NamedTuple):
    """Consecutive permuted blocks: x [b, t, d_in], tokens and documents [b, t], excluded [b, t] (bool)."""

    x: Tensor
    tokens: Tensor
    documents: Tensor
    excluded: Tensor

    def rows(self) -> Tensor:
        """The activations that are trained on, in order: [rows, d_in]."""
        return self.x[~self.excluded]


class Shards:
    """The training activations, shard by shard, computed by the language model; `DiskShards` reads them instead."""

    def __init__(self, cfg: DataConfig, store: TokenStore, lm: Callable[[], LM], batch: int) -> None:
        self.cfg, self.store, self.lm, self.batch = cfg, store, lm, batch
        generator = torch.Generator().manual_seed(cfg.seed)
        self.order = torch.randperm(store.n_blocks("train"), generator=generator)  # [n_blocks]
        self.blocks = max(1, cfg.shard_tokens // cfg.seq_len)

    def __len__(self) -> int:
        return -(-len(self.order) // self.blocks)

    def block_ids(self, i: int) -> Tensor:
        """The training blocks of shard i: [b]."""
        return self.order[i * self.blocks : (i + 1) * self.blocks]

    def read(self, i: int, progress: Progress | None = None) -> Shard:
        """Shard i. Raises InputError naming shard and token if an activation is not finite."""
        (shard,) = self.read_sites(i, [self.lm().at], progress)
        return shard

    def read_sites(self, i: int, sites: Sequence[Site], progress: Progress | None = None) -> list[Shard]:
        """Shard i at several sites of the model, from one pass. Raises InputError as `read` does."""
        blocks = self.store.blocks("train", self.block_ids(i))
        parts: list[list[Tensor]] = []
        for tokens in blocks.tokens.split(self.batch):
            found = self.lm().activations_at(tokens, sites)
            parts.append([x.to(DTYPES[self.cfg.dtype]).cpu() for x in found])
            if progress is not None:
                progress.advance(tokens.numel())
        whole = [torch.cat(mine) for mine in zip(*parts, strict=True)]  # [b, t, d_in] each
        return [self.shard(i, x, blocks.tokens, blocks.documents) for x in whole]

    def shard(self, i: int, x: Tensor, tokens: Tensor, documents: Tensor) -> Shard:
        """Shard i of these tensors."""
        excluded = self.store.excluded(tokens)
        check_finite(x, excluded, i)  # a damaged file must not reach a kernel
        return Shard(x, tokens, documents, excluded)


class DiskShards(Shards):
    """The same shards, read from the cache."""

    def __init__(self, cfg: DataConfig, store: TokenStore, lm: Callable[[], LM], batch: int, path: Path) -> None:
        super().__init__(cfg, store, lm, batch)
        self.path, self.files = path, records_of(path)
        self.checked: set[int] = set()  # shards whose checksum was compared in this process

    def read(self, i: int, progress: Progress | None = None) -> Shard:
        path = checked(self.path, shard_file(self.path, i).name, i not in self.checked, self.files)
        self.checked.add(i)
        tensors = load_file(path)
        return self.shard(i, tensors["x"], tensors["tokens"].long(), tensors["documents"].long())


def shard_file(path: Path, i: int) -> Path:
    """The file of shard i."""
    return path / f"shard-{i:05d}.safetensors"


def check_finite(x: Tensor, excluded: Tensor, shard: int) -> None:
    """Raise InputError unless every activation that is not an excluded token's is finite."""
    bad = (~x.isfinite()).any(2) & ~excluded  # [b, t]
    if bool(bad.any()):
        block, position = (int(v) for v in bad.nonzero()[0])
        raise InputError(
            f"activations: NaN or inf in shard {shard}, block {block}, token {position}; if it is so from the start, try "
            "model.dtype=float32 (some models overflow in lower precision); if not, the cached file is damaged: remove it"
        )


def activation_inputs(cfg: RunConfig, tokens: dict[str, Any], model: dict[str, Any], dtype: str) -> dict[str, Any]:
    """All that the activations depend on: tokens, model, site, precision, the way they are cut into shards, rows left out."""
    data = {name: getattr(cfg.data, name) for name in ("dtype", "shard_tokens", "stats_tokens", "outlier_norm", "seed")}
    site = {"layer": cfg.model.layer, "site": cfg.model.site, "batch": cfg.model.batch, "dtype": dtype}
    rows = {} if cfg.data.special == "exclude" else {"special": cfg.data.special}
    return {"numerics": NUMERICS, "tokens": tokens, "model": model, "site": site, "data": data, **rows}


def shard_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    """Those of `activation_inputs` that the shards depend on: they hold the special tokens whether these are kept or not."""
    return {name: value for name, value in inputs.items() if name != "special"}


@dataclass(frozen=True)
class ActivationStats(Stats):
    """Stats of the training activations, the norm quantiles, and the norm above which a token is an outlier."""

    outlier_norm: float
    summary: dict[str, Any]

    def outliers(self, x: Tensor) -> Tensor:
        """[n] (bool): rows of x [n, d_in] whose norm is outlying."""
        return torch.linalg.vector_norm(x.float(), dim=1) > self.outlier_norm


def open_stats(cfg: RunConfig, inputs: dict[str, Any], shards: Shards) -> ActivationStats:
    """The statistics of the first data.stats_tokens training tokens, and the number of rows in each shard, from a stage."""
    path = Path(cfg.outputs) / "activations" / f"{key_of(inputs)}-stats"
    stage(path, inputs, lambda partial: write_stats(partial, shards))
    tensors, summary = load_file(checked(path, "stats.safetensors")), read_json(checked(path, "stats.json"))
    return ActivationStats(tensors["mean"], summary["scale"], tensors["variance"], summary["outlier_norm"], summary)


def write_stats(partial: Path, shards: Shards) -> None:
    """Measure mean, variance, scale and norm quantiles on the first shards, and count the rows of all."""
    used = max(1, shards.cfg.stats_tokens // (shards.blocks * shards.store.seq_len))
    used = min(used, len(shards))
    with Progress(used, "shards", "measuring activations") as progress:
        parts = []
        for i in range(used):
            parts.append(shards.read(i).rows().float())
            progress.advance()
    x = torch.cat(parts)  # [rows, d_in]
    mean = x.double().mean(0)  # [d_in]
    variance = (x.double() - mean).square().mean(0)
    norms = torch.linalg.vector_norm(x, dim=1).sort().values  # [rows]
    quantiles = {str(q): float(norms[round(q * (len(norms) - 1))]) for q in QUANTILES}
    outlier_norm = shards.cfg.outlier_norm * quantiles["0.5"]
    write_tensors(partial / "stats.safetensors", {"mean": mean, "variance": variance})
    summary = {
        "scale": float(variance.mean().sqrt()),
        "norm_quantiles": quantiles,
        "outlier_norm": outlier_norm,
        "outlier_fraction": float((norms > outlier_norm).double().mean()),
        "largest_dimension_share": float(variance.max() / variance.sum()),
        "tokens": len(x),
        "rows": [count_rows(shards, i) for i in range(len(shards))],
    }
    write_json(partial / "stats.json", summary)


def count_rows(shards: Shards, i: int) -> int:
    """Trained tokens in shard i, from its tokens alone."""
    tokens = shards.store.blocks("train", shards.block_ids(i)).tokens
    return int((~shards.store.excluded(tokens)).sum())


class Window(NamedTuple):
    """Shards shuffled together: `seed` of their permutation, the first step they serve and the number of steps."""

    shards: list[int]
    seed: int
    first: int
    steps: int


class Batches:
    """batch s of activations [batch_size, d_in] for s = 0, 1, ...; rows that do not fill a window's last batch are left out.

    A rank among several gets its part of each, [batch_size / size, d_in].
    """

    def __init__(
        self, shards: Shards, rows: list[int], batch_size: int, window_tokens: int, order_seed: int, pinned: bool = False,
        world: World = SOLO,
    ) -> None:  # fmt: skip
        self.shards, self.rows, self.pinned = shards, rows, pinned  # pinned: in memory that a GPU reads directly
        self.world, self.part = world, world.part(batch_size)
        self.batch_size, self.window_tokens, self.order_seed = batch_size, window_tokens, order_seed

    @cached_property
    def per_shard(self) -> int:
        """Shards in a window."""
        return max(1, self.window_tokens // max(self.rows))

    def windows(self) -> Iterator[Window]:
        """The windows of all epochs, without end. Raises InputError if an epoch holds no whole batch."""
        first, epoch = 0, 0
        while True:
            began = first
            generator = torch.Generator().manual_seed(seed_of(self.order_seed, epoch, 0))
            order = torch.randperm(len(self.rows), generator=generator).tolist()
            for w, start in enumerate(range(0, len(order), self.per_shard)):
                members = order[start : start + self.per_shard]
                steps = sum(self.rows[i] for i in members) // self.batch_size
                yield Window(members, seed_of(self.order_seed, epoch, w + 1), first, steps)
                first += steps
            if first == began:
                raise InputError(
                    f"train.batch_size={self.batch_size}: an epoch has {sum(self.rows)} tokens, which fills no batch; "
                    "lower train.batch_size or raise data.n_tokens"
                )
            epoch += 1

    def load(self, window: Window) -> Tensor:
        """The window's activations, shuffled: [rows, d_in], or the rank's part of them."""
        x = torch.cat([self.shards.read(i).rows() for i in window.shards])
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(window.seed))
        x = x[self.world.own(order, self.batch_size)]
        return x.pin_memory() if self.pinned else x

    def between(self, start: int, stop: int) -> Iterator[Tensor]:
        """Batches start, start + 1, ..., stop - 1; the next window is loaded in the background."""
        wanted = (w for w in self.windows() if w.first + w.steps > start)
        with ThreadPoolExecutor(1, thread_name_prefix="window") as pool:
            window = next(wanted)
            loading = pool.submit(self.load, window)
            while window.first < stop:
                x = loading.result()
                following = next(wanted)
                if following.first < stop:
                    loading = pool.submit(self.load, following)
                for s in range(max(start, window.first), min(stop, window.first + window.steps)):
                    yield x[(s - window.first) * self.part :][: self.part]
                window = following
