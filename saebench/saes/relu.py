"""ReLU with an L1 penalty (Bricken et al. 2023): the SAE that the others are measured against.

    z = relu(pre_acts);  loss = mean over tokens of (|x - x_hat|^2 + l1 * sum_i z_i |W_dec_i|) / d_in
With sae.target_l0 the coefficient is steered: each step multiplies it by exp(STEER * clamp(L0 / target - 1, -1, 1)).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from saebench.parallel import World
from saebench.sae_configs import ReLUConfig
from saebench.saes.base import SAE, Stats, Step
from saebench.sparse import SparseLatents

STEER = 0.02


class ReLU(SAE):
    """Every positive latent is active; trained dense, as half of all latents fire at first."""

    cfg: ReLUConfig
    dense = True

    def __init__(self, cfg: ReLUConfig, stats: Stats, seed: int) -> None:
        super().__init__(cfg, stats, seed)
        self.coefficient: Tensor
        self.register_buffer("coefficient", torch.tensor(cfg.l1))

    def own_rule(self, acts: Tensor, k: int | None = None, mode: str | None = None) -> SparseLatents:
        return SparseLatents.from_dense(acts)

    def loss(self, x: Tensor, factor: float | Tensor) -> Step:
        z = self.pre_acts(x).relu()  # [n, d_sae]
        x_hat = linear(z, self.W_dec.T, self.b_dec)  # [n, d_in]
        norms = torch.linalg.vector_norm(self.W_dec, dim=1)  # [d_sae]
        penalty = self.coefficient * factor * (z @ norms).mean() / self.d_in
        loss = (x - x_hat).square().mean() + penalty
        active = z.detach() > 0  # [n, d_sae]
        l0 = active.sum() / len(x)
        self.coefficient.copy_(steered(self.coefficient, l0, self.cfg.target_l0, self.world))
        return Step(loss, x_hat.detach(), active.any(0), l0)


def steered(coefficient: Tensor, l0: Tensor, target_l0: float | None, world: World) -> Tensor:
    """The coefficient [] moved so that the mean L0 [] over all ranks approaches the target, if there is one."""
    if target_l0 is None:
        return coefficient
    return coefficient * (STEER * (world.mean(l0) / target_l0 - 1).clamp(-1, 1)).exp()
