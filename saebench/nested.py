"""The one nested loss that every top-k variant trains with, and the encoder's gradients, from the nnz entries alone.

After selection nothing of shape [n, d_sae] is kept. The decoder's and the encoder's gradients are bag sums over the entries
sorted by latent, those of the values are inner products of rows; the levels are one running sum and one suffix sum.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from saebench import kernels
from saebench.sparse import SparseLatents, bag_dot, bag_of_entry, bag_sum

MAX_LEVEL_ELEMENTS = 1 << 26  # rows * L * columns of residuals held at once


class _AttachEncoder(torch.autograd.Function):
    """Gives selected pre-activations their gradients with respect to W_enc, b_enc and b_dec."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor, latents: SparseLatents
    ) -> Tensor:
        ctx.save_for_backward(values, x, W_enc)
        ctx.latents = latents
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, x, W_enc = ctx.saved_tensors
        latents: SparseLatents = ctx.latents
        by = latents.by_latent
        grad = torch.where(values > 0, grads[0], 0.0)[by.order]  # [nnz] by latent
        grad_b = segment_sums(grad, by.offsets)  # [d_sae]
        grad_W = transposed_sum(x, by.rows, by.offsets, grad)  # [d_sae, d_in]
        return None, None, grad_W.T, grad_b, -(W_enc @ grad_b), None


def attach_encoder(latents: SparseLatents, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor) -> SparseLatents:
    """Latents selected from relu(x W_enc + b_enc) without a graph, given the gradients of that expression.

    x [rows, d_in] is the encoder's input, b_dec already subtracted; b_dec gets its gradient, the rest of x carries none.
    Where the value is 0 the gradient is 0, as relu's is.
    """
    values = _AttachEncoder.apply(latents.values, x, W_enc, b_enc, b_dec, latents)
    return latents.with_values(values)  # pyright: ignore[reportArgumentType]


def segment_sums(values: Tensor, offsets: Tensor) -> Tensor:
    """The sum of each run offsets[i] .. offsets[i + 1] of values: [len(offsets) - 1]."""
    return torch.segment_reduce(values, "sum", offsets=offsets, unsafe=True)


def transposed_sum(table: Tensor, rows: Tensor, offsets: Tensor, values: Tensor) -> Tensor:
    """For each latent the sum over its entries e of values[e] * table[rows[e]]: [d_sae, d]; entries sorted by latent."""
    if kernels.usable(table):
        from saebench.kernels.bags import weighted_rows

        return weighted_rows(table, rows, values, offsets)
    return bag_sum(table, rows, offsets, values)


class NestedLoss(NamedTuple):
    """`loss` [] with gradients; `levels`, shaped as the weights, the unweighted means of |x - x_hat_l|^2; `x_hat` [rows, d_in]

    of the last level.
    """

    loss: Tensor
    levels: Tensor
    x_hat: Tensor


class Parts(NamedTuple):
    """What one sweep finds: `levels` [G, L], `x_hat` [rows, d_in], and the weighted loss's gradients."""

    levels: Tensor
    x_hat: Tensor
    values: Tensor
    W_dec: Tensor
    b_dec: Tensor


