"""Sparse latents as a value, and the one nested loss that every top-k variant trains with.

After selection nothing of shape [n, d_sae] is kept: values, decoder and encoder gradients are bag sums over the nnz entries
(`embedding_bag`), those of the weights over the entries sorted by latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

MAX_LEVEL_ELEMENTS = 1 << 25  # rows * L * columns of residuals held at once by the nested loss


class ByLatent(NamedTuple):
    """The entries of SparseLatents sorted by latent: `order` [nnz] into them, `offsets` [d_sae + 1] of each latent's run."""

    order: Tensor
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
        ordered, order = self.indices.sort(stable=True)
        bounds = torch.arange(self.d_sae + 1, device=self.indices.device)  # [d_sae + 1]
        return ByLatent(order, torch.searchsorted(ordered, bounds))

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
    entries = torch.arange(nnz, device=offsets.device)
    return torch.searchsorted(offsets, entries, right=True) - 1


def bag_sum(table: Tensor, indices: Tensor, offsets: Tensor, values: Tensor) -> Tensor:
    """sum over the entries e of each bag of values[e] * table[indices[e]]: [bags, d] from table [rows, d]."""
    weights = values.to(table.dtype)
    return embedding_bag(indices, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)


def bag_dot(table: Tensor, rows: Tensor, indices: Tensor, offsets: Tensor, bags: Tensor) -> Tensor:
    """<rows[bags[e]], table[indices[e]]> for each entry e: [nnz], without a tensor of shape [nnz, d]."""
    dot = torch.ops.aten._embedding_bag_per_sample_weights_backward
    return dot(rows.contiguous(), table, indices, offsets[:-1], bags, 0)


