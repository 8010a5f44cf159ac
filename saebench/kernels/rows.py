"""Adam row by row: projection, step, renormalisation and a bfloat16 copy in one pass over the memory."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from saebench.kernels import power_of_two


@triton.jit
def adam_rows_kernel(
    p, grad, exp_avg, exp_avg_sq, copy, d, lr, beta1, beta2, rest1, rest2, eps, root,
    UNIT: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Program (row); lr is divided by its bias correction, rest = 1 - beta, root = sqrt of the second bias correction."""
    cols = tl.arange(0, BLOCK_D)
    live = cols < d
    here = tl.program_id(0).to(tl.int64) * d + cols
    row = tl.load(p + here, mask=live, other=0.0)
    g = tl.load(grad + here, mask=live, other=0.0).to(tl.float32)
    if UNIT:
        g -= tl.sum(g * row, 0) * row
    m = beta1 * tl.load(exp_avg + here, mask=live, other=0.0) + rest1 * g
    v = beta2 * tl.load(exp_avg_sq + here, mask=live, other=0.0) + rest2 * g * g
    row -= lr * m / (tl.sqrt(v) / root + eps)
    if UNIT:
        norm = tl.sqrt(tl.sum(tl.where(live, row * row, 0.0), 0))
        row /= tl.where(norm > 0, norm, 1.0)
    tl.store(p + here, row, mask=live)
    tl.store(exp_avg + here, m, mask=live)
    tl.store(exp_avg_sq + here, v, mask=live)
    if copy is not None:
        tl.store(copy + here, row, mask=live)


def options(d: int, unit: bool, warps: int | None = None) -> dict[str, Any]:
    """The kernel's constants and compiler options; with `warps` None, a thread holds 16 columns, as far as there are warps."""
    block = power_of_two(d)
    warps = warps or min(32, max(1, block // 512))
    return {"UNIT": unit, "BLOCK_D": block, "num_warps": warps, "enable_fp_fusion": True}


@torch.no_grad()
def adam_rows_(
    p: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, *, lr: float, beta1: float, beta2: float, eps: float,
    step: int, unit: bool, copy: Tensor | None = None, warps: int | None = None,
) -> None:  # fmt: skip
    """torch.optim.Adam's step number `step` (from 1) on rows p [r, d], in place; all tensors contiguous and float32.

    If `unit`, each gradient row first loses its part along the row of p, which has unit norm, and the norm is restored
    afterwards (a zero row stays zero). `copy` [r, d], bfloat16, receives the new rows; grad is read only, in any precision.
    """
    assert all(t.is_contiguous() and t.shape == p.shape for t in (p, grad, exp_avg, exp_avg_sq, copy) if t is not None)
    root = math.sqrt(1 - beta2**step)
    with torch.cuda.device_of(p):
        adam_rows_kernel[len(p),](
            p, grad, exp_avg, exp_avg_sq, copy, p.shape[1], lr / (1 - beta1**step), float(beta1), float(beta2),
            1.0 - beta1, 1.0 - beta2, float(eps), root,
            **options(p.shape[1], unit, warps),
        )  # fmt: skip
