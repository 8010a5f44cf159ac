"""Every Triton kernel against plain torch, in Triton's interpreter on the CPU (run by tests/test_kernels.py).

Tolerances are relative to the largest value of what is compared: 2e-5 in float32, against float64; where S is kept in
bfloat16, 2^-7 for W_dec's gradient, and for copies in bfloat16 (the interpreter truncates where a GPU rounds).
"""

from __future__ import annotations

import os
import time
from itertools import product

import torch
from torch import Tensor

from saebench.kernels import select
from saebench.kernels.bags import SPAN, Tiling, weighted_rows
from saebench.kernels.nested import Nested, nested
from saebench.kernels.rows import adam_rows_
from saebench.kernels.select import chunk_maxima, row_topk_indices, select_rows
from saebench.nested import nested_loss_reference
from saebench.sparse import SparseLatents, bag_of_entry

FLOAT32, BFLOAT16 = 2e-5, 2**-7
SHAPES = [(1, 1, 1, 1), (7, 5, 11, 3), (3, 33, 17, 5), (2, 130, 9, 7)]  # rows, d_in, d_sae, k
EVERY = 1 << 26


def near(name: str, got: Tensor, want: Tensor, bound: float = FLOAT32) -> None:
    """Fail unless got is within bound * max(1, max |want|) of want."""
    assert got.shape == want.shape, f"{name}: {tuple(got.shape)} is not {tuple(want.shape)}"
    if want.numel():
        error = float((got.double() - want).abs().max() / want.abs().max().clamp_min(1.0))
        assert error <= bound, f"{name}: off by {error:.2e}"  # NaN fails too


def ragged(rows: int, d_sae: int, k: int, seed: int) -> SparseLatents:
    """Up to k entries in each row, the first row with all of them and, if there is another, the last with none."""
    g = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, k + 1, (rows,), generator=g)
    counts[-1], counts[0] = 0, k
    picks = [torch.randperm(d_sae, generator=g)[: int(n)] for n in counts]
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    values = torch.rand(int(offsets[-1]), generator=g, dtype=torch.float64).mul_(2.0)
    return SparseLatents(offsets, torch.cat(picks), values.float().double(), d_sae)


def cut(latents: SparseLatents, n_levels: int, seed: int) -> Tensor:
    """Segments that cut each row into levels at random places, some of them empty."""
    g = torch.Generator().manual_seed(seed)
    counts = latents.offsets.diff().unsqueeze(1)
    cuts = (torch.rand(latents.rows, n_levels - 1, generator=g) * (counts + 1)).long().sort(1).values
    starts = torch.cat([torch.zeros_like(counts), cuts], 1) + latents.offsets[:-1, None]
    return torch.cat([starts.reshape(-1), latents.offsets[-1:]])


def run_nested(
    latents: SparseLatents, segments: Tensor, weights: Tensor, tensors: list[Tensor], limit: int, dtype: torch.dtype
) -> Nested:
    """The kernels on float32 copies of `tensors` (W_dec, b_dec, x), W_dec in `dtype`."""
    W_dec, b_dec, x = (t.float() for t in tensors)
    order = latents.indices.argsort(stable=True)
    offsets = torch.searchsorted(latents.indices[order], torch.arange(latents.d_sae + 1))
    bags = bag_of_entry(segments, len(order))[order]
    values = latents.values.float()
    return nested(
        values, latents.indices, segments, weights.float(), W_dec.to(dtype), b_dec, x, order, offsets, bags, limit
    )


def check_nested(
    shape: tuple[int, int, int, int], n_levels: int, limit: int, dtype: torch.dtype, groups: int = 1
) -> None:
    rows, d_in, d_sae, k = shape
    latents = ragged(rows, d_sae, k, seed=d_in)
    segments, weights = cut(latents, n_levels, seed=1), torch.linspace(0.5, 1.5, groups * n_levels, dtype=torch.float64)
    weights = weights.view(groups, n_levels)
    g = torch.Generator().manual_seed(rows)
    sizes = ((d_sae, d_in), (d_in,), (rows, d_in))
    tensors = [torch.randn(size, generator=g).to(dtype).double() for size in sizes]  # W_dec, b_dec, x
    leaves = [t.clone().requires_grad_() for t in (latents.values, *tensors[:2])]
    pattern = latents.with_values(leaves[0])
    want = nested_loss_reference(pattern, segments, weights, leaves[1], leaves[2], tensors[2])
    want.loss.backward()
    got = run_nested(latents, segments, weights, tensors, limit, dtype)
    near("levels", got.levels, want.levels)
    near("x_hat", got.x_hat, want.x_hat)
    bounds = (FLOAT32, FLOAT32 if dtype == torch.float32 else BFLOAT16, FLOAT32)
    for name, leaf, bound in zip(("values", "W_dec", "b_dec"), leaves, bounds, strict=True):
        assert leaf.grad is not None
        near(f"gradient of {name}", getattr(got, name), leaf.grad, bound)


