"""Held-out normalised MSE of sparsify's and SAELens' SAEs trained on activations that tests/bench/quality.py wrote.

    python -m tests.peers.quality FOLDER --library sparsify --variant topk --d-sae 2048 --k 32 --lr 0.004 --seed 0

Run by a Python that has the peers. FOLDER holds batches.npy [steps, n, d_in] and heldout.npy [tokens, d_in], float32 and
normalised. Prints one JSON line. Each library starts from its own initialisation and takes its own step; the learning rate
follows the same schedule as ours (rates.npy [steps], multiples of --lr) under Adam with the same betas. No latent is dead for
long enough that an AuxK would begin.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.peers.saelens import trainer, training_sae

Coder = tuple[Callable[[Tensor, float], None], Callable[[Tensor], Tensor]]  # a training step at a rate; reconstruction


def sparsify_coder(x: Tensor, d_sae: int, k: int, betas: tuple[float, float]) -> Coder:
    """sparsify's TopK, in the order of its Trainer."""
    from sparsify import SparseCoder, SparseCoderConfig  # pyright: ignore[reportMissingImports]

    coder = SparseCoder(x.shape[1], SparseCoderConfig(num_latents=d_sae, k=k), dtype=torch.float32)
    adam = torch.optim.Adam(coder.parameters(), lr=1.0, betas=betas)

    def step(batch: Tensor, lr: float) -> None:
        adam.param_groups[0]["lr"] = lr
        coder.set_decoder_norm_to_unit_norm()
        coder(batch).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()

    with torch.no_grad():
        coder.b_dec.copy_(x.mean(0))
    return step, lambda batch: coder(batch).sae_out


def sae_lens_coder(x: Tensor, d_sae: int, k: int, betas: tuple[float, float], variant: str, steps: int) -> Coder:
    """SAELens' TopK or BatchTopK with its trainer's step; BatchTopK selects in the batch when it reconstructs, too."""
    sae = training_sae(variant, d_in=x.shape[1], d_sae=d_sae, k=k)
    mine = trainer(
        sae, total_training_samples=steps * len(x), train_batch_size_samples=len(x), lr=1.0, lr_end=1.0,
        adam_beta1=betas[0], adam_beta2=betas[1],
    )  # fmt: skip

    def step(batch: Tensor, lr: float) -> None:
        mine.optimizer.param_groups[0]["lr"] = lr
        mine.step(batch)
        mine.n_training_steps += 1

    return step, lambda batch: sae.decode(sae.encode(batch))


def main() -> None:
    """Train one SAE and print its held-out normalised MSE."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--library", choices=("sparsify", "sae-lens"), required=True)
    parser.add_argument("--variant", choices=("topk", "batchtopk"), required=True)
    for name in ("d-sae", "k", "seed", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--betas", type=float, nargs=2, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    batches = np.load(args.folder / "batches.npy", mmap_mode="r")  # [steps, n, d_in]
    rates = np.load(args.folder / "rates.npy")  # [steps]
    heldout = torch.from_numpy(np.load(args.folder / "heldout.npy"))  # [tokens, d_in]
    first = torch.from_numpy(batches[0].copy())
    if args.library == "sparsify":
        step, reconstruct = sparsify_coder(first, args.d_sae, args.k, tuple(args.betas))
    else:
        step, reconstruct = sae_lens_coder(first, args.d_sae, args.k, tuple(args.betas), args.variant, len(batches))
    for i, rate in enumerate(rates):
        step(torch.from_numpy(batches[i].copy()), float(args.lr * rate))
        if i % 50 == 0:
            print(f"{args.library} {args.variant}: step {i} of {len(rates)}", file=sys.stderr, flush=True)
    with torch.no_grad():
        error = sum(float((part - reconstruct(part)).double().square().sum()) for part in heldout.split(2048))
    print(json.dumps({"nmse": error / float(heldout.double().square().sum())}))


if __name__ == "__main__":
    main()
