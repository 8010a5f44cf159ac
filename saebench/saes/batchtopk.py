"""BatchTopK: the batch of n tokens keeps its n * k largest latents (Bussmann, Leask, Nanda 2024, arXiv 2412.06410).

training: z = the n k largest of relu(pre_acts), over tokens and latents together
inference: z_i = f_i if f_i > theta; theta is the running mean of each batch's smallest kept positive activation,
started from the first one
"""

from __future__ import annotations

import torch
from torch import Tensor

from saebench.checks import InputError
from saebench.parallel import SOLO, World
from saebench.sae_configs import BatchTopKConfig
from saebench.saes.base import SAE, Stats, Step
from saebench.select import batch_topk_latents, threshold_latents
from saebench.sparse import SparseLatents

UNSET = -1.0  # the threshold before any batch was seen


class BatchTopK(SAE):
    """n * k latents per batch, one level."""

    cfg: BatchTopKConfig
    modes = ("threshold", "batch")

    def __init__(self, cfg: BatchTopKConfig, stats: Stats, seed: int) -> None:
        super().__init__(cfg, stats, seed)
        self.threshold: Tensor
        self.register_buffer("threshold", torch.tensor(UNSET))

    def own_rule(self, acts: Tensor, k: int | None = None, mode: str | None = None) -> SparseLatents:
        return batch_rule(acts, self.threshold, self.cfg.k, k, mode)

    def loss(self, x: Tensor, factor: float) -> Step:
        latents = batch_topk_latents(self.scores(x), self.knob(self.cfg.k, factor), self.world)
        self.threshold.copy_(moved(self.threshold, latents.values, self.cfg.threshold_decay, self.world))
        return self.nested_step(x, latents, latents.offsets, x.new_full((1,), 1 / self.d_in))


def batch_rule(acts: Tensor, threshold: Tensor, own_k: int, k: int | None, mode: str | None) -> SparseLatents:
    """Inference of the BatchTopK family: by its threshold, or (mode batch, or a k given) the n * k largest of the batch."""
    if mode == "batch" or k is not None:
        return batch_topk_latents(acts, k or own_k)
    if threshold < 0:
        raise InputError(
            "sae.threshold: this SAE has seen no training batch, so it has no threshold yet; train it first"
        )
    return threshold_latents(acts, threshold)


def moved(threshold: Tensor, kept: Tensor, decay: float, world: World = SOLO) -> Tensor:
    """The threshold [] moved towards the smallest positive of the batch's kept values [nnz]; a batch without one is ignored."""
    positive = torch.where(kept > 0, kept, torch.inf)
    smallest = world.least(positive.amin() if len(kept) > 0 else kept.new_tensor(torch.inf))
    started = torch.where(threshold < 0, smallest, torch.lerp(smallest, threshold, decay))
    return torch.where(smallest.isfinite(), started, threshold)