def nested_loss() -> None:
    """One level, some levels, as many as entries and more; ragged and empty rows; columns whole and in chunks; groups."""
    for shape, n_levels in product(SHAPES, (1, 2, 7)):
        check_nested(shape, n_levels, EVERY, torch.float32)
    for n_levels in (1, 6):
        check_nested((2, 33, 9, 7), n_levels, 1, torch.float32)
        check_nested((3, 33, 17, 5), n_levels, EVERY, torch.bfloat16)
        check_nested((6, 33, 17, 5), n_levels, EVERY, torch.float32, groups=3)


def nested_out_of_range() -> None:
    """A row with indices out of range adds nothing for them; the other rows are as they would be without it."""
    latents = SparseLatents(torch.tensor([0, 3, 5]), torch.tensor([1, 1 << 40, -7, 0, 2]), torch.ones(5), 4)
    good = SparseLatents(torch.tensor([0, 1, 3]), torch.tensor([1, 0, 2]), torch.ones(3), 4)
    tensors = [torch.randn(4, 5), torch.randn(5), torch.randn(2, 5)]
    for n_levels in (1, 2):
        ends = [latents.offsets[-1:], good.offsets[-1:]]
        bad_at, good_at = (
            torch.cat([p.offsets[:-1].repeat_interleave(n_levels), e])
            for p, e in zip((latents, good), ends, strict=True)
        )
        weights = torch.ones(1, n_levels)
        bad = run_nested(latents, bad_at, weights, tensors, EVERY, torch.float32)
        want = run_nested(good, good_at, weights, tensors, EVERY, torch.float32)
        near("x_hat", bad.x_hat, want.x_hat.double())
        near("W_dec", bad.W_dec, want.W_dec.double())
        near("values", bad.values, torch.stack([want.values[i] for i in (0, 0, 0, 1, 2)]).double() * (bad.values != 0))
        segments = bad_at.clone()
        segments[-1] = 1 << 40
        assert torch.equal(run_nested(latents, bad_at, weights, tensors, EVERY, torch.float32).x_hat, bad.x_hat)
        beyond = nested_with(segments, latents, weights, tensors)
        near("x_hat of rows before an offset out of range", beyond.x_hat[:1], want.x_hat[:1].double())


def nested_with(segments: Tensor, latents: SparseLatents, weights: Tensor, tensors: list[Tensor]) -> Nested:
    """The kernels with segments that are wrong, all else being as for right ones."""
    order = latents.indices.argsort(stable=True)
    offsets = torch.searchsorted(latents.indices[order], torch.arange(latents.d_sae + 1))
    bags = torch.zeros(len(order), dtype=torch.int64)
    W_dec, b_dec, x = tensors
    return nested(latents.values, latents.indices, segments, weights, W_dec, b_dec, x, order, offsets, bags)


