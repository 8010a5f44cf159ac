"""Weighted sums of table rows, bag by bag: what the gradients of W_dec and W_enc are made of."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from saebench.kernels import parts_of, power_of_two


class Tiling(NamedTuple):
    """The shape of one program: table rows loaded at once, columns it owns, warps it runs on, registers a thread may have.

    With columns >= 256 * warps a thread holds all `entries` of its own columns, so sums over entries stay within the thread.
    """

    entries: int
    columns: int
    warps: int
    registers: int | None = None

    def fitted(self, width: int) -> Tiling:
        """The same with no more columns than the power of two that holds `width`."""
        return self._replace(columns=max(16, min(self.columns, power_of_two(width))))

    def options(self) -> dict[str, Any]:
        """A kernel's block sizes and compiler options; fused multiply-add is named, as triton's default is to change."""
        sizes = {"BLOCK_E": self.entries, "BLOCK_D": self.columns}
        return sizes | {"num_warps": self.warps, "maxnreg": self.registers, "enable_fp_fusion": True}


TILING = Tiling(8, 512, 2)
SPAN = 128  # entries; whole spans inside one bag are summed by programs of their own, so that no long bag is waited for


@triton.jit
def load_bounds(offsets, bag, nnz):
    """The bag's first entry and the one after its last, clamped to the entries that exist."""
    low = tl.load(offsets + bag).to(tl.int64)
    high = tl.load(offsets + bag + 1).to(tl.int64)
    return tl.minimum(tl.maximum(low, 0), nnz), tl.minimum(tl.maximum(high, 0), nnz)


@triton.jit
def gather_rows(table, rows, n_rows, stride, wanted, cols, live):
    """table[rows, cols] in float32: [BLOCK_E, BLOCK_D], zero where not wanted, not live or out of range."""
    rows = rows.to(tl.int64)
    inside = wanted & (rows >= 0) & (rows < n_rows)
    cells = table + (rows * stride)[:, None] + cols[None, :]
    return tl.load(cells, mask=inside[:, None] & live[None, :], other=0.0).to(tl.float32)


@triton.jit
def sum_entries(
    table, rows, weights, low, high, n_rows, stride, cols, live, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr
):
    """sum over entries low <= e < high of weights[e] * table[rows[e], cols]: [BLOCK_D]."""
    total = tl.zeros([BLOCK_D], tl.float32)
    for start in range(low, high, BLOCK_E):
        entry = start + tl.arange(0, BLOCK_E)
        wanted = entry < high
        weight = tl.load(weights + entry, mask=wanted, other=0.0).to(tl.float32)
        row = tl.load(rows + entry, mask=wanted, other=-1)
        total += tl.sum(weight[:, None] * gather_rows(table, row, n_rows, stride, wanted, cols, live), 0)
    return total


@triton.jit
def sum_spans(spans, first, last, stride, cols, live, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr):
    """sum of the rows first <= s < last of the spans' sums: [BLOCK_D]."""
    total = tl.zeros([BLOCK_D], tl.float32)
    for start in range(first, last, BLOCK_E):
        span = start + tl.arange(0, BLOCK_E)
        total += tl.sum(gather_rows(spans, span, last, stride, span < last, cols, live), 0)
    return total


@triton.jit(do_not_specialize=["nnz"])
def span_sums_kernel(
    table, rows, weights, offsets, owners, spans, nnz, n_rows, d, stride,
    SPAN: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Program (span, columns): the sum of the span's entries, if one bag holds all of them."""
    span = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    live = cols < d
    low, high = load_bounds(offsets, tl.load(owners + span), nnz)  # pyright: ignore[reportGeneralTypeIssues]
    if (low <= span * SPAN) & (high >= span * SPAN + SPAN):
        total = sum_entries(
            table, rows, weights, span * SPAN, span * SPAN + SPAN, n_rows, stride, cols, live, BLOCK_E, BLOCK_D
        )
        tl.store(spans + span * d + cols, total, mask=live)


@triton.jit(do_not_specialize=["nnz"])
def bag_sums_kernel(
    table, rows, weights, offsets, spans, out, nnz, n_rows, d, stride, out_stride,
    SPAN: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Program (bag, columns): the entries before the bag's whole spans, the spans' sums, the entries after them."""
    bag = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    live = cols < d
    low, high = load_bounds(offsets, bag, nnz)  # pyright: ignore[reportGeneralTypeIssues]
    first, last = tl.cdiv(low, SPAN), high // SPAN
    head = tl.minimum(first * SPAN, high)
    tail = tl.maximum(last * SPAN, head)
    total = sum_entries(table, rows, weights, low, head, n_rows, stride, cols, live, BLOCK_E, BLOCK_D)
    total += sum_spans(spans, first, last, d, cols, live, BLOCK_E, BLOCK_D)
    total += sum_entries(table, rows, weights, tail, high, n_rows, stride, cols, live, BLOCK_E, BLOCK_D)
    tl.store(out + bag * out_stride + cols, total, mask=live, cache_modifier=".cs")


def weighted_rows(
    table: Tensor, rows: Tensor, weights: Tensor, offsets: Tensor, out: Tensor | None = None, tiling: Tiling = TILING
) -> Tensor:
    """out[b] = sum over the entries e of bag b of weights[e] * table[rows[e]]: [bags, d], float32 unless `out` is given.

    table [m, d] and out have unit stride along d and any stride along rows; rows and weights [nnz]; bag b is the entries
    offsets[b] to offsets[b + 1] (offsets [bags + 1]), and an empty bag gives zeros. One program sums one bag's columns; spans
    of 128 entries inside one bag are summed first by programs of their own, so a latent that is always on costs no wait.
    """
    bags, d, nnz = len(offsets) - 1, table.shape[1], len(rows)
    out = table.new_empty(bags, d, dtype=torch.float32) if out is None else out
    assert table.stride(1) == out.stride(1) == 1, "a row's columns must lie side by side"
    tiling = tiling.fitted(d)
    blocks, n_spans = parts_of(d, tiling.columns), nnz // SPAN
    spans = table.new_empty(n_spans, d, dtype=torch.float32)
    options: dict[str, Any] = {"SPAN": SPAN} | tiling.options()
    with torch.cuda.device_of(table):
        if n_spans > 0:
            starts = torch.arange(n_spans, device=table.device) * SPAN
            owners = (torch.searchsorted(offsets, starts, right=True) - 1).clamp_(0, bags - 1)  # [n_spans]
            span_sums_kernel[n_spans, blocks](
                table, rows, weights, offsets, owners, spans, nnz, len(table), d, table.stride(0), **options,
            )  # fmt: skip
        bag_sums_kernel[bags, blocks](
            table, rows, weights, offsets, spans, out, nnz, len(table), d, table.stride(0), out.stride(0), **options,
        )  # fmt: skip
    return out
