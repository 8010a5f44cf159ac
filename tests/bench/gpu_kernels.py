"""The Triton kernels on a GPU: right against plain torch at real shapes, and how fast (python -m tests.bench.gpu_kernels).

One line for each kernel and choice of block sizes: milliseconds (median, with a cold L2 cache), the bytes that its loads and
stores name per second, the same in plain torch, and the floor: the bytes that must come from or go to memory at least once,
at the bandwidth of a copy measured in the same run. Rows read again are mostly served by the L2 cache, so the rate may exceed
the memory's. `error` is relative to the largest value of what plain torch computes; it stops if that is too large.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from saebench.kernels.bags import Tiling, weighted_rows
from saebench.kernels.nested import LEVELS, ONE_LEVEL, nested
from saebench.kernels.rows import adam_rows_
from saebench.kernels.select import chunk_maxima, row_topk_indices, select_rows
from saebench.nested import torch_sweep
from saebench.sparse import SparseLatents, bag_of_entry

BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # largest error allowed, by the precision of the table
REPEATS = 15


class Shape(NamedTuple):
    """Sizes of a step: n tokens, d_in, d_sae, k entries a row."""

    n: int
    d_in: int
    d_sae: int
    k: int


class Clock:
    """Times calls on a device, after writing `flush` so that nothing is left in the L2 cache."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.flush = torch.empty(1 << 28 if device.type == "cuda" else 1, dtype=torch.uint8, device=device)
        block = torch.empty(1 << 29 if device.type == "cuda" else 1 << 16, dtype=torch.uint8, device=device)
        into = torch.empty_like(block)
        self.bandwidth = 2 * block.numel() / self.ms(lambda: into.copy_(block)) * 1e3  # bytes per second

    def ms(self, run: Callable[[], object]) -> float:
        """Median milliseconds of `run` after two calls to warm up."""
        return statistics.median([self._once(run) for _ in range(REPEATS + 2)][2:])

    def _once(self, run: Callable[[], object]) -> float:
        self.flush.zero_()
        if self.device.type != "cuda":
            began = time.perf_counter()
            run()
            return (time.perf_counter() - began) * 1e3
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize(self.device)
        return start.elapsed_time(stop)

    def line(self, name: str, setting: str, run: Callable[[], object], named: int, least: int, plain: float) -> None:
        """Time `run` and print its line; `named` and `least` bytes, `plain` milliseconds."""
        ms = self.ms(run)
        floor = least / self.bandwidth * 1e3
        rate = named / ms / 1e6
        print(f"{name:28s} {setting:24s} {ms:8.3f} {rate:8.0f} {plain:8.3f} {floor:8.3f} {ms / floor:6.2f}", flush=True)


def agree(name: str, got: Tensor, want: Tensor, bound: float) -> None:
    """Stop unless got is within bound * max |want| of want."""
    error = float((got.float() - want.float()).abs().max() / want.abs().max().clamp_min(1e-30))
    if not error <= bound:
        sys.exit(f"{name}: off by {error:.1e}, more than {bound:.0e}")


def skewed_latents(shape: Shape, device: torch.device) -> SparseLatents:
    """k distinct latents a row, drawn by a power law of popularity, so that some are on in every row and many in none."""
    g = torch.Generator(device).manual_seed(0)
    popularity = -1.2 * torch.arange(1, shape.d_sae + 1, device=device).log()
    popularity = popularity[torch.randperm(shape.d_sae, generator=g, device=device)]
    gumbel = -torch.rand(shape.n, shape.d_sae, generator=g, device=device).clamp_min_(1e-20).log_().neg_().log_()
    indices = (gumbel + popularity).topk(shape.k, dim=1).indices.sort(1).values
    values = torch.rand(shape.n, shape.k, generator=g, device=device) + 0.1
    return SparseLatents.from_rows(values, indices, shape.d_sae)


def bench_nested(clock: Clock, shape: Shape, latents: SparseLatents, dtype: torch.dtype) -> None:
    """The nested loss with one level, with five and with as many as entries."""
    n, d_in, d_sae, k = shape
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, d_in, device=clock.device), dim=1).to(dtype)
    x, b_dec = torch.randn(n, d_in, device=clock.device), torch.randn(d_in, device=clock.device)
    by, size = latents.by_latent, W_dec.element_size()
    for n_levels in sorted({1, min(5, k), k}):
        cuts = torch.linspace(0, k, n_levels + 1).long()[:-1].to(clock.device)  # first entry of each level
        segments = torch.cat([(latents.offsets[:-1, None] + cuts).reshape(-1), latents.offsets[-1:]])
        weights = torch.ones(n_levels, device=clock.device) / n_levels
        bags = bag_of_entry(segments, n * k)[by.order]
        inputs = (latents.values, latents.indices, segments, weights, W_dec, b_dec, x, by.order, by.offsets, bags)
        plain = partial(torch_sweep, latents.values, W_dec, b_dec, x, latents, segments, weights)
        got, want = nested(*inputs), plain()
        for field in got._fields:
            agree(f"nested {n_levels} {dtype} {field}", getattr(got, field), getattr(want, field), BOUNDS[dtype])
        again = nested(*inputs)
        if not all(torch.equal(a, b) for a, b in zip(got, again, strict=True)):
            sys.exit(f"nested {n_levels} {dtype}: two calls differ")
        del got, want, again
        S, ms = n * n_levels * d_in * size, clock.ms(plain)
        least = d_sae * d_in * (size + 4) + 3 * n * d_in * 4 + (2 * S if n_levels > 1 else S)
        default = ONE_LEVEL if n_levels == 1 else LEVELS
        choices = [
            default,
            Tiling(8, 256, 1),
            Tiling(4, 256, 1),
            Tiling(2, 256, 1),
            Tiling(8, 512, 2),
            Tiling(4, 128, 1),
        ]
        for tiling in dict.fromkeys(choices):
            run, named = partial(nested, *inputs, tiling=tiling), n * k * d_in * 3 * size + d_sae * d_in * 4 + S
            clock.line(f"nested L={n_levels} {str(dtype)[6:]}", str(tuple(tiling)), run, named, least, ms)


