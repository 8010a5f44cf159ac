"""TopK: each token keeps its k largest latents (Gao et al. 2024). "Vanilla" in paper A.

z = TopK_k(relu(pre_acts));  loss = mean over tokens of |x - x_hat|^2 / d_in  (+ AuxK)
"""

from __future__ import annotations

from torch import Tensor

from saebench.sae_configs import TopKConfig
from saebench.saes.base import SAE, Step
from saebench.select import topk_latents
from saebench.sparse import SparseLatents


class TopK(SAE):
    """k latents per token, one level."""

    cfg: TopKConfig
    modes = ("topk",)

    def own_rule(self, acts: Tensor, k: int | None = None, mode: str | None = None) -> SparseLatents:
        return topk_latents(acts, k or self.cfg.k)

    def loss(self, x: Tensor, factor: float) -> Step:
        latents = topk_latents(self.scores(x), self.knob(self.cfg.k, factor))
        return self.nested_step(x, latents, latents.offsets, x.new_full((1,), 1 / self.d_in))
