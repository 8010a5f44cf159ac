"""Milliseconds of a full training step of sparsify and SAELens, and of the encoder product alone, in one run.

    python -m tests.peers.speed --n 2048 --d-in 640 --d-sae 8192 --k 32 --threads 2 --repeats 9 --device cpu

Run by a Python that has the peers (pip install sae-lens eai-sparsify). Prints one JSON line of medians and nothing else on
stdout. A step is forward, backward, the library's own treatment of the decoder, and the optimiser; no latent is dead, so that
AuxK is off. sparsify: the methods of SparseCoder in the order of its Trainer, with torch's fused Adam. SAELens:
SAETrainer.step in its default configuration (Adam as torch defaults it, clipping, firing statistics); "fused": the same with
fused Adam; "sparse": also with its option use_sparse_activations, which fails in backward unless rescale_acts_by_decoder_norm,
on by default, is off (6.54 with torch 2.13), and which it advises for float32 alone. On a GPU the others compute in bfloat16
autocast, and so does the floor.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from tests.peers.saelens import trainer, training_sae


def median_ms(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Median milliseconds of `run` after two warm-up calls."""
    times = []
    for i in range(repeats + 2):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if i >= 2:
            times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


def floor(x: Tensor, d_sae: int) -> Callable[[], object]:
    """The encoder product into a preallocated output, in the type that the libraries' products have."""
    x = x.bfloat16() if x.is_cuda else x
    weights, out = torch.randn_like(x[:1].expand(d_sae, -1)).T.contiguous(), x.new_empty(len(x), d_sae)
    return lambda: torch.mm(x, weights, out=out)


def sparsify_step(x: Tensor, d_sae: int, k: int) -> Callable[[], object]:
    """One step of sparsify's TopK on x [n, d_in]."""
    from sparsify import SparseCoder, SparseCoderConfig  # pyright: ignore[reportMissingImports]

    coder = SparseCoder(x.shape[1], SparseCoderConfig(num_latents=d_sae, k=k), device=x.device, dtype=torch.float32)
    adam = torch.optim.Adam(coder.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        coder.set_decoder_norm_to_unit_norm()
        coder(x).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()

    return step


def sae_lens_step(x: Tensor, d_sae: int, k: int, variant: str, fused: bool, sparse: bool) -> Callable[[], object]:
    """One step of SAELens' trainer on x [n, d_in]; variant topk or batchtopk."""
    options = {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False} if sparse else {}
    sae = training_sae(variant, d_in=x.shape[1], d_sae=d_sae, k=k, device=str(x.device), **options)
    mine = trainer(
        sae, total_training_samples=1_000_000_000, train_batch_size_samples=len(x), lr=1e-4, lr_end=1e-4,
        device=str(x.device), autocast=x.is_cuda and not sparse,
    )  # fmt: skip
    if fused:  # an option of its optimiser's groups, so that the scheduler stays attached
        mine.optimizer.param_groups[0]["fused"] = True
    return lambda: mine.step(x)


def steps(x: Tensor, d_sae: int, k: int) -> dict[str, Callable[[], Callable[[], object]]]:
    """What is measured, by name; each is built only when its turn comes, so that memory holds one at a time."""
    return {
        "sparsify topk": lambda: sparsify_step(x, d_sae, k),
        "sae-lens topk": lambda: sae_lens_step(x, d_sae, k, "topk", False, False),
        "sae-lens topk fused": lambda: sae_lens_step(x, d_sae, k, "topk", True, False),
        "sae-lens topk sparse": lambda: sae_lens_step(x, d_sae, k, "topk", True, True),
        "sae-lens batchtopk": lambda: sae_lens_step(x, d_sae, k, "batchtopk", False, False),
        "sae-lens batchtopk fused": lambda: sae_lens_step(x, d_sae, k, "batchtopk", True, False),
    }


def measure(x: Tensor, d_sae: int, k: int, repeats: int) -> dict[str, float]:
    """Median milliseconds by name; the floor's are taken before each step, as a machine's speed drifts in such a run."""
    product, floors, times = floor(x, d_sae), [], {}
    for name, make in steps(x, d_sae, k).items():
        floors.append(median_ms(product, repeats, x.device))
        times[name] = median_ms(make(), repeats, x.device)
    return {"floor": statistics.median(floors)} | times


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"n": 2048, "d_in": 640, "d_sae": 8192, "k": 32, "threads": 1, "repeats": 9}
    for name, default in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def main() -> None:
    """Measure one after the other and print the line."""
    args = parsed()
    device = torch.device(args.device)
    if device.type == "cpu":  # else sparsify's decoder needs a GPU wherever triton is installed
        os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    x = torch.randn(args.n, args.d_in, device=device)
    with contextlib.redirect_stdout(sys.stderr):  # the libraries print
        times = measure(x, args.d_sae, args.k, args.repeats)
    print(json.dumps({name: round(ms, 2) for name, ms in times.items()}))


if __name__ == "__main__":
    main()
