"""Lattice: one SAE for every dictionary size and every sparsity budget, nested in both directions at once.

The view (m, j) of a token uses the j largest of its first m latents. With prefixes m of the dictionary and budgets j:
    loss = mean over prefixes m, budgets j in J and tokens of |x - x_hat_mj|^2 / d_in
    x_hat_mj = b_dec + sum of z_i W_dec[i] over the j largest z_i = relu(pre_acts_i), i < m
A mean with equal weights: nothing is summed over prefixes or budgets, so that the loss has the scale of TopK's. A prefix shorter
than j uses all its latents. Each step trains on sae.per_step of the prefixes, d_sae always among them and the others drawn
without replacement (prefix_sampling fixed) or anew from Matryoshka's law (random); their mean is the loss of that step.

With one prefix this is HierarchicalTopK (arXiv 2505.24473), with one budget a Matryoshka SAE over TopK (arXiv 2503.17547 is over
BatchTopK). A (token, prefix) is a row of the nested loss; its top k is merged from the winners of the prefixes' increments,
so that each pre-activation is looked at once.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from saebench.sae_configs import LatticeConfig
from saebench.saes.base import SAE, Stats, Step
from saebench.select import active, row_topk, topk_latents
from saebench.sparse import SparseLatents


class Lattice(SAE):
    """K = k latents per token and prefix, one level per budget."""

    cfg: LatticeConfig
    modes = ("topk",)

    def __init__(self, cfg: LatticeConfig, stats: Stats, seed: int) -> None:
        super().__init__(cfg, stats, seed)
        self.budgets, self.prefixes = cfg.budget_list(), list(cfg.prefixes or [cfg.d_sae])
        self.starts: Tensor
        self.register_buffer("starts", torch.tensor([0, *self.budgets]), persistent=False)  # [L + 1]
        self.generator = torch.Generator().manual_seed(seed)  # of the prefixes of a step

    def own_rule(self, acts: Tensor, k: int | None = None, mode: str | None = None) -> SparseLatents:
        return topk_latents(acts, k or self.cfg.k)

    def loss(self, x: Tensor, factor: float) -> Step:
        k = self.knob(self.cfg.k, factor)
        n_levels = sum(j < k for j in self.budgets) + 1
        prefixes = self.draw()
        latents = prefix_latents(self.scores(x), prefixes, k)  # n rows per prefix
        starts = latents.offsets[:-1, None] + self.starts[:n_levels]  # [rows, L]
        segments = torch.cat([torch.minimum(starts, latents.offsets[1:, None]).reshape(-1), latents.offsets[-1:]])
        weights = x.new_full((n_levels,), 1 / (n_levels * self.d_in))
        step = self.nested_step(x.repeat(len(prefixes), 1), latents, segments, weights)
        whole = latents.values[latents.offsets[-len(x) - 1] :]  # of the full dictionary
        return step._replace(x_hat=step.x_hat[-len(x) :], l0=(whole > 0).sum() / len(x))

    def draw(self) -> list[int]:
        """The prefixes of a step, rising, the last d_sae."""
        others = self.cfg.per_step - 1
        if self.cfg.prefix_sampling == "random":
            lengths = torch.rand(others, generator=self.generator).square_().mul_(self.d_sae).long() + 1
            chosen = lengths.clamp_(max=self.d_sae - 1).tolist()
        else:
            order = torch.randperm(len(self.prefixes) - 1, generator=self.generator)[:others]
            chosen = [self.prefixes[i] for i in order.tolist()]
        return [*sorted(chosen), self.d_sae]


def prefix_latents(acts: Tensor, prefixes: list[int], k: int) -> SparseLatents:
    """relu of the k largest of the first m latents of each token of acts [n, d_sae], for rising prefixes m; falling by value.

    len(prefixes) * n rows: all tokens in the first prefix, then all in the next. A prefix shorter than k gives rows of all its
    latents.
    """
    n, parts = len(acts), []
    values, indices = acts.new_empty(n, 0), torch.empty(n, 0, dtype=torch.int64, device=acts.device)
    for start, stop in pairwise([0, *prefixes]):
        if stop > start:
            new_values, new_indices = row_topk(acts[:, start:stop], min(k, stop - start))
            values, indices = torch.cat([values, new_values], 1), torch.cat([indices, new_indices + start], 1)
            values, order = values.sort(dim=1, descending=True, stable=True)
            values, indices = values[:, :k], indices.gather(1, order[:, :k])
        parts.append((values, indices))
    widths = torch.tensor([part.shape[1] for part, _ in parts], device=acts.device).repeat_interleave(n)  # [rows]
    offsets = torch.cat([widths.new_zeros(1), widths.cumsum(0)])
    flat = torch.cat([part.reshape(-1) for part, _ in parts])
    return SparseLatents(offsets, torch.cat([part.reshape(-1) for _, part in parts]), active(flat), acts.shape[1])
