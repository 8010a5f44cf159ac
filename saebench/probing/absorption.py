"""Feature absorption (Chanin et al. 2024) as SAEBench 0.6.0 measures it, of one view of one SAE.

An SAE may have latents that mean "begins with s" and yet let them be silent on `snake`, whose own latent carries the letter's
direction with it: the letter is absorbed. For each letter, on words that were held out:

1. d is the unit direction of a logistic probe of the activations, one letter against the rest. Letters whose probe has an F1
   below min_f1 are left out. Words of the letter on which the probe is right are the ones looked at.
2. The letter's own latents (`split`): latents are ranked by an L1 probe of all latents; the first is one, and the next is as
   long as a logistic probe of the first k has an F1 more than f1_jump above that of k - 1.
3. Of a word, latent j gives p_j = z_j <W_dec[j], d> to the projection <x, d> of its activation x.
   *Full absorption*: no own latent is active, the latent of the largest p_j has a cosine with d of cosine_full or more, and
   p_j >= proportion <x, d>. *Absorption fraction*: A = the sum of the `absorbers` largest p_j > 0 among other latents with a
   cosine of cosine_fraction or more; m = the sum over own latents; if m >= <x, d> or A < proportion <x, d> it is 0; else if
   m <= 0 it is 1; else u / (u + m) with u = min(A, <x, d> - m).

A letter's scores are means over its words, an SAE's are means over letters.

Other than SAEBench: the probes are exact optima of balanced logistic regressions on features of unit variance (there: Adam, on
features as they are); one draw of examples ahead of each word (there: drawn anew for the third step); p_j is what the
latent adds to x (there z_j times the cosine, which is the same for decoder rows of unit norm). <x, d> holds the mean of all
activations, which no latent explains and which may be of any size; the `_centred` scores take <x - x_0, d> in its
place, where x_0 is what the SAE gives without any latent. Chance: the directions of all latents but the own dealt anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from saebench.probing.logistic import Design, Probes, balanced, f1, fit, fit_few, lasso
from saebench.probing.pool import columns
from saebench.probing.settings import AbsorptionConfig
from saebench.sparse import SparseLatents
from saebench.store import seed_of

SILENT = 1e-8  # activations below are none
ROWS = 256  # words looked at together


@dataclass(frozen=True)
class Truth:
    """The probes of the activations, and what they get right: `scores` [n, letters], `f1` [letters] on held-out words."""

    probes: Probes
    scores: Tensor
    f1: Tensor

    def direction(self, letter: int) -> Tensor:
        """The unit vector of a letter: [d_in]."""
        w = self.probes.w[:, letter]
        return w / w.norm()


def probe_activations(x: Tensor, y: Tensor, test: Tensor, ridge: float) -> tuple[Truth, list[int]]:
    """Probes of activations x [n, d_in] for y [n, letters] (bool), and the letters that have words in both splits."""
    both = [(y & side.unsqueeze(1)).sum(0) for side in (test, ~test)]
    there = [int(i) for i in ((both[0] > 0) & (both[1] > 0)).nonzero()]
    few = y[:, there]
    fitted = fit(Design.dense(x, ~test), few, balanced(few, ~test), ridge)
    w, b = x.new_zeros(x.shape[1], y.shape[1]).double(), torch.full((y.shape[1],), -torch.inf).double()
    w[:, there], b[there] = fitted.w, fitted.b
    scores = x.double() @ w + b
    return Truth(Probes(w, b), scores, f1(scores[test] > 0, y[test])), there


class Split(NamedTuple):
    """A letter's own latents, the most telling first, and the F1 of a probe of them on held-out words."""

    latents: list[int]
    f1: float


def split_latents(
    latents: SparseLatents, y: Tensor, test: Tensor, letters: list[int], cfg: AbsorptionConfig
) -> dict[int, Split]:
    """The own latents of each letter, of y [n, letters] (bool)."""
    few = y[:, letters]
    weights = balanced(few, ~test)
    ranked = lasso(Design.sparse(latents, ~test), few, weights, cfg.l1)  # [d_sae, letters]
    found = {}
    for i, letter in enumerate(letters):
        order = ranked[:, i].topk(min(cfg.max_k, latents.d_sae))
        most = max(1, int((order.values > 0).sum()))
        found[letter] = grown(
            columns(latents, order.indices[:most]), order.indices, few[:, i], test, weights[:, i], cfg
        )
    return found


