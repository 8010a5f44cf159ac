"""Exact top-k selection without sorting everything: the maxima of chunks name the only chunks that can matter.

The k largest of a set lie in the k chunks whose maxima are largest (with ties, some set of k equal values does), so an
exact selection inside those chunks gives the plain definition's values for every input. Which of equal values are taken is
unspecified, but the same for the same input.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from saebench import kernels
from saebench.parallel import SOLO, World
from saebench.sparse import SparseLatents

CHUNK = 32
MOST_IN_KERNEL = 512  # latents of a row: the Triton kernel holds k chunks in registers
OFFERED = 1.25  # of its even share of a selection over ranks, what a rank offers at first
NUMPY = (torch.float32, torch.float64)  # what numpy's vectorised quickselect takes


def top_indices(acts: Tensor, k: int) -> Tensor:
    """Where the k largest of each row are: [n, k], rising, of acts [n, m]. NaN counts as largest."""
    acts = acts.detach()
    m, chunks = acts.shape[1], acts.shape[1] // CHUNK
    if kernels.usable(acts) and k <= MOST_IN_KERNEL:
        from saebench.kernels.select import row_topk_indices

        return row_topk_indices(acts, k)
    pick = by_partition if acts.device.type == "cpu" and acts.dtype in NUMPY else by_topk
    if 2 * k > chunks:
        return pick(acts, k)
    body = acts[:, : chunks * CHUNK].unflatten(1, (chunks, CHUNK))  # [n, chunks, CHUNK]
    best = pick(body.amax(2), k)  # [n, k] chunks
    picked = tiles(body, best).flatten(1)  # [n, k * CHUNK]
    if chunks * CHUNK < m:  # the tail, under one chunk, always takes part
        picked = torch.cat([picked, acts[:, chunks * CHUNK :]], 1)
    where = pick(picked, k)
    inside = best.gather(1, (where // CHUNK).clamp_(max=k - 1)) * CHUNK + where % CHUNK
    beyond = where - k * CHUNK + chunks * CHUNK
    return torch.where(where < k * CHUNK, inside, beyond)


def tiles(body: Tensor, best: Tensor) -> Tensor:
    """The chunks `best` [n, k] of body [n, chunks, CHUNK]: [n, k, CHUNK]."""
    n, chunks, width = body.shape
    first = torch.arange(n, device=best.device).unsqueeze(1)  # [n, 1]
    if body.is_contiguous():
        return body.view(-1, width).index_select(0, (best + first * chunks).view(-1)).view(n, -1, width)
    return body[first, best]


def by_topk(values: Tensor, k: int) -> Tensor:
    """The k largest of each row of [n, m] by torch.topk: [n, k], rising."""
    return values.topk(k, dim=1, sorted=False).indices.sort(1).values


def by_partition(values: Tensor, k: int) -> Tensor:
    """The k largest of each row of [n, m] by numpy's vectorised quickselect: [n, k], rising."""
    mask = partition_mask(values.numpy(), k)
    if mask is None:
        return by_topk(values, k)
    n, m = values.shape
    return torch.from_numpy(np.flatnonzero(mask).reshape(n, k) - np.arange(n)[:, None] * m)


def partition_mask(v: np.ndarray, k: int) -> np.ndarray | None:
    """Which of v [n, m] are the k largest of their row, of equal ones the first; None if NaN is among them."""
    m = v.shape[1]
    kth = np.partition(v, m - k, axis=1)[:, m - k, None]  # [n, 1]
    mask = v >= kth
    if np.count_nonzero(mask) != len(v) * k:  # equal values at the edge, or NaN
        if np.isnan(v).any():
            return None
        above, ties = v > kth, v == kth
        mask = above | (ties & (ties.cumsum(1) <= k - above.sum(1, keepdims=True)))
    return mask


