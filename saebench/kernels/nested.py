"""The nested loss and all its gradients in one sweep over columns; the definition is `saebench.sparse.nested_loss_reference`.

A program owns one row's block of columns. It sums the row's entries, which gives the residual of the last level, and then walks
the entries backwards: adding an entry's part back gives the residual r before it, and s, the sum of slope * r over the levels
that end at or after an entry, is the loss's gradient in that entry's level. So values' gradients are <s, W_dec[i]>, and
W_dec's are weighted sums of the rows of S, which holds s of every level that has entries.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from saebench.kernels import parts_of
from saebench.kernels.bags import Tiling, gather_rows, load_bounds, sum_entries, weighted_rows

ONE_LEVEL = Tiling(8, 256, 1)
LEVELS = Tiling(4, 256, 1, 160)  # with no limit: 217 registers, and a third fewer programs at once


class Nested(NamedTuple):
    """Unweighted losses `levels` [G, L], `x_hat` [rows, d_in] of the last level, and the weighted loss's gradients."""

    levels: Tensor
    x_hat: Tensor
    values: Tensor
    W_dec: Tensor
    b_dec: Tensor


@triton.jit(do_not_specialize=["nnz"])
def one_level_kernel(
    values, indices, segments, bags, slopes, W_dec, b_dec, x, x_hat, S, b_parts, squares, grads, column, end, width, nnz,
    d_in, d_sae, L, per, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Program (row, columns) where L is 1 and `bags` None: s is the same for every entry of the row."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slopes += row // per * 2  # of the row's group
    here = block * BLOCK_D + tl.arange(0, BLOCK_D)  # columns of the chunk
    cols = column + here
    live = cols < end
    low, high = load_bounds(segments, row, nnz)  # pyright: ignore[reportGeneralTypeIssues]
    bias = tl.load(b_dec + cols, mask=live, other=0.0).to(tl.float32)
    x_hat_row = bias + sum_entries(W_dec, indices, values, low, high, d_sae, d_in, cols, live, BLOCK_E, BLOCK_D)
    residual = tl.load(x + row * d_in + cols, mask=live, other=0.0).to(tl.float32) - x_hat_row
    tl.store(x_hat + row * d_in + cols, x_hat_row, mask=live)
    tl.store(squares + tl.num_programs(0) * block.to(tl.int64) + row, tl.sum(residual * residual, 0))
    s = residual * tl.load(slopes + 1).to(tl.float32)
    tl.store(S + row * width + here, s, mask=live)
    tl.store(b_parts + row * width + here, s, mask=live)
    for start in range(low, high, BLOCK_E):
        entry = start + tl.arange(0, BLOCK_E)
        wanted = entry < high
        index = tl.load(indices + entry, mask=wanted, other=-1)
        part = tl.sum(s[None, :] * gather_rows(W_dec, index, d_sae, d_in, wanted, cols, live), 1)
        tl.store(grads + nnz * block.to(tl.int64) + entry, part, mask=wanted)


@triton.jit
def slope_between(slopes, first, last):
    """The sum of the slopes of the levels first <= l < last, from their running sums in float64."""
    return (tl.load(slopes + last) - tl.load(slopes + first)).to(tl.float32)


@triton.jit
def level_of(bags, entry, low, high, bag, L):
    """The level of an entry of a row whose entries are low <= e < high: 0 before the first, L after the last."""
    level = tl.load(bags + entry, mask=(entry >= low) & (entry < high), other=0) - bag
    level = tl.where(entry < low, 0, tl.where(entry < high, level, L))
    return tl.minimum(tl.maximum(level, 0), L)


@triton.jit(do_not_specialize=["nnz"])
def levels_kernel(
    values, indices, segments, bags, slopes, W_dec, b_dec, x, x_hat, S, b_parts, squares, grads, column, end, width, nnz,
    d_in, d_sae, L, per, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Program (row, columns) of a loss with L levels; `squares` holds |r|^2 of each row's start, then after each entry."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slopes += row // per * (L + 1)  # of the row's group
    here = block * BLOCK_D + tl.arange(0, BLOCK_D)  # columns of the chunk
    cols = column + here
    live = cols < end
    low, _ = load_bounds(segments, row * L, nnz)  # pyright: ignore[reportGeneralTypeIssues]
    high, _ = load_bounds(segments, row * L + L, nnz)
    bias = tl.load(b_dec + cols, mask=live, other=0.0).to(tl.float32)
    before = tl.load(x + row * d_in + cols, mask=live, other=0.0).to(tl.float32) - bias
    total = sum_entries(W_dec, indices, values, low, high, d_sae, d_in, cols, live, BLOCK_E, BLOCK_D)
    tl.store(x_hat + row * d_in + cols, bias + total, mask=live)
    n_rows = tl.num_programs(0).to(tl.int64)
    squares += (n_rows + nnz) * block
    tl.store(squares + row, tl.sum(before * before, 0))
    residual, s = before - total, tl.zeros([BLOCK_D], tl.float32)
    blocks = tl.cdiv(tl.maximum(high - low, 0), BLOCK_E)
    for done in range(0, blocks):
        entry = low + (blocks - 1 - done) * BLOCK_E + tl.arange(0, BLOCK_E)
        wanted = entry < high
        level = level_of(bags, entry, low, high, row * L, L)
        following = level_of(bags, entry + 1, low, high, row * L, L)
        weight = tl.load(values + entry, mask=wanted, other=0.0).to(tl.float32)
        index = tl.load(indices + entry, mask=wanted, other=-1)
        tile = gather_rows(W_dec, index, d_sae, d_in, wanted, cols, live)
        part = weight[:, None] * tile
        after = residual[None, :] + tl.cumsum(part, 0, reverse=True) - part  # the residual after each entry
        slope = slope_between(slopes, level, following)[:, None] * after
        sums = s[None, :] + tl.cumsum(slope, 0, reverse=True)
        tl.store(squares + n_rows + entry, tl.sum(after * after, 1), mask=wanted)
        tl.store(grads + nnz * block.to(tl.int64) + entry, tl.sum(sums * tile, 1), mask=wanted)
        ends = wanted & (following > level)
        tl.store(S + ((row * L + level) * width)[:, None] + here[None, :], sums, mask=ends[:, None] & live[None, :])
        residual += tl.sum(part, 0)
        s += tl.sum(slope, 0)
    s += slope_between(slopes, 0, level_of(bags, low, low, high, row * L, L)) * before
    tl.store(b_parts + row * width + here, s, mask=live)


class Inputs(NamedTuple):
    """What the kernels read: the entries with their `bags` [nnz] (None with one level), running slopes [G, L + 1], the rest."""

    values: Tensor
    indices: Tensor
    segments: Tensor
    bags: Tensor | None
    slopes: Tensor
    W_dec: Tensor
    b_dec: Tensor
    x: Tensor


class Chunk(NamedTuple):
    """What a sweep over some columns leaves in float32; `blocks` of columns each hold their own part of a sum.

    b_dec [rows, columns], the gradient row by row; squares [blocks, rows] or, with levels, [blocks, rows + nnz]: |r|^2 before
    each row's entries and after each entry; values [blocks, nnz], their gradients.
    """

    b_dec: Tensor
    squares: Tensor
    values: Tensor


def n_squares(inputs: Inputs) -> int:
    """How many sums of squares a sweep leaves: one a row, and with levels one more an entry."""
    return len(inputs.x) if inputs.bags is None else len(inputs.x) + len(inputs.values)


def room_for(inputs: Inputs) -> Nested:
    """The results, uninitialised but for the values' gradients, which are zero."""
    d_in, nnz, new = inputs.x.shape[1], len(inputs.values), inputs.slopes.new_empty
    groups, ends = inputs.slopes.shape
    shapes = ((groups, ends - 1), (nnz,), inputs.W_dec.shape, (d_in,))
    levels, values, W_dec, b_dec = (new(shape, dtype=torch.float32) for shape in shapes)
    return Nested(levels, torch.empty_like(inputs.x), values.zero_(), W_dec, b_dec)


def sweep(inputs: Inputs, x_hat: Tensor, S: Tensor, columns: slice, tiling: Tiling) -> Chunk:
    """Run the kernels over `columns` of x and W_dec, which also fills those of x_hat [rows, d_in], and S [rows * L, width]."""
    (rows, d_in), nnz, n_levels = x_hat.shape, len(inputs.values), inputs.slopes.shape[1] - 1
    blocks = parts_of(columns.stop - columns.start, tiling.columns)
    shapes = ((rows, S.shape[1]), (blocks, n_squares(inputs)), (blocks, nnz))
    chunk = Chunk(*(torch.empty(shape, device=S.device, dtype=torch.float32) for shape in shapes))
    kernel = one_level_kernel if n_levels == 1 else levels_kernel
    sizes = (
        columns.start,
        columns.stop,
        S.shape[1],
        nnz,
        d_in,
        len(inputs.W_dec),
        n_levels,
        rows // len(inputs.slopes),
    )
    with torch.cuda.device_of(S):
        kernel[rows, blocks](*inputs, x_hat, S, *chunk, *sizes, **tiling.options())
    return chunk


def level_losses(squares: Tensor, segments: Tensor, rows: int, groups: int, n_levels: int) -> Tensor:
    """[G, L]: the mean over a group's rows of |r_l|^2, from a Chunk's squares summed over all columns."""
    if n_levels == 1:
        return squares.view(groups, -1).mean(1, keepdim=True)
    ends = segments[1:].view(rows, n_levels)
    starts = segments[:-1].view(rows, n_levels)[:, :1]  # [rows, 1]
    row = torch.arange(rows, device=segments.device).unsqueeze(1)
    at = torch.where(ends > starts, ends + (rows - 1), row).clamp_(0, len(squares) - 1)  # [rows, L]
    return squares[at].view(groups, -1, n_levels).mean(1)


def running_slopes(weights: Tensor, rows: int) -> Tensor:
    """[G, L + 1]: running sums, from 0, of each group's slopes -2 weights[g, l] / its rows, in float64."""
    slopes = weights.double().cumsum(1) * (-2.0 * len(weights) / rows)
    return torch.cat([slopes.new_zeros(len(weights), 1), slopes], 1)


def fit(tiling: Tiling, d_in: int, bags: int, max_elements: int) -> tuple[Tiling, list[slice]]:
    """Chunks of columns for which S [bags, chunk] holds at most max_elements (or 16 columns), and the tiling to fit them."""
    most = max(16, max_elements // bags)
    tiling = tiling.fitted(min(d_in, 1 << (most.bit_length() - 1)))
    width = most // tiling.columns * tiling.columns
    return tiling, [slice(start, min(start + width, d_in)) for start in range(0, d_in, width)]


def nested(
    values: Tensor, indices: Tensor, segments: Tensor, weights: Tensor, W_dec: Tensor, b_dec: Tensor, x: Tensor,
    order: Tensor, by_latent_offsets: Tensor, bags_by_latent: Tensor, max_elements: int = 1 << 26,
    tiling: Tiling | None = None,
) -> Nested:  # fmt: skip
    """sum_l weights[l] * mean over rows of |x - x_hat_l|^2, x_hat_l = b_dec + the sum of the row's entries up to level l.

    values, indices [nnz]; segments [rows * L + 1] cuts the entries into bags row * L + level; weights [G, L] for G equal groups
    of rows (see `saebench.nested.nested_loss`); W_dec [d_sae, d_in] float32 or bfloat16; b_dec [d_in]; x [rows, d_in]; order
    [nnz] lists the entries by latent, by_latent_offsets [d_sae + 1] each latent's run in it, bags_by_latent [nnz] their bags.
    The gradients are float32, those of the loss itself. Only S, kept in W_dec's dtype, is of size rows * L * columns, and
    holds at most max_elements (but at least 16 columns).
    """
    (rows, d_in), (groups, n_levels), x, W_dec = x.shape, weights.shape, x.contiguous(), W_dec.contiguous()
    default = ONE_LEVEL if n_levels == 1 else LEVELS
    tiling, chunks = fit(tiling or default, d_in, rows * n_levels, max_elements)
    bags = None if n_levels == 1 else torch.empty_like(bags_by_latent).scatter_(0, order, bags_by_latent)  # [nnz]
    inputs = Inputs(values, indices, segments, bags, running_slopes(weights, rows), W_dec, b_dec, x)
    squares, made = torch.zeros(n_squares(inputs), device=x.device), room_for(inputs)
    S, values_by_latent = W_dec.new_empty(rows * n_levels, chunks[0].stop), values[order]
    for columns in chunks:
        width = columns.stop - columns.start
        chunk = sweep(inputs, made.x_hat, S, columns, tiling)
        squares.add_(chunk.squares.sum(0))
        made.values.add_(chunk.values.sum(0))
        made.b_dec[columns] = chunk.b_dec[:, :width].sum(0)
        weighted_rows(S[:, :width], bags_by_latent, values_by_latent, by_latent_offsets, made.W_dec[:, columns])
    return made._replace(levels=level_losses(squares, segments, rows, groups, n_levels))