def grown(z: Tensor, order: Tensor, y: Tensor, test: Tensor, weights: Tensor, cfg: AbsorptionConfig) -> Split:
    """The first latents of an order, of activations z [n, most], as long as each adds f1_jump."""
    best = Split([], -1.0)
    for k in range(1, z.shape[1] + 1):
        probe = fit_few(z[:, :k], y, weights, cfg.ridge)
        predicted = (z[:, :k] @ probe.w + probe.b).squeeze(1) > 0
        now = float(f1(predicted[test], y[test]))
        if k > 1 and now <= best.f1 + cfg.f1_jump:
            break
        best = Split(order[:k].tolist(), now)
    return best


@dataclass(frozen=True)
class Decoder:
    """An SAE's decoder as absorption sees it: rows [d_sae, d_in] and norms [d_sae], and per example the factor of x's scale
    and the reconstruction without latents."""

    rows: Tensor
    norms: Tensor
    scale: Tensor  # [n, 1] or [1, 1]
    origin: Tensor  # [n, d_in] or [1, d_in]


class Absorbed(NamedTuple):
    """Of each word looked at [w]: its number, the projection of x, of its own latents, fraction, full, the strongest latent."""

    word: Tensor
    projection: Tensor
    own: Tensor
    fraction: Tensor
    full: Tensor
    fraction_centred: Tensor
    full_centred: Tensor
    strongest: Tensor


def absorbed(
    latents: SparseLatents,
    x: Tensor,
    decoder: Decoder,
    direction: Tensor,
    own: list[int],
    words: Tensor,
    cfg: AbsorptionConfig,
    dealt: bool = False,
) -> Absorbed:
    """Absorption of one letter in some of the examples, `words` [w]; `dealt`: with other latents' directions."""
    along = decoder.rows @ direction  # [d_sae]
    if dealt:
        along = deal(along, own, cfg.seed)
    cosine = along / (deal(decoder.norms, own, cfg.seed) if dealt else decoder.norms).clamp(min=1e-12)
    parts = [measure(latents, x, decoder, direction, along, cosine, own, few, cfg) for few in words.split(ROWS)]
    return Absorbed(*(torch.cat(column) for column in zip(*parts, strict=True)))


def deal(values: Tensor, own: list[int], seed: int) -> Tensor:
    """Values [d_sae] dealt anew among all latents but the own."""
    others = torch.ones(len(values), dtype=torch.bool)
    others[own] = False
    at = others.nonzero().squeeze(1)
    order = torch.randperm(len(at), generator=torch.Generator().manual_seed(seed_of(seed, 1)))
    return values.index_copy(0, at, values[at[order]])


def measure(
    latents: SparseLatents,
    x: Tensor,
    decoder: Decoder,
    direction: Tensor,
    along: Tensor,
    cosine: Tensor,
    own: list[int],
    words: Tensor,
    cfg: AbsorptionConfig,
) -> Absorbed:
    """`absorbed` of a few words [w]."""
    chosen = torch.zeros(latents.rows, dtype=torch.bool)
    chosen[words] = True
    z = latents.of_rows(chosen).dense()  # [w, d_sae]
    p = z * along * picked(decoder.scale, words)
    total = x[words].double() @ direction  # [w]
    centred = total - picked(decoder.origin, words) @ direction
    mine, silent = p[:, own].sum(1), (z[:, own] < SILENT).all(1)
    absorbing = (cosine >= cfg.cosine_fraction) & (p > 0)
    absorbing[:, own] = False
    most = min(cfg.absorbers, p.shape[1])
    others = torch.where(absorbing, p, 0.0).topk(most).values.sum(1)  # [w]
    strongest, at = p.max(1)  # [w]
    aligned = silent & (cosine[at] >= cfg.cosine_full)
    return Absorbed(
        words, total, mine,
        fraction(mine, others, total, cfg.proportion), full(aligned, strongest, total, cfg.proportion),
        fraction(mine, others, centred, cfg.proportion), full(aligned, strongest, centred, cfg.proportion), at,
    )  # fmt: skip


def picked(values: Tensor, rows: Tensor) -> Tensor:
    """The rows of values [n, d], or its one row if it is the same for all."""
    return values if len(values) == 1 else values[rows]


def fraction(own: Tensor, others: Tensor, total: Tensor, proportion: float) -> Tensor:
    """The absorption fraction [w] in [0, 1] of projections [w]: of own latents, of absorbing ones, of the activation."""
    unaccounted = torch.minimum(others, total - own)
    share = torch.where(own <= 0, 1.0, (unaccounted / (unaccounted + own).clamp(min=1e-30)).clamp(0, 1))
    present = (total > 0) & (own < total) & (others >= proportion * total)
    return torch.where(present, share, 0.0)


def full(aligned: Tensor, strongest: Tensor, total: Tensor, proportion: float) -> Tensor:
    """Whether [w] one aligned latent carries `proportion` of the activation's projection while the own ones are silent."""
    return aligned & (total > 0) & (strongest >= proportion * total)