class _AttachEncoder(torch.autograd.Function):
    """Gives selected pre-activations their gradients with respect to W_enc, b_enc and b_dec, from the nnz entries alone."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor, latents: SparseLatents
    ) -> Tensor:
        ctx.save_for_backward(values, x, W_enc, b_dec)
        ctx.latents = latents
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, x, W_enc, b_dec = ctx.saved_tensors
        latents: SparseLatents = ctx.latents
        order, offsets = latents.by_latent
        grad = torch.where(values > 0, grads[0], 0.0)[order]  # [nnz] by latent
        rows = latents.row_of_entry[order]
        grad_b = bag_sum(grad.new_ones(latents.rows, 1), rows, offsets, grad).squeeze(1)  # [d_sae]
        grad_W = bag_sum(x, rows, offsets, grad)  # [d_sae, d_in]
        grad_W.addr_(grad_b, b_dec, alpha=-1)
        return None, None, grad_W.T, grad_b, -(W_enc @ grad_b), None


def attach_encoder(latents: SparseLatents, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor) -> SparseLatents:
    """Latents selected from relu((x - b_dec) W_enc + b_enc) without a graph, given the gradients of that expression.

    x [rows, d_in] carries no gradient. Where the value is 0 the gradient is 0, as relu's is.
    """
    values = _AttachEncoder.apply(latents.values, x, W_enc, b_enc, b_dec, latents)
    return latents.with_values(values)  # pyright: ignore[reportArgumentType]


class NestedLoss(NamedTuple):
    """`loss` [] with gradients; `levels` [L], the unweighted mean of |x - x_hat_l|^2; `x_hat` [rows, d_in] of the last level."""

    loss: Tensor
    levels: Tensor
    x_hat: Tensor


class _Nested(torch.autograd.Function):
    """The loss and, as it is a scalar, its gradients in one sweep over column chunks; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, W_dec: Tensor, b_dec: Tensor, x: Tensor, latents: SparseLatents, segments: Tensor,
        weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        rows, d_in = x.shape
        n_levels = len(weights)
        bags = bag_of_entry(segments, len(values))  # [nnz] row * L + level
        order, by_latent = latents.by_latent
        levels, x_hat = x.new_zeros(n_levels), torch.empty_like(x)
        grads = (torch.zeros_like(values), torch.empty_like(W_dec), torch.empty_like(b_dec))
        width = max(1, min(d_in, MAX_LEVEL_ELEMENTS // max(1, rows * n_levels)))
        for start in range(0, d_in, width):
            c = slice(start, start + width)
            table = W_dec[:, c].contiguous()  # [d_sae, width]
            residual = _residuals(table, b_dec[c], x[:, c], latents.indices, segments, values, n_levels)
            levels += residual.square().sum((0, 2)) / rows
            x_hat[:, c] = x[:, c] - residual[:, -1]
            suffix = _suffix(residual, weights, rows)  # [rows * L, width]
            grads[0].add_(bag_dot(table, suffix, latents.indices, segments, bags))
            grads[1][:, c] = bag_sum(suffix, bags[order], by_latent, values[order])
            grads[2][c] = suffix.view(rows, n_levels, -1)[:, 0].sum(0)
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(levels, x_hat)
        return (levels * weights).sum(), levels, x_hat

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        values, W_dec, b_dec = ctx.saved_tensors
        up = upstream[0]
        return values * up, W_dec * up, b_dec * up, None, None, None, None


def _residuals(
    table: Tensor, b_dec: Tensor, x: Tensor, indices: Tensor, segments: Tensor, values: Tensor, n_levels: int
) -> Tensor:
    """x - x_hat_l for every level: [rows, L, width]."""
    steps = bag_sum(table, indices, segments, values).view(len(x), n_levels, -1)  # [rows, L, width]
    sums = steps if n_levels == 1 else steps.cumsum(1)
    return (x - b_dec).unsqueeze(1) - sums


def _suffix(residual: Tensor, weights: Tensor, rows: int) -> Tensor:
    """The loss's gradient in each level's increment, sum over l' >= l of -2 w_l' r_l' / rows: [rows * L, width]."""
    slope = residual * (weights * (-2.0 / rows)).view(1, -1, 1)  # [rows, L, width]
    if len(weights) > 1:
        slope = slope.flip(1).cumsum(1).flip(1)
    return slope.reshape(-1, residual.shape[-1])


def nested_loss(
    latents: SparseLatents, segments: Tensor, weights: Tensor, W_dec: Tensor, b_dec: Tensor, x: Tensor
) -> NestedLoss:
    """sum_l weights[l] * mean over rows of |x - x_hat_l|^2, x_hat_l = b_dec + the sum of the row's entries up to level l.

    segments [rows * L + 1] cuts each row's entries into L levels (empty ones are allowed), weights [L], W_dec [d_sae, d_in],
    b_dec [d_in], x [rows, d_in] (no gradient flows to x). One level is the plain squared error; levels by dictionary prefix
    give Matryoshka's loss, levels by activation rank HierarchicalTopK's. Memory beyond W_dec's gradient is
    O(rows * L * column chunk); sums run in a fixed order, so the result is deterministic.
    """
    assert len(segments) == latents.rows * len(weights) + 1, "segments must cut every row into len(weights) levels"
    return NestedLoss(*_Nested.apply(latents.values, W_dec, b_dec, x.detach(), latents, segments, weights))  # pyright: ignore[reportGeneralTypeIssues]


def nested_loss_reference(
    latents: SparseLatents, segments: Tensor, weights: Tensor, W_dec: Tensor, b_dec: Tensor, x: Tensor
) -> NestedLoss:
    """nested_loss written as its definition, with autograd's gradients and [nnz, d_in] memory; what tests compare against."""
    n_levels = len(weights)
    bags = bag_of_entry(segments, len(latents.values))
    parts = latents.values.unsqueeze(1) * W_dec[latents.indices]  # [nnz, d_in]
    steps = parts.new_zeros(latents.rows * n_levels, x.shape[1]).index_add(0, bags, parts)
    x_hat = b_dec + steps.view(latents.rows, n_levels, -1).cumsum(1)  # [rows, L, d_in]
    levels = (x.detach().unsqueeze(1) - x_hat).square().sum(2).mean(0)  # [L]
    return NestedLoss((levels * weights).sum(), levels.detach(), x_hat[:, -1].detach())
