"""A view is how a trained SAE is used: which latents it may use, and how many of them are active.

Pruning, nesting and budgets are one thing: `View` names it, `latents_of` applies it to the candidate activations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from saebench.config import EvaluateConfig
from saebench.saes import SAE
from saebench.select import flat_topk, row_topk, threshold_latents, topk_latents
from saebench.sparse import SparseLatents


@dataclass(frozen=True)
class View:
    """One row of metrics.

    `kind` full, prefix, pruned or budget; `m` latents are kept: all, the first (prefix), or the best by `rule`. Order
    select_then_prune applies the SAE's own selection and drops what is not kept, so L0 falls; prune_then_select selects among
    the kept latents, `budget` per token. Mode topk: per token; batch: n * budget per batch; threshold: a global threshold.
    """

    kind: str
    m: int
    mode: str
    rule: str = ""
    order: str = ""
    budget: int | None = None

    def name(self) -> str:
        """A short label, unique among an SAE's views."""
        return "-".join(str(p) for p in (self.kind, self.rule, self.order, self.m, self.budget, self.mode) if p)


def own_k(sae: SAE) -> int | None:
    """The k of an SAE of the top-k family, else None."""
    return getattr(sae.cfg, "k", None)


def list_views(sae: SAE, cfg: EvaluateConfig) -> list[View]:
    """Every view of `sae` that `cfg` asks for: full, prefixes, pruned in both orders, budgets."""
    k = own_k(sae)
    views = [View("full", sae.d_sae, mode, budget=k) for mode in sae.modes]
    sizes = sorted({max(1, round(s * sae.d_sae)) for s in cfg.sizes} - {sae.d_sae})
    for m in sorted({*sizes, *prefixes_of(sae)}):
        views += ordered(View("prefix", m, sae.modes[0], budget=k), sae, cfg)
    for rule in cfg.rules:
        for m in sizes:
            views += ordered(View("pruned", m, sae.modes[0], rule, budget=k), sae, cfg)
    for j in cfg.budgets:
        if j <= sae.d_sae:
            views += [View("budget", sae.d_sae, mode, budget=j) for mode in ("topk", "threshold")]
    return views


def prefixes_of(sae: SAE) -> set[int]:
    """The prefixes shorter than d_sae that a Matryoshka SAE was trained with."""
    prefixes: list[int] = getattr(sae, "prefixes", [])
    return set(prefixes) - {sae.d_sae}


def ordered(view: View, sae: SAE, cfg: EvaluateConfig) -> list[View]:
    """The view in each order asked for, and with cfg.cross at every budget.

    Without k a latent's activity does not depend on the others and one order says all.
    """
    k = own_k(sae)
    select = View(view.kind, view.m, view.mode, view.rule, "select_then_prune", k)
    mode = "batch" if "batch" in sae.modes else "topk"
    budgets = [b for b in cfg.budgets if b <= view.m] if cfg.cross else []
    crossed = [View(view.kind, view.m, mode, view.rule, "prune_then_select", b) for b in budgets]
    if k is None:
        return [select, *crossed]
    views = [select] if "select_then_prune" in cfg.orders else []
    if "prune_then_select" in cfg.orders:
        scaled = {max(1, round(k * view.m / sae.d_sae))} if cfg.scale_k else set()
        budgets = sorted(b for b in {k, *scaled} if b <= view.m)
        views += [View(view.kind, view.m, mode, view.rule, "prune_then_select", b) for b in budgets]
    return list(dict.fromkeys([*views, *crossed]))


def kept_latents(view: View, sae: SAE, importance: dict[str, Tensor], seed: int) -> Tensor:
    """[d_sae] (bool): the latents that the view may use, given each latent's frequency, energy and decoder norm.

    Rule energy E[z^2], frequency, norm_energy E[z^2] |W_dec|^2 or decoder_norm: the m largest, ties in dictionary order; random;
    unsorted, or none (a prefix): the first m of the dictionary.
    """
    keep = torch.zeros(sae.d_sae, dtype=torch.bool)
    if view.rule in ("", "unsorted"):
        keep[: view.m] = True
        return keep
    if view.rule == "random":
        scores = torch.rand(sae.d_sae, generator=torch.Generator().manual_seed(seed))
    elif view.rule == "norm_energy":
        scores = importance["energy"] * importance["decoder_norm"].square()
    else:
        scores = importance[view.rule]
    keep[scores.argsort(descending=True, stable=True)[: view.m]] = True
    return keep


def latents_of(view: View, sae: SAE, acts: Tensor, keep: Tensor, threshold: float | None) -> SparseLatents:
    """Apply a view to candidate activations `acts` [n, d_sae]; `threshold` serves the budget views that need one."""
    if view.kind == "budget":
        if view.mode == "topk":
            assert view.budget is not None
            return topk_latents(acts, view.budget)
        assert threshold is not None, "a threshold budget needs its tuned threshold"
        return threshold_latents(acts, threshold)
    if view.order == "prune_then_select" and view.mode == "topk":
        assert view.budget is not None
        if view.kind == "prefix":  # the latents beyond need not be looked at
            first = topk_latents(acts[:, : view.m], view.budget)
            return SparseLatents(first.offsets, first.indices, first.values, sae.d_sae)
        return topk_latents(torch.where(keep, acts, 0.0), view.budget)
    if view.order == "prune_then_select":
        return sae.own_rule(torch.where(keep, acts, 0.0), k=view.budget, mode=view.mode)
    latents = sae.own_rule(acts, mode=view.mode)
    return latents if view.m == sae.d_sae else latents.kept(keep)


@torch.no_grad()
def tune_thresholds(sae: SAE, x: Tensor, budgets: list[int], batch: int) -> dict[int, float]:
    """For each budget j the threshold under which training activations x [n, d_in] have a mean of j active latents.

    See `threshold_for`.
    """
    if not budgets:
        return {}
    values = largest_acts(sae, x, max(budgets), batch)
    return {j: threshold_for(values, len(x) * j) for j in budgets}


@torch.no_grad()
def largest_acts(sae: SAE, x: Tensor, l0: float, batch: int) -> Tensor:
    """The n * l0 + 1 largest activations that x [n, d_in] has, falling, among each token's 4 * l0 largest.

    A token with more of them would be counted short, which the measured L0 shows.
    """
    width = min(sae.d_sae, math.ceil(4 * l0))
    parts = [row_topk(sae.acts(sae.normalise(part).x), width)[0] for part in x.split(batch)]
    count = min(round(len(x) * l0) + 1, len(x) * width)
    return flat_topk(torch.cat(parts), count)[0].sort(descending=True).values


def threshold_for(values: Tensor, count: float) -> float:
    """The threshold that `count` of the falling values exceed, midway between the last of them and the next."""
    last = max(1, round(count))
    return float(values[last - 1 : last + 1].mean())