def bench_bags(clock: Clock, shape: Shape, latents: SparseLatents) -> None:
    """W_enc's gradient: sums over the entries by latent of rows of x."""
    n, d_in, d_sae, k = shape
    by, x = latents.by_latent, torch.randn(n, d_in, device=clock.device)
    weights, rows = latents.values[by.order], latents.row_of_entry[by.order]
    plain = partial(
        torch.nn.functional.embedding_bag,
        rows, x, by.offsets, mode="sum", per_sample_weights=weights, include_last_offset=True,
    )  # fmt: skip
    agree("weighted_rows", weighted_rows(x, rows, weights, by.offsets), plain(), BOUNDS[torch.float32])
    ms, least = clock.ms(plain), 4 * d_in * (n + d_sae)
    sizes = ((8, 512, 2), (4, 512, 2), (4, 512, 1), (8, 256, 1), (16, 256, 1), (8, 1024, 4))
    for tiling in (Tiling(*size) for size in sizes):
        run = partial(weighted_rows, x, rows, weights, by.offsets, tiling=tiling)
        clock.line("weighted_rows float32", str(tuple(tiling)), run, 4 * d_in * (n * k + d_sae), least, ms)


def bench_adam(clock: Clock, shape: Shape) -> None:
    """One step on W_dec with projection, renormalisation and a copy, against torch's fused Adam with the same around it."""
    d_sae, d_in = shape.d_sae, shape.d_in
    p = torch.nn.functional.normalize(torch.randn(d_sae, d_in, device=clock.device), dim=1)
    grad, m, v = torch.randn_like(p), torch.zeros_like(p), torch.zeros_like(p)
    copy, theirs = torch.empty_like(p, dtype=torch.bfloat16), p.clone().requires_grad_()
    optimiser = torch.optim.Adam([theirs], lr=1e-3, fused=True)

    def plain() -> None:
        row = theirs.detach()
        theirs.grad = grad.addcmul(row, torch.linalg.vecdot(grad, row).unsqueeze(1), value=-1)
        optimiser.step()
        row.div_(torch.linalg.vector_norm(row, dim=1, keepdim=True))
        copy.copy_(row)

    def ours(warps: int | None) -> None:
        adam_rows_(p, grad, m, v, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, step=1, unit=True, copy=copy, warps=warps)

    plain()
    ours(None)
    agree("adam_rows_", p, theirs.detach(), BOUNDS[torch.float32])
    ms, count = clock.ms(plain), p.numel()
    for warps in (4, 8, 16):
        clock.line("adam_rows_", f"warps {warps}", partial(ours, warps), 30 * count, 30 * count, ms)


def bench_selection(clock: Clock, shape: Shape, dtype: torch.dtype) -> None:
    """Row top-k and its two parts, against torch.topk and amax."""
    acts = torch.randn(shape.n, shape.d_sae, device=clock.device).relu_().to(dtype)
    whole, name = acts.numel() * acts.element_size(), str(dtype)[6:]
    picked = acts.gather(1, row_topk_indices(acts, shape.k))
    plain = partial(acts.topk, shape.k, dim=1)
    if not torch.equal(picked.sort(1, descending=True).values, plain().values):
        sys.exit(f"row_topk_indices {name}: not the largest values")
    clock.line(f"row top-k {name}", "", partial(row_topk_indices, acts, shape.k), whole, whole, clock.ms(plain))
    amax = partial(acts[:, : shape.d_sae // 32 * 32].unflatten(1, (-1, 32)).amax, 2)
    clock.line(f"chunk maxima {name}", "", partial(chunk_maxima, acts), whole, whole, clock.ms(amax))
    maxima = chunk_maxima(acts)
    few, among = maxima.numel() * maxima.element_size(), partial(maxima.topk, shape.k, dim=1)
    clock.line(f"selection of maxima {name}", "", partial(select_rows, maxima, shape.k), few, few, clock.ms(among))


def main() -> None:
    """Check and time everything at one shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("n", 4096), ("d_in", 2304), ("d_sae", 65536), ("k", 64)):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    torch.manual_seed(0)
    shape, clock = Shape(args.n, args.d_in, args.d_sae, args.k), Clock(torch.device(args.device))
    name = torch.cuda.get_device_name() if clock.device.type == "cuda" else "cpu, interpreted"
    print(f"{name}, torch {torch.__version__}, {shape}, copy {clock.bandwidth / 1e9:.0f} GB/s")
    print(f"{'kernel':28s} {'block sizes':24s} {'ms':>8s} {'GB/s':>8s} {'torch':>8s} {'floor':>8s} {'x':>6s}")
    latents = skewed_latents(shape, clock.device)
    busiest = int(latents.by_latent.offsets.diff().max())
    print(f"entries of the busiest latent: {busiest}; of the median: {int(latents.by_latent.offsets.diff().median())}")
    for dtype in (torch.bfloat16, torch.float32):
        bench_nested(clock, shape, latents, dtype)
        bench_selection(clock, shape, dtype)
    bench_bags(clock, shape, latents)
    bench_adam(clock, shape)


if __name__ == "__main__":
    main()