def plain_sums(table: Tensor, rows: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    """weighted_rows by index_add in float64."""
    out = torch.zeros(len(offsets) - 1, table.shape[1], dtype=torch.float64)
    bags = bag_of_entry(offsets, len(rows))
    return out.index_add_(0, bags, weights.double().unsqueeze(1) * table.double()[rows])


def bag_sums() -> None:
    """Empty bags, one entry, bags around and far beyond a span; several tilings; an `out` that is a part of a tensor."""
    g = torch.Generator().manual_seed(0)
    for counts in ([1], [0, 3, 0], [SPAN - 1, 1, SPAN, 0, 3 * SPAN + 7, 2], [3, 2 * SPAN - 3, 4]):
        offsets = torch.tensor([0, *counts]).cumsum(0)
        nnz = int(offsets[-1])
        rows, weights = torch.randint(0, 6, (nnz,), generator=g), torch.randn(nnz, generator=g)
        for d, tiling in ((1, Tiling(8, 512, 2)), (21, Tiling(16, 16, 1))):
            table = torch.randn(6, d + 3, generator=g)[:, :d]  # rows further apart than they are long
            frame = torch.full((len(counts), d + 2), 9.0)
            weighted_rows(table, rows, weights, offsets, frame[:, 1:-1], tiling)
            near("bag sums", frame[:, 1:-1], plain_sums(table, rows, weights, offsets))
            assert bool((frame[:, 0] == 9).all() and (frame[:, -1] == 9).all()), "wrote beside its columns"
    table = torch.randn(4, 5, generator=g)
    rows, weights = torch.tensor([0, -1, 1 << 40, 3]), torch.ones(4)
    near("rows out of range", weighted_rows(table, rows, weights, torch.tensor([0, 3, 4])), table[[0, 3]].double())
    wrong = weighted_rows(table, rows, weights, torch.tensor([-5, 1, 1 << 40]))
    near("offsets out of range", wrong, table[[0, 3]].double())


def plain_adam(p: Tensor, grads: list[Tensor], unit: bool) -> tuple[Tensor, Tensor]:
    """torch.optim.Adam in float64 with projection before and renormalisation after each step; also the second moments."""
    p = p.double().requires_grad_()
    adam = torch.optim.Adam([p], lr=0.01, betas=(0.9, 0.999), eps=1e-8)
    for grad in grads:
        along = (grad.double() * p.detach()).sum(1, keepdim=True) if unit else 0.0
        p.grad = grad.double() - along * p.detach()
        adam.step()
        if unit:
            norm = p.detach().norm(dim=1, keepdim=True)
            p.data.div_(torch.where(norm > 0, norm, 1.0))
    return p.detach(), adam.state[p]["exp_avg_sq"]


def adam() -> None:
    """Five steps, with and without unit rows, of odd and even widths; a zero row stays zero."""
    for d, unit in product((1, 33, 130), (True, False)):
        g = torch.Generator().manual_seed(d)
        p = torch.nn.functional.normalize(torch.randn(3, d, generator=g), dim=1)
        grads = [torch.randn(3, d, generator=g) for _ in range(5)]
        if unit:
            p[1] = 0.0
            for grad in grads:
                grad[1] = 0.0
        want, want_sq = plain_adam(p, grads, unit)
        m, v, copy = torch.zeros_like(p), torch.zeros_like(p), torch.empty_like(p, dtype=torch.bfloat16)
        for step, grad in enumerate(grads, 1):
            adam_rows_(p, grad, m, v, lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8, step=step, unit=unit, copy=copy)
        near("rows", p, want)
        near("second moments", v, want_sq)
        near("copy", copy, p.double(), BFLOAT16)
        assert not unit or bool((p[1] == 0).all())


def hard_rows(n: int, m: int) -> dict[str, Tensor]:
    """Rows [n, m] that selection gets wrong if it can."""
    x, share = torch.randn(n, m), torch.rand(n, m)
    return {
        "random": x,
        "equal": torch.ones(n, m),
        "negative": -share,
        "few positives": torch.relu(x - 2),
        "zeros of both signs": torch.where(share > 0.5, 0.0, -0.0),
        "infinite": torch.where(share > 0.9, torch.inf, torch.where(share > 0.8, x, -torch.inf)),
        "NaN": torch.where(share > 0.95, torch.nan, torch.where(share > 0.9, -torch.nan, x)),
        "rising": torch.arange(n * m, dtype=torch.float32).view(n, m),
    }


def first_largest(values: Tensor, k: int) -> Tensor:
    """Positions of the k largest, rising, ties to the lowest position, NaN largest: by a stable sort."""
    plain = values.double() + 0.0
    return plain.sort(dim=1, descending=True, stable=True).indices[:, :k].sort(1).values


def selection() -> None:
    """Directly, by chunks, and by chunks of chunks (for which programs are made to hold less); also against torch.topk."""
    torch.manual_seed(0)
    whole = select.MAX_WIDTH
    cases = [(torch.float32, n, m, k) for n, m, k in ((1, 1, 1), (3, 7, 2), (1, 37, 37), (1, 129, 16), (2, 521, 5))]
    cases += [(dtype, *shape) for dtype in (torch.bfloat16, torch.float16) for shape in ((2, 7, 2), (1, 521, 5))]
    for dtype, n, m, k in cases:
        for name, rows in hard_rows(n, m).items():
            values = rows.to(dtype)
            want = first_largest(values, k)
            top = values.topk(k, dim=1).values.sort(1).values
            assert torch.equal(values.gather(1, want).sort(1).values.nan_to_num(9e9), top.nan_to_num(9e9)), name
            assert torch.equal(select_rows(values, k), want), f"{name} {dtype} {m} {k}: select_rows"
            if m < 128:
                continue
            try:
                select.MAX_WIDTH = 128
                assert torch.equal(row_topk_indices(values, k, 8), want), f"{name} {dtype} {m} {k}: chunks"
            finally:
                select.MAX_WIDTH = whole
    wide = torch.randn(2, 500)[:, :100]  # rows further apart than they are long
    assert torch.equal(select_rows(wide, 3), first_largest(wide, 3))
    maxima = chunk_maxima(wide, 32)
    nearest = [wide[:, i : i + 32].max(1).values for i in range(0, 100, 32)]  # the last chunk has 4
    assert torch.equal(select_rows(maxima, 2), first_largest(torch.stack(nearest, 1), 2))


def main() -> None:
    """Run every check and print its seconds."""
    assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1: there need be no GPU"
    for check in (bag_sums, nested_loss, nested_out_of_range, adam, selection):
        began = time.perf_counter()
        check()
        print(f"{check.__name__}: {time.perf_counter() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
