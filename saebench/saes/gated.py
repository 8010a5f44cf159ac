"""Gated SAE: whether a latent fires and how much are decided apart (Rajamanoharan et al. 2024, arXiv 2404.16014).

    gate_i = (x_n - b_dec) W_enc + b_enc;  mag_i = exp(r_mag_i) (x_n - b_dec) W_enc + b_mag_i;  z_i = mag_i if both are above 0
    loss = mean over tokens of (|x - x_hat|^2 + l1 sum_i relu(gate_i) + |x - x_hat_gate|^2) / d_in
x_hat_gate is decoded from relu(gate) by a frozen copy of the decoder, so that the gate learns from its own reconstruction
(their section 3.2). With sae.target_l0 the coefficient is steered as in relu.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from saebench.sae_configs import GatedConfig
from saebench.saes.base import SAE, Stats, Step
from saebench.saes.relu import steered
from saebench.sparse import SparseLatents


class Gated(SAE):
    """A latent is active where its gate is open and its magnitude positive; trained dense."""

    cfg: GatedConfig
    dense = True

    def __init__(self, cfg: GatedConfig, stats: Stats, seed: int) -> None:
        super().__init__(cfg, stats, seed)
        self.r_mag = nn.Parameter(torch.zeros(cfg.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(cfg.d_sae))
        self.coefficient: Tensor
        self.register_buffer("coefficient", torch.tensor(cfg.l1))

    def gate_and_magnitude(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """gate and mag of normalised x: [n, d_sae] each, from one product."""
        shared = linear(x - self.b_dec, self.W_enc.T)
        return shared + self.b_enc, shared * self.r_mag.exp() + self.b_mag

    def acts(self, x: Tensor) -> Tensor:
        gate, magnitude = self.gate_and_magnitude(x)
        return torch.where(gate > 0, magnitude.relu(), 0.0)

    def own_rule(self, acts: Tensor, k: int | None = None, mode: str | None = None) -> SparseLatents:
        return SparseLatents.from_dense(acts)

    def loss(self, x: Tensor, factor: float | Tensor) -> Step:
        gate, magnitude = self.gate_and_magnitude(x)
        z, opened = torch.where(gate > 0, magnitude.relu(), 0.0), gate.relu()  # [n, d_sae]
        x_hat = linear(z, self.W_dec.T, self.b_dec)  # [n, d_in]
        x_hat_gate = linear(opened, self.W_dec.detach().T, self.b_dec.detach())
        penalty = self.coefficient * factor * opened.sum(1).mean() / self.d_in
        loss = (x - x_hat).square().mean() + penalty + (x - x_hat_gate).square().mean()
        active = z.detach() > 0  # [n, d_sae]
        l0 = active.sum() / len(x)
        self.coefficient.copy_(steered(self.coefficient, l0, self.cfg.target_l0, self.world))
        return Step(loss, x_hat.detach(), active.any(0), l0)
