"""The problem that the peer libraries and we train on for the comparison: shapes, initial tensors, batches and cases.

Both sides build it from here (the peers' Python in parity.py, ours in tests/test_peers.py), so this file imports only NumPy
and torch. Everything is drawn from `numpy.random.RandomState`, whose streams NumPy promises never to change (NEP 19), and is
float64; the initial tensors are rounded to float32, so that a fixture in float32 holds them exactly.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

D_IN, D_SAE, N, K = 36, 121, 256, 8
STEPS, LR = 50, 3e-3
PREFIXES = (30, 60, 121)
N_DEAD = 70  # the first latents, taken as dead where AuxK's values are compared
N_CAUSES = 60
PARAMETERS = ("W_enc", "W_dec", "b_enc", "b_dec")


class Case(NamedTuple):
    """One training run: the library, the variant by our name, and whether SAELens divides by the decoder's norms."""

    library: str
    variant: str
    rescale: bool = False


CASES = {
    "sparsify-topk": Case("sparsify", "topk"),
    "sae-lens-topk-plain": Case("sae-lens", "topk"),
    "sae-lens-topk": Case("sae-lens", "topk", rescale=True),
    "sae-lens-batchtopk": Case("sae-lens", "batchtopk", rescale=True),
    "sae-lens-matryoshka": Case("sae-lens", "matryoshka", rescale=True),
}


def batch(step: int) -> Tensor:
    """Activations of one step: sparse sums of fixed directions, plus noise and a mean: [N, D_IN]."""
    fixed, stream = np.random.RandomState(7), np.random.RandomState(1000 + step)
    directions = fixed.standard_normal((N_CAUSES, D_IN)) / D_IN**0.5
    mean = fixed.standard_normal(D_IN)
    codes = 2 * np.maximum(stream.standard_normal((N, N_CAUSES)) - 1, 0)  # [N, N_CAUSES]
    return torch.from_numpy(codes @ directions + mean + 0.05 * stream.standard_normal((N, D_IN)))


def batches() -> list[Tensor]:
    """The batch of every step."""
    return [batch(step) for step in range(STEPS)]


def initial() -> dict[str, Tensor]:
    """The tensors that training starts from: W_dec of unit rows, W_enc near its transpose, b_dec the first batch's mean."""
    stream = np.random.RandomState(3)
    W_dec = stream.standard_normal((D_SAE, D_IN))
    W_dec /= np.linalg.norm(W_dec, axis=1, keepdims=True)
    tensors = {
        "W_enc": W_dec.T + 0.02 * stream.standard_normal((D_IN, D_SAE)),
        "W_dec": W_dec,
        "b_enc": 0.05 * stream.standard_normal(D_SAE),
        "b_dec": batch(0).mean(0).numpy(),
    }
    return {name: torch.from_numpy(t).float().double() for name, t in tensors.items()}


def described() -> dict[str, float]:
    """What a fixture keeps of this recipe: the numbers above, and sums that move if the streams do."""
    sizes = {"d_in": D_IN, "d_sae": D_SAE, "n": N, "k": K, "steps": STEPS, "lr": LR, "n_dead": N_DEAD}
    return sizes | {"first_batch": batch(0).square().sum().item(), "last_batch": batch(STEPS - 1).square().sum().item()}
