"""Lattice: one SAE for every dictionary size and every sparsity budget, nested in both directions at once.

The view (m, j) of a token uses the j largest of its first m latents. With prefixes m of the dictionary and budgets j:
    loss = mean over prefixes m, budgets j in J and tokens of |x - x_hat_mj|^2 / d_in
    x_hat_mj = b_dec + sum of z_i W_dec[i] over the j largest z_i = relu(pre_acts_i), i < m
A mean with equal weights: nothing is summed over prefixes or budgets, so that the loss has the scale of TopK's. A prefix shorter
than j uses all its latents. With sae.selection=batch the view uses the n j largest of all n tokens' first m latents, as in
BatchTopK. Each step trains on sae.per_step of the prefixes, d_sae always among them and the others drawn
without replacement (prefix_sampling fixed) or anew from Matryoshka's law (random); their mean is the loss of that step.
sae.weights weighs budgets, or with `relative` every view (m, j) by 1 / its running error, as HierarchicalTopK's (see there).
sae.sort_every puts the latents in order of falling energy E[z^2] every so many steps, with their optimiser state, so that the
prefixes hold those that count most.

With one prefix this is HierarchicalTopK (arXiv 2505.24473), with one prefix and one budget TopK or BatchTopK; with one budget it
is a Matryoshka SAE (arXiv 2503.17547) whose prefixes select for themselves. A (token, prefix) is a row of the nested loss; its
top k is merged from the winners of the prefixes' increments, so that each pre-activation is looked at once.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from saebench.nested import segment_sums
from saebench.parallel import SOLO, World
from saebench.sae_configs import LatticeConfig
from saebench.saes.base import SAE, Stats, Step
from saebench.saes.batchtopk import UNSET, batch_rule, moved
from saebench.saes.hierarchical import level_weights, move_errors
from saebench.select import active, flat_topk, offers, row_topk, taken_of, topk_latents
from saebench.sparse import SparseLatents

ENERGY_DECAY = 0.9  # of the running mean by which latents are put in order


class Lattice(SAE):
    """K = k latents per token and prefix, one level per budget.

    `modes` topk, or with sae.selection=batch threshold (running as BatchTopK's, of the full dictionary at K) and batch.
    """

    cfg: LatticeConfig
    modes = ("topk",)

    def __init__(self, cfg: LatticeConfig, stats: Stats, seed: int) -> None:
        super().__init__(cfg, stats, seed)
        self.budgets, self.prefixes = cfg.budget_list(), list(cfg.prefixes or [cfg.d_sae])
        self.threshold: Tensor
        self.register_buffer("threshold", torch.tensor(UNSET))
        if cfg.selection == "batch":
            self.modes = ("threshold", "batch")
        self.generator = torch.Generator().manual_seed(seed)
        self.errors: Tensor | None
        views = torch.ones(len(self.prefixes), len(self.budgets)) if cfg.weights == "relative" else None
        self.register_buffer("errors", views)
        self.energy: Tensor | None  # running means of z^2
        self.register_buffer("energy", torch.zeros(cfg.d_sae) if cfg.sort_every else None)

    def own_rule(self, acts: Tensor, k: int | None = None, mode: str | None = None) -> SparseLatents:
        if self.cfg.selection == "batch":
            return batch_rule(acts, self.threshold, self.cfg.k, k, mode)
        return topk_latents(acts, k or self.cfg.k)

    def loss(self, x: Tensor, factor: float) -> Step:
        k = self.knob(self.cfg.k, factor)
        budgets = [*(j for j in self.budgets if j < k), k]
        prefixes = self.draw()
        if self.cfg.selection == "batch":
            latents, segments = batch_levels(self.scores(x), prefixes, budgets, self.world)  # n rows per prefix
        else:
            latents, segments = row_levels(self.scores(x), prefixes, budgets)
        seen = [self.prefixes.index(m) for m in prefixes] if self.errors is not None else []
        errors = None if self.errors is None else self.errors[seen, : len(budgets)]
        weights = level_weights(self.cfg, len(budgets), errors, x)
        step = self.nested_step(x.repeat(len(prefixes), 1), latents, segments, weights)
        if self.errors is not None and errors is not None:
            move_errors(errors, step.errors, self.world)
            self.errors[seen, : len(budgets)] = errors
        whole = latents.values[latents.offsets[-len(x) - 1] :]  # of the full dictionary
        if self.cfg.selection == "batch":
            self.threshold.copy_(moved(self.threshold, whole, self.cfg.threshold_decay, self.world))
        if self.energy is not None:
            self.energy.lerp_(self.world.mean(energies(latents, len(x))), 1 - ENERGY_DECAY)
        return step._replace(x_hat=step.x_hat[-len(x) :], l0=(whole > 0).sum() / len(x))

    def order_after(self, step: int) -> Tensor | None:
        if self.energy is None or step % self.cfg.sort_every:
            return None
        order = self.energy.argsort(descending=True, stable=True)
        self.energy.copy_(self.energy[order])
        return order

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


def energies(latents: SparseLatents, n: int) -> Tensor:
    """[d_sae]: the mean of z^2 over the n tokens of the last n rows; a sum in a fixed order, so the same on every run."""
    by = latents.by_latent
    values = latents.values.detach()[by.order] * (by.rows >= latents.rows - n)  # [nnz] by latent
    return segment_sums(values.square(), by.offsets) / n


def row_levels(acts: Tensor, prefixes: list[int], budgets: list[int]) -> tuple[SparseLatents, Tensor]:
    """The largest latents of each token in each prefix, and where the budgets' increments begin: [rows * L + 1].

    `prefix_latents` with k the last of the rising budgets; a level is empty where a prefix is shorter than its budget.
    """
    latents = prefix_latents(acts, prefixes, budgets[-1])
    starts = latents.offsets[:-1, None] + torch.tensor([0, *budgets[:-1]], device=acts.device)  # [rows, L]
    starts = torch.minimum(starts, latents.offsets[1:, None])
    return latents, torch.cat([starts.reshape(-1), latents.offsets[-1:]])


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


def batch_levels(
    acts: Tensor, prefixes: list[int], budgets: list[int], world: World = SOLO
) -> tuple[SparseLatents, Tensor]:
    """As `row_levels`, but selecting in the batch: level l of prefix m is its n budgets[l] largest latents of all tokens,

    less the levels before. A row has as many entries in each level as it has latents among those. The batch is that of all
    ranks, and acts [n, d_sae] the rows of this one.
    """
    n, d_sae = acts.shape
    n_levels, parts = len(budgets), []
    for place, (values, flat, edges) in enumerate(batch_winners(acts, prefixes, budgets, world)):
        level = torch.searchsorted(edges, torch.arange(len(flat), device=acts.device), right=True)
        bags, order = ((place * n + flat // d_sae) * n_levels + level).sort(stable=True)
        parts.append((bags, flat[order] % d_sae, values[order]))
    bags, indices, chosen = (torch.cat(part) for part in zip(*parts, strict=True))
    bounds = torch.arange(len(prefixes) * n * n_levels + 1, device=acts.device)
    segments = torch.searchsorted(bags, bounds)
    return SparseLatents(segments[::n_levels], indices, active(chosen), d_sae), segments


def batch_winners(
    acts: Tensor, prefixes: list[int], budgets: list[int], world: World
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each prefix its n budgets[-1] largest values, falling, their places row * d_sae + latent, and where levels end [L]."""
    most, edges = len(acts) * budgets[-1], [len(acts) * world.size * j for j in budgets]
    if world.size == 1:
        ends = torch.tensor(edges, device=acts.device)
        return [(values, flat, ends) for values, flat in prefix_winners(acts, prefixes, most)]
    found, taken = [], []
    for offered in offers(most, world.size * most):
        found = prefix_winners(acts, prefixes, offered)
        taken = [taken_of(values, edges, world) for values, _ in found]  # [size, L] of each prefix
        counts = torch.stack([t[:, -1].max() for t in taken]).tolist()
        if all(count < len(values) or len(values) < offered for count, (values, _) in zip(counts, found, strict=True)):
            break
    mine = [t[world.rank] for t in taken]
    return [(v[: ends[-1]], flat[: ends[-1]], ends) for (v, flat), ends in zip(found, mine, strict=True)]


def prefix_winners(acts: Tensor, prefixes: list[int], most: int) -> list[tuple[Tensor, Tensor]]:
    """For each rising prefix m the `most` largest of acts[:, :m], or all, falling, and their places row * d_sae + latent."""
    n, d_sae = acts.shape
    values, flat = acts.new_empty(0), torch.empty(0, dtype=torch.int64, device=acts.device)
    found = []
    for start, stop in pairwise([0, *prefixes]):
        if stop > start:
            width = stop - start
            new_values, at = flat_topk(acts[:, start:stop], min(most, n * width))
            places = torch.cat([flat, at // width * d_sae + at % width + start])
            values, order = torch.cat([values, new_values]).sort(descending=True, stable=True)
            values, flat = values[:most], places[order[:most]]
        found.append((values, flat))
    return found
