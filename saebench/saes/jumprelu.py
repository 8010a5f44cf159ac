"""JumpReLU: a threshold per latent, trained through a straight-through estimator (Rajamanoharan et al. 2024, arXiv 2407.14435).

    z_i = pre_i if pre_i > theta_i else 0 (theta > 0);  loss = mean of |x - x_hat|^2 / d_in + l0 * penalty
    penalty = mean L0 / d_in, or (mean L0 / target_l0 - 1)^2 with sae.target_l0 (their appendix on fixed sparsity)
The threshold itself is the parameter, not its logarithm. With the rectangle K of unit width, bandwidth e and
u = (pre_i - theta_i) / e: d z_i / d theta_i = -(theta_i / e) K(u) and d H / d theta_i = -(1 / e) K(u).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from saebench.sae_configs import JumpReLUConfig
from saebench.saes.base import SAE, Stats, Step
from saebench.sparse import SparseLatents


class _Jump(torch.autograd.Function):
    """pre * H(pre - theta) and H(pre - theta), with the straight-through gradients in theta."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        gate = pre > theta  # [n, d_sae]
        ctx.save_for_backward(pre, theta)
        ctx.bandwidth = bandwidth
        return torch.where(gate, pre, 0.0), gate.to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        pre, theta = ctx.saved_tensors
        near = ((pre - theta).abs() < ctx.bandwidth / 2).to(pre.dtype) / ctx.bandwidth  # K(u) / e, [n, d_sae]
        grad_theta = -(near * (theta * grads[0] + grads[1])).sum(0)  # [d_sae]
        return torch.where(pre > theta, grads[0], 0.0), grad_theta, None


class JumpReLU(SAE):
    """A latent is active above its own threshold; trained dense."""

    cfg: JumpReLUConfig
    dense = True

    def __init__(self, cfg: JumpReLUConfig, stats: Stats, seed: int) -> None:
        super().__init__(cfg, stats, seed)
        self.theta = nn.Parameter(torch.full((cfg.d_sae,), cfg.threshold))

    def lr_factors(self) -> dict[str, float]:
        return {"theta": self.cfg.threshold_lr}

    def acts(self, x: Tensor) -> Tensor:
        pre = self.pre_acts(x)
        return torch.where(pre > self.positive_theta(), pre, 0.0)

    def positive_theta(self) -> Tensor:
        """Thresholds [d_sae], kept from going below 0 (the gradient still flows)."""
        return self.theta + (self.theta.relu() - self.theta).detach()

    def own_rule(self, acts: Tensor, k: int | None = None, mode: str | None = None) -> SparseLatents:
        return SparseLatents.from_dense(acts)

    def loss(self, x: Tensor, factor: float | Tensor) -> Step:
        z, gate = _Jump.apply(self.pre_acts(x), self.positive_theta(), self.cfg.bandwidth)  # pyright: ignore[reportGeneralTypeIssues]
        x_hat = linear(z, self.W_dec.T, self.b_dec)  # [n, d_in]
        loss = (x - x_hat).square().mean() + self.cfg.l0 * factor * self.penalty(gate.sum(1).mean())
        l0 = gate.detach().sum(1).mean()
        return Step(loss, x_hat.detach(), (z.detach() > 0).any(0), l0)

    def penalty(self, l0: Tensor) -> Tensor:
        """The L0 penalty for a mean L0."""
        if self.cfg.target_l0 is None:
            return l0 / self.d_in
        return (self.world.mean(l0) / self.cfg.target_l0 - 1).square()
