"""One pass over the training activations that keeps what is needed to tell what each latent of an SAE means.

    shards --> whole blocks --sae.acts--> candidates --each view--> entries --> counts, top contexts, sampled contexts, pool

Each batch is encoded once; every view selects from the same candidates. Nothing grows with the number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import torch
from torch import Tensor

from saebench.activations import Shard, Shards
from saebench.checks import InputError, require
from saebench.interpret.draws import drawn, is_shown
from saebench.interpret.pool import MOST_ENTRIES as MOST_POOLED
from saebench.interpret.pool import Pool
from saebench.interpret.reservoir import Reservoir
from saebench.interpret.settings import CollectConfig
from saebench.interpret.stats import LatentStats
from saebench.interpret.windows import Entries, Text, bits, entries_of, windows
from saebench.progress import Progress
from saebench.saes import SAE
from saebench.sparse import SparseLatents
from saebench.views import View, latents_of

MOST_CANDIDATES = 1 << 26  # tokens of a batch times d_sae, unless one block has more
MOST_ENTRIES = 1 << 22  # active latents of all tokens of a batch
CANDIDATE_BYTES, ENTRY_BYTES = 16, 250  # at the peak: of a candidate in selection, of an entry while it is offered
TOP, SAMPLE = "top", "sample"


class Collected:
    """What a pass found of one view's latents.

    `kept` [m] are the latents that the view may use, `index` [d_sae] the place of each among them. `stats` counts them;
    `contexts` are kept by kind (TOP, SAMPLE), in row 2 * place for documents that are shown and 2 * place + 1 for held-out ones.
    """

    def __init__(self, view: View, keep: Tensor, threshold: float | None, seq_len: int, cfg: CollectConfig) -> None:
        self.view, self.keep, self.threshold, self.cfg = view, keep, threshold, cfg
        self.kept = keep.nonzero().squeeze(1)  # [m]
        self.index = keep.long().cumsum(0) - 1  # [d_sae]
        m, device = len(self.kept), keep.device
        self.stats = LatentStats(m, device)
        self.contexts = {
            TOP: Reservoir(2 * m, cfg.top // 2, cfg.window, device),
            SAMPLE: Reservoir(2 * m, cfg.samples // 2, cfg.window, device),
        }
        self.pool = Pool(-(-cfg.pool // seq_len), view.name())

    def add(self, latents: SparseLatents, places: Tensor, text: Text) -> None:
        """Add the latents of a text's ordinary tokens, which stand at `places` [rows]; InputError if too many are active."""
        require(
            len(latents.values) <= MOST_ENTRIES,
            f"interpret.batch={self.cfg.batch}: {len(latents.values) / len(places):.0f} latents are active on a token in view "
            f"{self.view.name()}, too many for a batch of {len(places)} tokens; lower it",
        )
        self.pool.add(latents, places, text)
        entries = entries_of(latents, places, self.index, len(text.tokens))
        self.stats.add(entries, len(places))
        draws = self.draws(entries, text)
        rows = entries.latents * 2 + (~text.shown[entries.places]).long()
        self.contexts[TOP].offer(rows, (bits(entries.acts) << 32) + (draws & 0xFFFFFFFF), entries, text)
        self.contexts[SAMPLE].offer(rows, draws, entries, text)

    def draws(self, entries: Entries, text: Text) -> Tensor:
        """A uniform draw for each entry, a function of seed, latent, block and position: [e]."""
        block, position = entries.places // text.seq_len, entries.places % text.seq_len
        return drawn(self.cfg.seed, self.kept[entries.latents], text.blocks[block], position)


@torch.no_grad()
def collect(
    sae: SAE,
    views: Sequence[View],
    keeps: Sequence[Tensor],
    thresholds: Sequence[float | None],
    shards: Shards,
    cfg: CollectConfig,
    progress: Progress | None = None,
) -> list[Collected]:
    """Pass once over the first cfg.tokens tokens of `shards` and collect every view; what a view may use is `keeps[i]` [d_sae].

    Tops and samples are exact whatever the size and the order of batches (activations alone may differ in their last digits
    with the size of a product), but for views of mode batch, which select among a batch. Excluded tokens are never
    centres and have activation 0. `progress` counts tokens. Raises InputError, before the pass, if cfg.memory_gb would not do
    (`bytes_needed`), and for a view that is not sparse.
    """
    assert len(views) == len(keeps) == len(thresholds), "a view needs what it keeps and its threshold (or None)"
    limit = block_limit(shards, cfg)
    reader = read_ahead(shards, limit)
    first = next(reader)
    check_memory(sae, keeps, first, cfg)
    device, seq_len = sae.W_dec.device, first.x.shape[1]
    found = [Collected(v, k.to(device), t, seq_len, cfg) for v, k, t in zip(views, keeps, thresholds, strict=True)]
    blocks = torch.cat([shards.block_ids(i) for i in range(len(shards))])[:limit]
    for x, places, text in batches(chain([first], reader), blocks, batch_blocks(sae.d_sae, seq_len, cfg), cfg, device):
        if len(places) > 0:
            acts = sae.acts(sae.normalise(x).x)  # [n, d_sae]
            for one in found:
                one.add(latents_of(one.view, sae, acts, one.keep, one.threshold), places, text)
        if progress is not None:
            progress.advance(len(text.tokens))
    return found


