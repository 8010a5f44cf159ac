"""HierarchicalTopK: one SAE for every sparsity budget (Balagansky et al. 2025, arXiv 2505.24473).

Each token keeps its K = k largest latents, falling; a budget j uses the first j of them:
    loss = mean over budgets j in J and tokens of w_j |x - x_hat_j|^2 / d_in,  x_hat_j = b_dec + sum_{r <= j} z_(r) W_dec[i_(r)]
The weights w have mean 1: all 1 (the paper's), in the proportions given, or relative: w_j in proportion to 1 / e_j, where e_j is
a running mean of budget j's error. The relative loss has the gradient of mean_j log e_j, scaled: a hundredth of each budget's own
error counts the same, whatever its size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saebench.parallel import World
from saebench.sae_configs import HierarchicalConfig
from saebench.saes.base import SAE, Stats, Step
from saebench.select import ranked_latents, topk_latents
from saebench.sparse import SparseLatents

ERROR_DECAY = 0.9  # of the running mean of a view's error, which starts at 1, the variance of normalised activations


class Hierarchical(SAE):
    """K latents per token, one level per budget."""

    cfg: HierarchicalConfig
    modes = ("topk",)

    def __init__(self, cfg: HierarchicalConfig, stats: Stats, seed: int) -> None:
        super().__init__(cfg, stats, seed)
        self.budgets = cfg.budget_list()
        self.starts: Tensor
        self.register_buffer("starts", torch.tensor([0, *self.budgets]), persistent=False)  # [L + 1]
        self.errors: Tensor | None
        self.register_buffer("errors", torch.ones(len(self.budgets)) if cfg.weights == "relative" else None)

    def own_rule(self, acts: Tensor, k: int | None = None, mode: str | None = None) -> SparseLatents:
        return topk_latents(acts, k or self.cfg.k)

    def loss(self, x: Tensor, factor: float) -> Step:
        k = self.knob(self.cfg.k, factor)
        n_levels = sum(j < k for j in self.budgets) + 1
        latents = ranked_latents(self.scores(x), k)
        starts = latents.offsets[:-1, None] + self.starts[:n_levels]  # [n, L]
        segments = torch.cat([starts.reshape(-1), latents.offsets[-1:]])
        errors = None if self.errors is None else self.errors[:n_levels]
        step = self.nested_step(x, latents, segments, level_weights(self.cfg, n_levels, errors, x))
        move_errors(errors, step.errors, self.world)
        return step


def level_weights(cfg: HierarchicalConfig, n_levels: int, errors: Tensor | None, x: Tensor) -> Tensor:
    """What the squared errors of x [n, d_in] at the first n_levels budgets count: [L], their sum 1 / d_in.

    Of views with running `errors` [..., L] the same in that shape.
    """
    if errors is not None:
        weights = 1 / errors.to(x.dtype)
    elif cfg.weights == "equal":
        return x.new_full((n_levels,), 1 / (n_levels * x.shape[1]))
    else:
        weights = x.new_tensor(cfg.weight_list()[:n_levels])
    return weights / (weights.sum() * x.shape[1])


def move_errors(running: Tensor | None, errors: Tensor | None, world: World) -> None:
    """Move the running errors, if they are kept, towards those of a step on all ranks."""
    if running is not None:
        assert errors is not None
        running.lerp_(world.mean(errors).to(running.dtype), 1 - ERROR_DECAY)
