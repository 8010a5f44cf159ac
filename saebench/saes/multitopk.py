"""Multi-TopK: TopK that also stands being used with more latents (Gao et al. 2024, arXiv 2406.04093, section A on Multi-TopK).

    loss = mean over tokens of (|x - x_hat_k|^2 + wide_weight |x - x_hat_wide|^2) / d_in,  wide = wide_multiple * k
Theirs is L(k) + L(4k) / 8. Inference keeps k; the training log's FVU and L0, which latents count as fired, and AuxK's residual
are those of the wide selection.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saebench.sae_configs import MultiTopKConfig
from saebench.saes.base import SAE, Step
from saebench.select import ranked_latents, topk_latents
from saebench.sparse import SparseLatents


class MultiTopK(SAE):
    """k latents per token at inference; two levels, k and wide_multiple * k, in training."""

    cfg: MultiTopKConfig
    modes = ("topk",)

    def own_rule(self, acts: Tensor, k: int | None = None, mode: str | None = None) -> SparseLatents:
        return topk_latents(acts, k or self.cfg.k)

    def loss(self, x: Tensor, factor: float) -> Step:
        k = self.knob(self.cfg.k, factor)
        latents = ranked_latents(self.scores(x), min(self.d_sae, self.cfg.wide_multiple * k))
        starts = latents.offsets[:-1, None] + latents.offsets.new_tensor([0, k])  # [n, 2]
        segments = torch.cat([starts.reshape(-1), latents.offsets[-1:]])
        return self.nested_step(x, latents, segments, x.new_tensor([1.0, self.cfg.wide_weight]) / self.d_in)
