"""Sparse latents as a value: compressed sparse rows, and the sums and products over their entries that training needs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from saebench.checks import InputError


class ByLatent(NamedTuple):
    """The entries of SparseLatents sorted by latent.

    `order` [nnz] into the entries, their `latents` [nnz] (rising) and `rows` [nnz], `offsets` [d_sae + 1] of each latent's run.
    """

    order: Tensor
    latents: Tensor
    rows: Tensor
    offsets: Tensor


@dataclass(frozen=True)
class SparseLatents:
    """Latents of `rows` tokens in compressed sparse rows; zero values may stand as entries, so that shapes are static.

    offsets [rows + 1] and indices [nnz] are int64, values [nnz] the activations, never negative.
    """

    offsets: Tensor
    indices: Tensor
    values: Tensor
    d_sae: int

    @property
    def rows(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def row_of_entry(self) -> Tensor:
        """[nnz]: the row of each entry."""
        return bag_of_entry(self.offsets, len(self.indices))

    @cached_property
    def by_latent(self) -> ByLatent:
        """The entries sorted by latent, stably, so that sums over them are deterministic."""
        latents, order = self.indices.sort(stable=True)
        bounds = torch.arange(self.d_sae + 1, device=self.indices.device)  # [d_sae + 1]
        return ByLatent(order, latents, self.row_of_entry[order], torch.searchsorted(latents, bounds))

    def with_values(self, values: Tensor) -> SparseLatents:
        """The same pattern with other values [nnz]; what was derived from the pattern is kept."""
        twin = SparseLatents(self.offsets, self.indices, values, self.d_sae)
        for name in ("row_of_entry", "by_latent"):
            if name in self.__dict__:
                twin.__dict__[name] = self.__dict__[name]
        return twin

    def decode(self, W_dec: Tensor) -> Tensor:
        """sum_i z_i W_dec[i] for each row: [rows, d_in] from W_dec [d_sae, d_in]."""
        return bag_sum(W_dec, self.indices, self.offsets, self.values)

    def dense(self) -> Tensor:
        """The latents as a dense tensor [rows, d_sae]."""
        z = self.values.new_zeros(self.rows, self.d_sae)
        return z.index_put((self.row_of_entry, self.indices), self.values, accumulate=True)

    def l0(self) -> Tensor:
        """[rows]: the number of active latents (value above 0) of each row."""
        active = (self.values > 0).to(torch.int64)
        running = torch.cat([active.new_zeros(1), active.cumsum(0)])  # [nnz + 1]
        return running[self.offsets[1:]] - running[self.offsets[:-1]]

    def fired(self) -> Tensor:
        """[d_sae]: whether each latent is active in any row; without synchronising with the host."""
        hits = torch.zeros(self.d_sae, dtype=torch.int32, device=self.indices.device)
        return hits.scatter_reduce_(0, self.indices, (self.values > 0).int(), "amax") > 0

    def kept(self, keep: Tensor) -> SparseLatents:
        """Only the entries whose latent is in `keep` [d_sae] (bool)."""
        stays = keep[self.indices]  # [nnz]
        running = torch.cat([self.offsets.new_zeros(1), stays.cumsum(0)])  # [nnz + 1]
        return SparseLatents(running[self.offsets], self.indices[stays], self.values[stays], self.d_sae)

    def of_rows(self, chosen: Tensor) -> SparseLatents:
        """Only the rows in `chosen` [rows] (bool)."""
        stays = chosen[self.row_of_entry]  # [nnz]
        lengths = self.offsets.diff()[chosen]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        return SparseLatents(offsets, self.indices[stays], self.values[stays], self.d_sae)

    def check(self) -> None:
        """Raise InputError unless offsets rise from 0 to nnz and indices lie in [0, d_sae); for latents made elsewhere.

        Kernels trust what they are given; selection makes it right by construction. Synchronises with the host.
        """
        nnz = len(self.indices)
        if len(self.values) != nnz:
            raise InputError(f"latents: {nnz} indices but {len(self.values)} values")
        if int(self.offsets[0]) != 0 or int(self.offsets[-1]) != nnz or bool((self.offsets.diff() < 0).any()):
            raise InputError(f"latents: offsets must rise from 0 to the number of entries, {nnz}")
        if nnz > 0 and not 0 <= int(self.indices.min()) <= int(self.indices.max()) < self.d_sae:
            low, high = int(self.indices.min()), int(self.indices.max())
            raise InputError(f"latents: indices run from {low} to {high}; they must lie in [0, d_sae={self.d_sae})")

    @staticmethod
    def from_rows(values: Tensor, indices: Tensor, d_sae: int) -> SparseLatents:
        """From k entries in each row: values and indices [rows, k]."""
        rows, k = values.shape
        offsets = torch.arange(0, rows * k + 1, k, device=values.device)
        return SparseLatents(offsets, indices.reshape(-1), values.reshape(-1), d_sae)

    @staticmethod
    def from_flat(values: Tensor, flat: Tensor, rows: int, d_sae: int) -> SparseLatents:
        """From positions row * d_sae + latent [nnz], rising, with their values [nnz]."""
        bounds = torch.arange(rows + 1, device=flat.device) * d_sae  # [rows + 1]
        return SparseLatents(torch.searchsorted(flat, bounds), flat % d_sae, values, d_sae)

    @staticmethod
    def from_dense(z: Tensor) -> SparseLatents:
        """The entries above 0 of dense latents [rows, d_sae]; synchronises with the host."""
        flat = (z > 0).reshape(-1).nonzero().squeeze(1)  # [nnz], rising
        return SparseLatents.from_flat(z.reshape(-1)[flat], flat, len(z), z.shape[1])


def bag_of_entry(offsets: Tensor, nnz: int) -> Tensor:
    """[nnz]: the bag that each entry belongs to, for bag boundaries offsets [bags + 1]; empty bags are allowed."""
    bags = torch.arange(len(offsets) - 1, device=offsets.device)
    return torch.repeat_interleave(bags, offsets.diff(), output_size=nnz)


def bag_sum(table: Tensor, indices: Tensor, offsets: Tensor, values: Tensor) -> Tensor:
    """sum over the entries e of each bag of values[e] * table[indices[e]]: [bags, d] from table [rows, d]."""
    weights = values.to(table.dtype)
    return embedding_bag(indices, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)


def bag_dot(table: Tensor, indices: Tensor, rows: Tensor, bags: Tensor, offsets: Tensor) -> Tensor:
    """<rows[bags[e]], table[indices[e]]> for each entry e: [nnz], without a tensor of shape [nnz, d].

    `bags` [nnz] must rise with boundaries `offsets` [len(rows) + 1]. The table that is read at random should be the smaller one.
    """
    dot = torch.ops.aten._embedding_bag_per_sample_weights_backward
    return dot(rows, table, indices, offsets[:-1], bags, 0)
