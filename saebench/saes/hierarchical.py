"""HierarchicalTopK: one SAE for every sparsity budget (Balagansky et al. 2025, arXiv 2505.24473).

Each token keeps its K = k largest latents, falling; a budget j uses the first j of them:
    loss = mean over budgets j in J and tokens of |x - x_hat_j|^2 / d_in,  x_hat_j = b_dec + sum_{r <= j} z_(r) W_dec[i_(r)]
"""

from __future__ import annotations

import torch
from torch import Tensor

from saebench.sae_configs import HierarchicalConfig
from saebench.saes.base import SAE, Step
from saebench.select import topk_latents
from saebench.sparse import SparseLatents


class Hierarchical(SAE):
    """K latents per token, one level per budget."""

    cfg: HierarchicalConfig
    modes = ("topk",)

    def own_rule(self, acts: Tensor, k: int | None = None, mode: str | None = None) -> SparseLatents:
        return topk_latents(acts, k or self.cfg.k)

    def loss(self, x: Tensor, factor: float, dead: Tensor | None) -> Step:
        k = self.knob(self.cfg.k, factor)
        budgets = [j for j in self.cfg.budget_list() if j < k] + [k]
        with torch.no_grad():
            latents = topk_latents(self.acts(x), k)
        starts = torch.tensor([0, *budgets[:-1]], device=x.device)  # [L]
        segments = torch.cat([(latents.offsets[:-1, None] + starts).reshape(-1), latents.offsets[-1:]])
        return self.nested_step(x, latents, segments, x.new_full((len(budgets),), 1 / (len(budgets) * self.d_in)), dead)