def block_limit(shards: Shards, cfg: CollectConfig) -> int:
    """The number of blocks that hold the first cfg.tokens tokens, or all."""
    return min(len(shards.order), -(-cfg.tokens // shards.store.seq_len))


def tokens_to_read(shards: Shards, cfg: CollectConfig) -> int:
    """The number of tokens that `collect` passes over, excluded ones among them."""
    return block_limit(shards, cfg) * shards.store.seq_len


def read_ahead(shards: Shards, limit: int) -> Iterator[Shard]:
    """The shards that hold the first `limit` blocks; while one is in use the next is read."""
    with ThreadPoolExecutor(1, thread_name_prefix="shard") as pool:
        waiting, blocks, i = pool.submit(shards.read, 0), 0, 0
        while blocks < limit:
            shard = waiting.result()
            blocks, i = blocks + len(shard.x), i + 1
            if blocks < limit:
                waiting = pool.submit(shards.read, i)
            yield shard


def batches(
    shards: Iterator[Shard], blocks: Tensor, size: int, cfg: CollectConfig, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Text]]:
    """Activations x [n, d_in] of ordinary tokens, their places [n], and the text of `size` blocks at a time, on `device`.

    `blocks` [limit] numbers the blocks that the shards hold, in their order; those beyond are left out.
    """
    done = 0
    for shard in shards:
        for part in zip(*(tensor.split(size) for tensor in shard), strict=True):
            x, tokens, documents, excluded = (tensor[: len(blocks) - done] for tensor in part)
            if len(x) > 0:
                first, length = (part.to(device) for part in windows(documents, cfg.window))
                flat, owner = tokens.reshape(-1).to(device), documents.reshape(-1).to(device)
                text = Text(
                    flat, owner, is_shown(owner, cfg.seed), first, length, blocks[done : done + len(x)].to(device)
                )
                places = (~excluded).view(-1).nonzero().squeeze(1)  # [n]
                yield x.flatten(0, 1)[places].to(device), places.to(device), text
            done += len(x)


def batch_blocks(d_sae: int, seq_len: int, cfg: CollectConfig) -> int:
    """Blocks encoded at once: as many as cfg.batch tokens and MOST_CANDIDATES allow, at least one."""
    return max(1, min(cfg.batch, MOST_CANDIDATES // d_sae) // seq_len)


def state_bytes(m: int, d_sae: int, cfg: CollectConfig) -> int:
    """Bytes kept of a view that may use m of d_sae latents.

    m * ((top + samples) * (24 + 8 * window) + 32) for contexts, m * (28 + 4 * HISTOGRAM_BINS) for counts, 8 * m + 9 * d_sae for
    what is kept; with 65536 latents and the defaults 0.77 GB.
    """
    sizes = (cfg.top // 2, cfg.samples // 2)
    contexts = sum(Reservoir.nbytes(2 * m, slots, cfg.window) for slots in sizes)
    return contexts + LatentStats.nbytes(m) + 8 * m + 9 * d_sae


def bytes_needed(sae: SAE, keeps: Sequence[int], seq_len: int, shard_bytes: int, cfg: CollectConfig) -> int:
    """A bound on the bytes that `collect` and its input hold, whatever the number of tokens.

    sum over views of (state_bytes + pool) + CANDIDATE_BYTES * batch * d_sae + ENTRY_BYTES * entries + 2 shards + the SAE, where
    batch is that of `batch_blocks` in tokens, entries <= min(batch * d_sae, MOST_ENTRIES) and a pool has at most pool * d_sae and
    MOST_POOLED entries of 4 bytes. `keeps`: how many latents each view may use. With 65536 latents of 2304 dimensions,
    blocks of 512, shards of 65536 tokens and the defaults, 5.0 GB for one view and 1.0 GB for each other. The language model
    is apart.
    """
    candidates = batch_blocks(sae.d_sae, seq_len, cfg) * seq_len * sae.d_sae
    batch = CANDIDATE_BYTES * candidates + ENTRY_BYTES * min(candidates, MOST_ENTRIES)
    pool = 4 * min(MOST_POOLED, (cfg.pool + seq_len) * sae.d_sae)
    views = sum(state_bytes(m, sae.d_sae, cfg) + pool for m in keeps)
    weights = sum(p.nbytes for p in sae.parameters())
    return views + batch + 2 * shard_bytes + weights


def check_memory(sae: SAE, keeps: Sequence[Tensor], shard: Shard, cfg: CollectConfig) -> None:
    """Raise InputError if collecting these views could exceed cfg.memory_gb."""
    counts = [int(keep.sum()) for keep in keeps]
    shard_bytes = sum(tensor.nbytes for tensor in shard)
    needed = bytes_needed(sae, counts, shard.x.shape[1], shard_bytes, cfg) / 1e9
    if needed > cfg.memory_gb:
        raise InputError(
            f"interpret.memory_gb={cfg.memory_gb:g}: {len(counts)} views of up to {max(counts)} latents need {needed:.1f} GB; "
            "raise it, take fewer views at once, or lower interpret.top, interpret.samples, interpret.window or interpret.pool"
        )
