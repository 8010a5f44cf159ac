"""Synthetic blocks, an SAE that is exact on them, and what collecting must find, by a dense pass in plain Python."""

from __future__ import annotations

import dataclasses
from functools import cache
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from saebench.activations import Shard, Shards
from saebench.interpret import files
from saebench.interpret.collect import Collected, collect
from saebench.interpret.draws import drawn, is_shown
from saebench.interpret.logits import LatentLogits
from saebench.interpret.settings import CollectConfig
from saebench.progress import Progress
from saebench.sae_configs import SAEConfig
from saebench.saes import SAE, Stats, build
from saebench.saes.batchtopk import BatchTopK
from saebench.views import View, latents_of
from tests.configs import sae_config

D_IN, D_SAE, T, BLOCKS, VOCAB = 12, 40, 16, 40, 23
CFG = CollectConfig(tokens=T * BLOCKS, top=4, samples=6, window=7, pool=5 * T, batch=3 * T, seed=3)
VIEWS = [
    View("full", D_SAE, "threshold"),
    View("prefix", 10, "topk", order="prune_then_select", budget=3),
    View("pruned", 13, "threshold", "energy", "select_then_prune"),
    View("budget", D_SAE, "topk", budget=2),
    View("budget", D_SAE, "threshold", budget=5),
]
THRESHOLDS = [None, None, None, None, 1.5]


def keeps() -> list[Tensor]:
    """What each of VIEWS may use."""
    some = torch.zeros(D_SAE, dtype=torch.bool)
    some[torch.randperm(D_SAE, generator=torch.Generator().manual_seed(5))[:13]] = True
    every = torch.ones(D_SAE, dtype=torch.bool)
    return [every, torch.arange(D_SAE) < 10, some, every, every]


class Blocks(Shards):
    """Synthetic blocks in shards of 7; every number is a small multiple of 1/64, so that sums are exact in any order."""

    def __init__(self, order: Tensor, seq_len: int = T) -> None:
        g = torch.Generator().manual_seed(1)
        n = int(order.max()) + 1
        self.order, self.blocks, self.store = order, 7, SimpleNamespace(seq_len=seq_len)  # pyright: ignore[reportAttributeAccessIssue]
        self.x = torch.randint(-128, 129, (n, seq_len, D_IN), generator=g) / 64  # [n, t, d_in]
        self.tokens = torch.randint(0, VOCAB, (n, seq_len), generator=g)
        lengths = torch.randint(1, 30, (n * seq_len,), generator=g)
        self.documents = torch.arange(len(lengths)).repeat_interleave(lengths)[: n * seq_len].view(n, seq_len)
        self.excluded = torch.rand(n, seq_len, generator=g) < 0.1

    def read(self, i: int, progress: Progress | None = None) -> Shard:
        ids = self.block_ids(i)
        return Shard(self.x[ids], self.tokens[ids], self.documents[ids], self.excluded[ids])


@cache
def config() -> SAEConfig:
    """BatchTopK, on activations as they are."""
    return sae_config("batchtopk", d_sae=D_SAE, input="none")


def exact_sae() -> SAE:
    """An SAE whose activations on Blocks are exact in float32; latent 3 is dead."""
    sae = build(config(), Stats(torch.zeros(D_IN), 1.0, torch.ones(D_IN)), 0).requires_grad_(False)
    assert isinstance(sae, BatchTopK)
    g = torch.Generator().manual_seed(2)
    sae.W_enc.copy_(torch.randint(-32, 33, (D_IN, D_SAE), generator=g) / 64)
    sae.b_enc.copy_(torch.randint(-64, 65, (D_SAE,), generator=g) / 64)
    sae.b_enc[3] = -100
    sae.threshold.fill_(2.0)
    return sae


def passed(order: Tensor | None = None, **changes: Any) -> list[Collected]:
    """A pass over all of Blocks."""
    shards = Blocks(torch.arange(BLOCKS) if order is None else order)
    return collect(exact_sae(), VIEWS, keeps(), THRESHOLDS, shards, dataclasses.replace(CFG, **changes))


passed_once = cache(passed)


def dense(view: int, shards: Blocks) -> Tensor:
    """Activations of a view at every token of every block, 0 at excluded ones: [n, t, d_sae]."""
    sae, ordinary = exact_sae(), ~shards.excluded
    acts = sae.acts(sae.normalise(shards.x[ordinary]).x)
    z = torch.zeros(*shards.tokens.shape, D_SAE)
    z[ordinary] = latents_of(VIEWS[view], sae, acts, keeps()[view], THRESHOLDS[view]).dense()
    return z


def plain_window(documents: Tensor, position: int) -> tuple[int, int]:
    """First and last + 1 of the window around a token of a block."""
    low, high = position, position + 1
    while low > 0 and documents[low - 1] == documents[position]:
        low -= 1
    while high < len(documents) and documents[high] == documents[position]:
        high += 1
    first = max(low, min(position - CFG.window // 2, high - CFG.window))
    return first, min(high, first + CFG.window)


def plain_examples(shards: Blocks, z: Tensor, latent: int) -> list[dict[str, Any]]:
    """The rows of examples.parquet of one latent, but for quantiles."""
    rows = []
    blocks, positions = (z[:, :, latent] > 0).nonzero().unbind(1)  # [e] each
    draws = drawn(CFG.seed, torch.full_like(blocks, latent), blocks, positions).tolist()
    sides = is_shown(shards.documents[blocks, positions], CFG.seed).tolist()
    acts = z[blocks, positions, latent].tolist()
    active = list(zip(acts, draws, blocks.tolist(), positions.tolist(), sides, strict=True))
    keyed = {"top": lambda e: (e[0], e[1] & 0xFFFFFFFF), "sample": lambda e: e[1]}
    for shown, (kind, slots) in product((True, False), (("top", CFG.top // 2), ("sample", CFG.samples // 2))):
        best: dict[int, Any] = {}  # of each block
        for entry in sorted(active, key=keyed[kind], reverse=True):
            if entry[4] == shown:
                best.setdefault(entry[2], entry)
        for act, _, block, position, _ in list(best.values())[:slots]:
            first, stop = plain_window(shards.documents[block], position)
            row = {"latent": latent, "kind": kind, "act": act, "document": int(shards.documents[block, position])}
            row |= {"block": block, "position": position, "centre": position - first, "shown": shown}
            row["tokens"] = shards.tokens[block, first:stop].tolist()
            row["acts"] = z[block, first:stop, latent].tolist()
            rows.append(row)
    return sorted(rows, key=lambda r: (r["kind"] == "sample", -r["act"], r["block"], r["position"]))


def no_logits() -> LatentLogits:
    """Logits of the right shapes."""
    ids = torch.arange(D_SAE * 2).view(D_SAE, 2) % VOCAB
    return LatentLogits(ids, ids.float(), ids + 1, -ids.float())


VOCABULARY = [f" t{i}" for i in range(VOCAB + 1)]


def write_views(root: Path) -> list[Path]:
    """The folder of every view, written into `root`."""
    for i, found in enumerate(passed_once()):
        (root / str(i)).mkdir()
        files.write(root / str(i), found, no_logits(), VOCABULARY)
    return [root / str(i) for i in range(len(VIEWS))]
