"""What a view of an SAE says of each example: its latents, averaged over the example's rows and kept sparse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saebench.probing.activations import Ragged
from saebench.progress import Progress
from saebench.saes import SAE
from saebench.sparse import SparseLatents, bag_of_entry
from saebench.views import View, latents_of

MOST_CANDIDATES = 1 << 27  # activations [n, d_sae] held at once


@dataclass(frozen=True)
class Applied:
    """A view with the latents it may use [d_sae] (bool) and its threshold, if it needs one."""

    view: View
    keep: Tensor
    threshold: float | None


def rows_at_once(d_sae: int, batch: int) -> int:
    """How many rows are encoded together."""
    return max(1, min(batch, MOST_CANDIDATES // d_sae))


@torch.no_grad()
def pooled(sae: SAE, views: Sequence[Applied], ragged: Ragged, batch: int) -> list[SparseLatents]:
    """Of each view the mean latents of every example, in the examples' order: `ragged.n` rows, float64, on the host.

    Only what is active is kept. Views of mode batch select among the rows that are encoded together (`rows_at_once`).
    """
    device = sae.W_dec.device
    keys: list[list[Tensor]] = [[] for _ in views]
    values: list[list[Tensor]] = [[] for _ in views]
    with Progress(ragged.rows, "tokens", f"latents of {len(views)} views") as progress:
        for part in ragged.parts(rows_at_once(sae.d_sae, batch)):
            acts = sae.acts(sae.normalise(part.x.to(device)).x)  # [rows, d_sae]
            for i, one in enumerate(views):
                latents = latents_of(one.view, sae, acts, one.keep.to(device), one.threshold)
                at, mean = means(latents, part.offsets)
                keys[i].append(part.examples[at // sae.d_sae] * sae.d_sae + at % sae.d_sae)
                values[i].append(mean)
            progress.advance(len(part.x))
    return [in_order(torch.cat(k), torch.cat(v), ragged.n, sae.d_sae) for k, v in zip(keys, values, strict=True)]


def means(latents: SparseLatents, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of latents over runs of rows with boundaries `offsets` [e + 1]: places e * d_sae + latent, and values [nnz]."""
    active = latents.values > 0
    row, index = latents.row_of_entry[active].cpu(), latents.indices[active].cpu()
    owner = bag_of_entry(offsets, latents.rows)  # [rows]
    values = latents.values[active].cpu().double() / offsets.diff()[owner[row]]
    places, inverse = (owner[row] * latents.d_sae + index).unique(return_inverse=True)
    return places, torch.zeros(len(places), dtype=torch.float64).index_add_(0, inverse, values)


def in_order(keys: Tensor, values: Tensor, n: int, d_sae: int) -> SparseLatents:
    """SparseLatents of entries at places example * d_sae + latent, in any order."""
    keys, order = keys.sort()
    return SparseLatents.from_flat(values[order], keys, n, d_sae)


def columns(latents: SparseLatents, chosen: Tensor) -> Tensor:
    """Some latents [k] of every row, dense: [rows, k]."""
    place = torch.full((latents.d_sae,), -1)
    place[chosen] = torch.arange(len(chosen))
    at = place[latents.indices]  # [nnz]
    inside = at >= 0
    found = torch.zeros(latents.rows, len(chosen), dtype=torch.float64)
    return found.index_put_((latents.row_of_entry[inside], at[inside]), latents.values[inside].double())
