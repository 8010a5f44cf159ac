"""HierarchicalTopK: one SAE for every sparsity budget (Balagansky et al. 2025, arXiv 2505.24473).

Each token keeps its K = k largest latents, falling; a budget j uses the first j of them:
    loss = mean over budgets j in J and tokens of |x - x_hat_j|^2 / d_in,  x_hat_j = b_dec + sum_{r <= j} z_(r) W_dec[i_(r)]
"""

from __future__ import annotations

import torch
from torch import Tensor

from saebench.sae_configs import HierarchicalConfig
from saebench.saes.base import SAE, Stats, Step
from saebench.select import ranked_latents, topk_latents
from saebench.sparse import SparseLatents


class Hierarchical(SAE):
    """K latents per token, one level per budget."""

    cfg: HierarchicalConfig
    modes = ("topk",)

    def __init__(self, cfg: HierarchicalConfig, stats: Stats, seed: int) -> None:
        super().__init__(cfg, stats, seed)
        self.budgets = cfg.budget_list()
        self.starts: Tensor
        self.register_buffer("starts", torch.tensor([0, *self.budgets]), persistent=False)  # [L + 1]

    def own_rule(self, acts: Tensor, k: int | None = None, mode: str | None = None) -> SparseLatents:
        return topk_latents(acts, k or self.cfg.k)

    def loss(self, x: Tensor, factor: float) -> Step:
        k = self.knob(self.cfg.k, factor)
        n_levels = sum(j < k for j in self.budgets) + 1
        latents = ranked_latents(self.scores(x), k)
        starts = latents.offsets[:-1, None] + self.starts[:n_levels]  # [n, L]
        segments = torch.cat([starts.reshape(-1), latents.offsets[-1:]])
        return self.nested_step(x, latents, segments, x.new_full((n_levels,), 1 / (n_levels * self.d_in)))
