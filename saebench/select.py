"""Exact top-k selection without sorting everything: the maxima of chunks name the only chunks that can matter.

The k largest of a set lie in the k chunks whose maxima are largest (with ties, some set of k equal values does), so an
exact selection inside those chunks gives the plain definition's values for every input.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saebench.sparse import SparseLatents

CHUNK = 32


def row_topk(acts: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, falling: values and indices [n, k] of acts [n, d_sae]."""
    d_sae = acts.shape[1]
    chunks = d_sae // CHUNK
    if k * 4 > chunks:
        return acts.topk(k, dim=1)
    body, tail = acts[:, : chunks * CHUNK], acts[:, chunks * CHUNK :]  # the tail, under one chunk, always takes part
    tiles = body.unflatten(1, (chunks, CHUNK))  # [n, chunks, CHUNK]
    best = tiles.amax(2).topk(k, dim=1, sorted=False).indices  # [n, k]
    picked = tiles.gather(1, best.unsqueeze(2).expand(-1, -1, CHUNK)).flatten(1)  # [n, k * CHUNK]
    values, where = torch.cat([picked, tail], 1).topk(k, dim=1)
    inside = best.gather(1, (where // CHUNK).clamp_(max=k - 1)) * CHUNK + where % CHUNK
    beyond = where - k * CHUNK + chunks * CHUNK
    return values, torch.where(where < k * CHUNK, inside, beyond)


def flat_topk(acts: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of all of acts [n, d_sae]: their positions row * d_sae + latent, rising, and values [count]."""
    flat = acts.reshape(-1)
    chunks = len(flat) // CHUNK
    if count * 2 > chunks:
        where = flat.topk(count, sorted=False).indices.sort().values
        return flat[where], where
    tiles = flat[: chunks * CHUNK].view(chunks, CHUNK)
    best = tiles.amax(1).topk(count, sorted=False).indices  # [count] chunks
    picked = torch.cat([tiles[best].reshape(-1), flat[chunks * CHUNK :]])
    where = picked.topk(count, sorted=False).indices  # [count]
    inside = best[(where // CHUNK).clamp(max=count - 1)] * CHUNK + where % CHUNK
    beyond = where - count * CHUNK + chunks * CHUNK
    positions = torch.where(where < count * CHUNK, inside, beyond).sort().values  # [count], rising
    return flat[positions], positions


def topk_latents(acts: Tensor, k: int) -> SparseLatents:
    """The k largest activations of each row, falling within the row, as SparseLatents."""
    values, indices = row_topk(acts, k)
    return SparseLatents.from_rows(values, indices, acts.shape[1])


def batch_topk_latents(acts: Tensor, k: int) -> SparseLatents:
    """The n * k largest activations of the whole batch, rising by latent within each row, as SparseLatents."""
    n, d_sae = acts.shape
    values, flat = flat_topk(acts, n * k)
    return SparseLatents.from_flat(values, flat, n, d_sae)


def threshold_latents(acts: Tensor, threshold: float | Tensor) -> SparseLatents:
    """The activations above a threshold (and above 0), rising by latent within each row, as SparseLatents."""
    return SparseLatents.from_dense(torch.where(acts > threshold, acts, 0.0))
