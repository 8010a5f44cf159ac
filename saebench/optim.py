"""Adam with decoder rows of unit norm: the gradient's part along a row is removed before the step, the norm restored after."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saebench.config import TrainConfig


def adam(module: nn.Module, factors: dict[str, float], cfg: TrainConfig) -> torch.optim.Adam:
    """torch's fused Adam; a parameter named in `factors` learns at that multiple of the learning rate (`set_lr`)."""
    groups = [{"params": [p], "factor": factors.get(name, 1.0)} for name, p in module.named_parameters()]
    return torch.optim.Adam(groups, betas=(cfg.beta1, cfg.beta2), fused=True)


def set_lr(optimizer: torch.optim.Adam, lr: float) -> None:
    """Set the learning rate of every group, times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]


@torch.no_grad()
def remove_parallel(grad: Tensor, rows: Tensor) -> None:
    """Remove, in place, from each gradient row its part along the unit row of `rows`; both [d_sae, d_in]."""
    along = torch.linalg.vecdot(grad, rows).unsqueeze(1)  # [d_sae, 1]
    grad.addcmul_(rows, along, value=-1)


@torch.no_grad()
def normalise_rows(rows: Tensor) -> None:
    """Scale, in place, each row [d_sae, d_in] to unit norm; a zero row stays zero."""
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    rows.div_(torch.where(norm > 0, norm, 1.0))
