"""Memory and rate of collecting contexts (`saebench interpret`) at the size of a paper: 65536 latents, and any number of tokens.

Random activations through a random TopK SAE, so that every latent fires and every place for a context is filled. Reports the
peak of the process beyond what it held before, while collecting and while writing, against the bound that `bytes_needed`
states, and the peak after each tenth of the tokens, which shows whether it grows. Encoding, the floor, is timed alone on the
same batches. Refuses nothing; run it alone: python -m tests.bench.contexts
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from saebench.activations import Shard, Shards
from saebench.interpret.collect import bytes_needed, collect
from saebench.interpret.files import write
from saebench.interpret.logits import LatentLogits
from saebench.interpret.reservoir import EMPTY
from saebench.interpret.settings import CollectConfig
from saebench.progress import Progress
from saebench.saes import SAE, Stats, build
from saebench.views import View, latents_of
from tests.configs import sae_config

VOCAB, BLOCKS = 32_000, 64  # tokens of a vocabulary, blocks of a shard


class RandomShards:
    """Shards of random activations [BLOCKS, seq_len, d_in], made when they are read; what `collect` uses of `Shards`."""

    def __init__(self, tokens: int, seq_len: int, d_in: int) -> None:
        self.store = SimpleNamespace(seq_len=seq_len)
        self.d_in, self.count = d_in, -(-tokens // (seq_len * BLOCKS))
        self.order = torch.arange(self.count * BLOCKS)

    def __len__(self) -> int:
        return self.count

    def read(self, i: int) -> Shard:
        """Shard i."""
        g, shape = torch.Generator().manual_seed(i), (BLOCKS, self.store.seq_len)
        documents = torch.arange(i * BLOCKS, (i + 1) * BLOCKS).view(-1, 1).expand(shape).contiguous()
        tokens = torch.randint(VOCAB, shape, generator=g)
        excluded = torch.zeros(shape, dtype=torch.bool)
        excluded[:, 0] = True
        return Shard(torch.randn(*shape, self.d_in, generator=g), tokens, documents, excluded)

    def block_ids(self, i: int) -> Tensor:
        """The numbers of its blocks."""
        return self.order[i * BLOCKS : (i + 1) * BLOCKS]


class Watched(Progress):
    """A bar that also notes the process's peak after each tenth."""

    def __init__(self, total: int) -> None:
        super().__init__(total, "tokens", "contexts")
        self.tokens, self.peaks, self.size = 0, list[float](), total

    def advance(self, n: int = 1, note: str = "") -> None:
        super().advance(n, note)
        self.tokens += n
        if self.tokens * 10 >= self.size * (len(self.peaks) + 1):
            self.peaks.append(peak())


def status(key: str) -> float:
    """A line of /proc/self/status in GB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1e6 * 1.024


def peak() -> float:
    """The most memory that the process has had, in GB."""
    return status("VmHWM")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("tokens", 1_000_000), ("d-sae", 65_536), ("d-in", 64), ("k", 32), ("seq-len", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    stats = Stats(torch.zeros(given.d_in), 1.0, torch.ones(given.d_in))
    sae = build(sae_config("topk", d_sae=given.d_sae, k=given.k), stats, 0)
    measure(sae, given)


@torch.no_grad()
def measure(sae: SAE, given: argparse.Namespace) -> None:
    """Collect, write, and the floor."""
    shards: Any = RandomShards(given.tokens, given.seq_len, given.d_in)
    cfg, view = CollectConfig(tokens=given.tokens), View("full", given.d_sae, "topk", budget=given.k)
    keep = torch.ones(given.d_sae, dtype=torch.bool)
    shard_bytes = sum(t.nbytes for t in shards.read(0))
    bound = bytes_needed(sae, [given.d_sae], given.seq_len, shard_bytes, cfg) / 1e9
    floor_rate = floor(sae, view, keep, shards)
    before, start = status("VmRSS"), time.monotonic()
    with Watched(len(shards.order) * given.seq_len) as progress:
        (found,) = collect(sae, [view], [keep], [None], shards, cfg, progress)
    rate = given.tokens / (time.monotonic() - start)
    collected = peak() - before
    with tempfile.TemporaryDirectory() as folder:
        none = torch.zeros(given.d_sae, 10)
        write(Path(folder), found, LatentLogits(none.long(), none, none.long(), none), ["a"] * VOCAB)
        size = sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e9
    growth = " ".join(f"{p - before:.2f}" for p in progress.peaks)
    contexts = sum(int((kept.keys != EMPTY).sum()) for kept in found.contexts.values())
    print(
        f"{given.d_sae} latents, k {given.k}, d_in {given.d_in}, {given.tokens:,} tokens, {torch.get_num_threads()} threads"
    )
    print(
        f"collecting {rate:,.0f} tokens/s, encoding and selecting alone {floor_rate:,.0f}: {rate / floor_rate:.2f} of it"
    )
    print(f"peak {collected:.2f} GB of a bound of {bound:.2f} GB; after each tenth {growth}")
    print(f"{contexts:,} contexts; writing peaks at {peak() - before:.2f} GB, files of {size:.2f} GB")


def floor(sae: SAE, view: View, keep: Tensor, shards: Shards) -> float:
    """Tokens per second of encoding and selecting alone, over one shard in the batches that collecting takes."""
    x = shards.read(0).x.flatten(0, 1)
    size = max(1, min(4096, (1 << 26) // sae.d_sae))
    start = time.monotonic()
    for part in x.split(size):
        latents_of(view, sae, sae.acts(sae.normalise(part).x), keep, None)
    return len(x) / (time.monotonic() - start)


if __name__ == "__main__":
    main()
