"""Matryoshka: nested dictionaries over BatchTopK (Bussmann et al. 2025, arXiv 2503.17547; progressive coding, paper A).

One BatchTopK selection over all latents; the prefix m of the dictionary uses its kept latents below m:
    loss = mean over prefixes m and tokens of |x - x_hat_m|^2 / d_in,  x_hat_m = b_dec + sum_{i < m} z_i W_dec[i]
Every prefix has equal weight 1 / L (a mean, not the sum that other codes take); the bias is in every level. With
sae.prefix_sampling=random each step draws its prefixes anew, the last always d_sae.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saebench.sae_configs import MatryoshkaConfig
from saebench.saes.base import SAE, Stats, Step
from saebench.saes.batchtopk import UNSET, batch_rule, moved
from saebench.select import batch_topk_latents
from saebench.sparse import SparseLatents


class Matryoshka(SAE):
    """n * k latents per batch, one level per dictionary prefix."""

    cfg: MatryoshkaConfig
    modes = ("threshold", "batch")

    def __init__(self, cfg: MatryoshkaConfig, stats: Stats, seed: int) -> None:
        super().__init__(cfg, stats, seed)
        self.threshold: Tensor
        self.register_buffer("threshold", torch.tensor(UNSET))
        self.prefixes = list(cfg.prefixes or [cfg.d_sae])
        self.starts: Tensor
        self.register_buffer("starts", torch.tensor([0, *self.prefixes[:-1]]), persistent=False)  # [L]
        self.generator = torch.Generator().manual_seed(seed)

    def own_rule(self, acts: Tensor, k: int | None = None, mode: str | None = None) -> SparseLatents:
        return batch_rule(acts, self.threshold, self.cfg.k, k, mode)

    def loss(self, x: Tensor, factor: float) -> Step:
        latents = batch_topk_latents(self.scores(x), self.knob(self.cfg.k, factor), self.world)
        self.threshold.copy_(moved(self.threshold, latents.values, self.cfg.threshold_decay, self.world))
        if self.cfg.prefix_sampling == "random":
            self.draw()
        weight = 1 / (len(self.prefixes) * self.d_in)
        return self.nested_step(x, latents, self.segments(latents), x.new_full((len(self.prefixes),), weight))

    def draw(self) -> None:
        """Draw the step's prefixes, all but the last; equal ones make an empty level, which counts as the one before.

        A prefix m has probability in proportion to sqrt(m + 1) - sqrt(m), the density of a squared uniform number (the
        authors' code of arXiv 2503.17547).
        """
        lengths = torch.rand(len(self.prefixes) - 1, generator=self.generator).square_().mul_(self.d_sae).long() + 1
        self.starts[1:] = lengths.clamp_(max=self.d_sae).sort().values.to(self.starts.device, non_blocking=True)

    def segments(self, latents: SparseLatents) -> Tensor:
        """Boundaries of the prefixes' increments in rows that rise by latent: [n * L + 1]."""
        rows = torch.arange(latents.rows, device=self.starts.device) * self.d_sae
        keys = latents.row_of_entry * self.d_sae + latents.indices  # [nnz], rising
        begins = torch.searchsorted(keys, (rows.unsqueeze(1) + self.starts).reshape(-1))
        return torch.cat([begins, latents.offsets[-1:]])