def top_mask(acts: Tensor, k: int) -> Tensor:
    """Which of acts [n, m] are the k largest of their row, where k is no small part of m: [n, m] (bool)."""
    if acts.device.type == "cpu" and acts.dtype in NUMPY:
        mask = partition_mask(acts.detach().numpy(), k)
        if mask is not None:
            return torch.from_numpy(mask)
    return torch.zeros_like(acts, dtype=torch.bool).scatter_(1, top_indices(acts, k), True)


def row_topk(acts: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row: values and indices [n, k] of acts [n, d_sae], rising by index."""
    indices = top_indices(acts, k)
    return acts.gather(1, indices), indices


def flat_topk(acts: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of all of acts [n, d_sae]: values and positions row * d_sae + latent [count], rising by position."""
    flat = acts.reshape(1, -1)
    positions = top_indices(flat, count)[0]
    return flat[0, positions], positions


def active(values: Tensor) -> Tensor:
    """relu of selected values, in float32 if they were of lower precision."""
    return values.relu().to(torch.promote_types(values.dtype, torch.float32))


def topk_latents(acts: Tensor, k: int) -> SparseLatents:
    """relu of the k largest (pre-)activations of each row, rising by latent within the row, as SparseLatents."""
    values, indices = row_topk(acts, k)
    return SparseLatents.from_rows(active(values), indices, acts.shape[1])


def ranked_latents(acts: Tensor, k: int) -> SparseLatents:
    """relu of the k largest (pre-)activations of each row, falling by value within the row, as SparseLatents."""
    values, indices = row_topk(acts, k)
    values, order = values.sort(dim=1, descending=True, stable=True)
    return SparseLatents.from_rows(active(values), indices.gather(1, order), acts.shape[1])


def batch_topk_latents(acts: Tensor, k: int, world: World = SOLO) -> SparseLatents:
    """relu of the n * k largest (pre-)activations of the whole batch, rising by latent within each row, as SparseLatents.

    The batch is that of all ranks, and acts [n, d_sae] the rows of this one.
    """
    n, d_sae = acts.shape
    values, flat = flat_topk(acts, n * k) if world.size == 1 else ranks_topk(acts, n * k, world)
    return SparseLatents.from_flat(active(values), flat, n, d_sae)


def ranks_topk(acts: Tensor, count: int, world: World) -> tuple[Tensor, Tensor]:
    """This rank's part, as `flat_topk` gives it, of the size * count largest of all ranks' acts [n, d_sae]."""
    values, flat, taken = acts.new_empty(0), torch.empty(0, dtype=torch.int64), 0
    for offered in offers(count, min(world.size * count, acts.numel())):
        values, flat = flat_topk(acts, offered)
        (shares,) = taken_of(values, [world.size * count], world).T.tolist()  # of each rank
        taken = shares[world.rank]
        if max(shares) < offered:
            break
    best = values.sort(descending=True, stable=True).indices[:taken].sort().values
    return values[best], flat[best]


def offers(count: int, limit: int) -> Iterator[int]:
    """How many of its largest values each rank offers, until no rank sees all of them taken: what it kept back is then no

    larger than what was left. The last is `limit`, of which that need not hold.
    """
    offered = int(count * OFFERED) + 1
    while offered < limit:
        yield offered
        offered *= 2
    yield limit


def taken_of(values: Tensor, counts: list[int], world: World) -> Tensor:
    """How many of each rank's values [m] are among the counts[i] largest of all ranks' values: [size, len(counts)].

    Of equal values the lowest rank's are taken first. A count above size * m takes all.
    """
    every = world.gather(values).reshape(-1)  # [size * m]
    owners = every.sort(descending=True, stable=True).indices // len(values)
    ranks = torch.arange(world.size, device=values.device).unsqueeze(1)
    running = (owners == ranks).cumsum(1)  # [size, size * m]
    ends = torch.tensor(counts, device=values.device).clamp(max=len(every)) - 1
    return running[:, ends]


def threshold_latents(acts: Tensor, threshold: float | Tensor) -> SparseLatents:
    """The activations above a threshold (and above 0), rising by latent within each row, as SparseLatents."""
    return SparseLatents.from_dense(torch.where(acts > threshold, acts, 0.0))