class _Nested(torch.autograd.Function):
    """The loss and, as it is a scalar, its gradients in one sweep; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, W_dec: Tensor, b_dec: Tensor, x: Tensor, latents: SparseLatents, segments: Tensor,
        weights: Tensor, table: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        sweep = kernel_sweep if kernels.usable(x) else torch_sweep
        parts = sweep(values, table, b_dec, x, latents, segments, weights.reshape(-1, weights.shape[-1]))
        levels = parts.levels.view(weights.shape)
        ctx.save_for_backward(*parts[2:])
        ctx.mark_non_differentiable(levels, parts.x_hat)
        return (levels * weights).sum(), levels, parts.x_hat

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        up, grads = upstream[0], ctx.saved_tensors
        if up.is_cuda or float(up) != 1.0:  # on a CPU looking costs nothing, scaling W_dec's gradient does
            grads = [g * up for g in grads]
        return *grads, None, None, None, None, None


def torch_sweep(
    values: Tensor, W_dec: Tensor, b_dec: Tensor, x: Tensor, latents: SparseLatents, segments: Tensor, weights: Tensor
) -> Parts:
    """The loss's parts in plain torch, over column chunks of at most MAX_LEVEL_ELEMENTS residuals."""
    (rows, d_in), (groups, n_levels) = x.shape, weights.shape
    plan = level_plan(latents, segments, n_levels)
    scale: list[list[float]] = (weights * (-2.0 * groups / rows)).tolist()
    by = latents.by_latent
    signed = values[by.order]  # [nnz] by latent
    squares = [[0.0] * n_levels for _ in range(groups)]
    parts = Parts(
        x.new_empty(groups, n_levels), torch.empty_like(x), torch.zeros_like(values), x.new_empty(W_dec.shape), x.new_empty(d_in)
    )  # fmt: skip
    width = max(1, min(d_in, MAX_LEVEL_ELEMENTS // max(1, rows * n_levels)))
    for start in range(0, d_in, width):
        c = slice(start, start + width)
        table = W_dec[:, c].to(x.dtype).contiguous()  # [d_sae, width]
        x_hat = bag_sum(table, latents.indices, latents.offsets, values) + b_dec[c]  # [rows, width]
        parts.x_hat[:, c] = x_hat
        slopes = level_slopes(x[:, c] - x_hat, table, values, plan, scale, squares)  # [L * rows, width]
        parts.values.add_(bag_dot(slopes, plan.bags, table, by.latents, by.offsets))
        parts.W_dec[:, c] = bag_sum(slopes, plan.bags, by.offsets, signed)
        parts.b_dec[c] = slopes[:rows].sum(0)
    levels = parts.levels.copy_(torch.tensor(squares, dtype=torch.float64)).div_(rows // groups)
    return parts._replace(levels=levels, values=torch.empty_like(values).index_copy_(0, by.order, parts.values))


class LevelPlan(NamedTuple):
    """Levels before rows: the entries in the order (level, row), their `offsets` [L * rows + 1], and `bags` [nnz].

    `bags` gives level * rows + row of each entry, by latent. With one level nothing is permuted.
    """

    n_levels: int
    entries: Tensor | None
    indices: Tensor
    offsets: Tensor
    bags: Tensor


def level_plan(latents: SparseLatents, segments: Tensor, n_levels: int) -> LevelPlan:
    """How the entries fall into levels, for boundaries `segments` [rows * L + 1]."""
    by = latents.by_latent
    if n_levels == 1:
        return LevelPlan(1, None, latents.indices, latents.offsets, by.rows)
    cells = torch.arange(latents.rows * n_levels, device=segments.device)
    cells = cells.view(n_levels, latents.rows).T.reshape(-1)  # [rows * L]: level * rows + row of each segment
    counts = segments.diff().view(latents.rows, n_levels).T.reshape(-1)  # [L * rows]
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])  # [L * rows + 1]
    bags = cells[bag_of_entry(segments, len(latents.indices))]  # [nnz]
    entries = bags.argsort(stable=True)
    return LevelPlan(n_levels, entries, latents.indices[entries], offsets, bags[by.order])


def level_slopes(
    residual: Tensor,
    table: Tensor,
    values: Tensor,
    plan: LevelPlan,
    scale: list[list[float]],
    squares: list[list[float]],
) -> Tensor:
    """The loss's gradient in each level's increment, sum over l' >= l of scale[g][l'] * r_l': [L * rows, width].

    `residual` [rows, width] is the last level's and is overwritten; the squared sum of each group g of rows at each level is
    added to `squares` [G][L]. From the last level down, the residual of the level before is this one's plus this one's increment.
    """
    parts = residual.chunk(len(scale))  # of each group
    if plan.entries is None:
        for part, factors, sums in zip(parts, scale, squares, strict=True):
            sums[0] += float(part.reshape(-1).dot(part.reshape(-1)))
            part.mul_(factors[0])
        return residual
    steps = bag_sum(table, plan.indices, plan.offsets, values[plan.entries]).view(plan.n_levels, *residual.shape)
    slope = torch.zeros_like(residual)
    slopes = slope.chunk(len(scale))
    for level in reversed(range(plan.n_levels)):
        for part, target, factors, sums in zip(parts, slopes, scale, squares, strict=True):
            sums[level] += float(part.reshape(-1).dot(part.reshape(-1)))
            target.add_(part, alpha=factors[level])
        residual.add_(steps[level])
        steps[level] = slope
    return steps.reshape(-1, residual.shape[1])


def kernel_sweep(
    values: Tensor, W_dec: Tensor, b_dec: Tensor, x: Tensor, latents: SparseLatents, segments: Tensor, weights: Tensor
) -> Parts:
    """The loss's parts by the Triton kernels."""
    from saebench.kernels.nested import nested

    by = latents.by_latent
    bags = bag_of_entry(segments, len(values))[by.order]  # [nnz] row * L + level, by latent
    inputs = (values, latents.indices, segments, weights, W_dec, b_dec, x, by.order, by.offsets, bags)
    return Parts(*nested(*inputs, MAX_LEVEL_ELEMENTS))


def nested_loss(
    latents: SparseLatents, segments: Tensor, weights: Tensor, W_dec: Tensor, b_dec: Tensor, x: Tensor,
    table: Tensor | None = None,
) -> NestedLoss:  # fmt: skip
    """sum_l weights[l] * mean over rows of |x - x_hat_l|^2, x_hat_l = b_dec + the sum of the row's entries up to level l.

    segments [rows * L + 1] cuts each row's entries into L levels (empty ones are allowed), weights [L], W_dec [d_sae, d_in],
    b_dec [d_in], x [rows, d_in] (no gradient flows to x). With weights [G, L] the rows are G groups of equal size, one after
    another, and the loss is the sum over groups of the above, each with its own weights and mean.
    One level is the plain squared error; levels by dictionary prefix
    give Matryoshka's loss, levels by activation rank HierarchicalTopK's. Memory beyond W_dec's gradient is
    O(rows * L * column chunk); sums run in a fixed order, so the result is deterministic. `table`, if given, is a copy of
    W_dec in another precision to compute with (mixed precision: bfloat16 in, float32 sums and gradients).
    """
    groups, n_levels = weights.numel() // weights.shape[-1], weights.shape[-1]
    assert len(segments) == latents.rows * n_levels + 1, (
        "segments must cut every row into as many levels as have weights"
    )
    assert latents.rows % groups == 0, "groups of rows must be of equal size"
    table = W_dec.detach() if table is None else table
    result = _Nested.apply(latents.values, W_dec, b_dec, x.detach(), latents, segments, weights, table)
    return NestedLoss(*result)  # pyright: ignore[reportGeneralTypeIssues]


def nested_loss_reference(
    latents: SparseLatents, segments: Tensor, weights: Tensor, W_dec: Tensor, b_dec: Tensor, x: Tensor
) -> NestedLoss:
    """nested_loss written as its definition, with autograd's gradients and [nnz, d_in] memory; what tests compare against."""
    n_levels = weights.shape[-1]
    bags = bag_of_entry(segments, len(latents.values))
    parts = latents.values.unsqueeze(1) * W_dec[latents.indices]  # [nnz, d_in]
    steps = parts.new_zeros(latents.rows * n_levels, x.shape[1]).index_add(0, bags, parts)
    x_hat = b_dec + steps.view(latents.rows, n_levels, -1).cumsum(1)  # [rows, L, d_in]
    errors = (x.detach().unsqueeze(1) - x_hat).square().sum(2)  # [rows, L]
    levels = errors.view(weights.numel() // n_levels, -1, n_levels).mean(1).view(weights.shape)
    return NestedLoss((levels * weights).sum(), levels.detach(), x_hat[:, -1].detach())
