"""k-sparse probing (Gurnee et al. 2023) as SAEBench 0.6.0 runs it, of one view of one SAE on labelled texts.

An example is the mean of a view's latents over a text's tokens that are not special (pool=last: those of its last token).
For each class, all its training texts stand against as many of the others, drawn evenly from the other classes; the
k latents whose mean differs most between the two (in absolute value) are read by a logistic regression, and its accuracy is
that on the class's held-out texts against as many others. A score is the mean over classes; chance is 1/2.

    sparse_probing_K    K latents             probing_latents    all latents of the view
    probing_x_K         K dimensions of x     probing_x          the mean activation x itself

Other than SAEBench: features are scaled to unit variance (latents have no common scale), every regression is the exact
optimum with the same ridge (there AdamW for the two large ones, stopped by its accuracy on the texts that are then reported).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saebench.probing.logistic import Design, fit, fit_few, times
from saebench.probing.pool import columns
from saebench.probing.settings import ProbeConfig
from saebench.sparse import SparseLatents
from saebench.store import seed_of


@dataclass(frozen=True)
class Sides:
    """Of one class, the examples for training and for testing [n], half of each of the class."""

    train: Tensor
    test: Tensor


def sides(label: Tensor, test: Tensor, classes: int, seed: int) -> list[Sides]:
    """The examples of each class's problem, given labels [n] and which examples are for testing [n] (bool)."""
    return [
        Sides(
            *(
                against(label, side, number, classes, seed_of(seed, 2, number, i))
                for i, side in enumerate((~test, test))
            )
        )
        for number in range(classes)
    ]


def against(label: Tensor, side: Tensor, number: int, classes: int, seed: int) -> Tensor:
    """The examples of a class among `side` [n] (bool), and as many of the others, drawn evenly: [2 m], rising."""
    mine = (side & (label == number)).nonzero().squeeze(1)
    generator = torch.Generator().manual_seed(seed)
    others = [(side & (label == other)).nonzero().squeeze(1) for other in range(classes) if other != number]
    each = -(-len(mine) // len(others))
    drawn = torch.cat([rows[torch.randperm(len(rows), generator=generator)[:each]] for rows in others])
    drawn = drawn[torch.randperm(len(drawn), generator=generator)[: len(mine)]]
    return torch.cat([mine[: len(drawn)], drawn]).sort().values


def mean_difference(features: SparseLatents | Tensor, y: Tensor, rows: Tensor) -> Tensor:
    """|mean over rows of y - mean over the others| of every feature: [d], for y [n] (bool) and rows [r]."""
    signed = torch.zeros(len(y), dtype=torch.float64)
    inside = y[rows]
    signed[rows] = torch.where(inside, 1 / inside.sum(), -1 / (~inside).sum()).double()
    if isinstance(features, Tensor):
        return (signed @ features.double()).abs()
    total = torch.zeros(features.d_sae, dtype=torch.float64)
    return total.index_add_(0, features.indices, features.values.double() * signed[features.row_of_entry]).abs()


def few(features: SparseLatents | Tensor, chosen: Tensor) -> Tensor:
    """Some features [k] of all rows, dense: [n, k]."""
    return features[:, chosen].double() if isinstance(features, Tensor) else columns(features, chosen)


@dataclass(frozen=True)
class Probed:
    """Of each class, whether each test example was told rightly [m], and the features that the probe read."""

    correct: list[Tensor]
    read: list[list[int]]


def probe_few(features: SparseLatents | Tensor, label: Tensor, parts: list[Sides], k: int, cfg: ProbeConfig) -> Probed:
    """Probes of the k features of largest mean difference; latents [n, d_sae] or dimensions [n, d_in]."""
    correct, read = [], []
    for number, part in enumerate(parts):
        y = label == number
        difference = mean_difference(features, y, part.train)
        chosen = difference.topk(min(k, len(difference))).indices
        z = few(features, chosen)
        probe = fit_few(z[part.train], y[part.train], torch.ones(len(part.train), dtype=torch.float64), cfg.ridge)
        correct.append(told(z[part.test] @ probe.w + probe.b, y[part.test]))
        read.append(chosen.tolist())
    return Probed(correct, read)


def told(scores: Tensor, y: Tensor) -> Tensor:
    """Whether scores [m, 1] are on the right side: [m] (bool)."""
    return (scores.squeeze(1) > 0) == y


def probe_all(
    features: SparseLatents | Tensor, label: Tensor, test: Tensor, parts: list[Sides], ridge: float
) -> Probed:
    """Probes of all features, the problems of all classes side by side."""
    y = label.unsqueeze(1) == torch.arange(len(parts))  # [n, classes]
    weights = torch.zeros(y.shape, dtype=torch.float64)
    for number, part in enumerate(parts):
        weights[part.train, number] = 1.0
    design = Design.dense(features, ~test) if isinstance(features, Tensor) else Design.sparse(features, ~test)
    probes = fit(design, y, weights, ridge)
    scores = times(features, probes.w) + probes.b  # [n, classes]
    return Probed([told(scores[p.test, i : i + 1], y[p.test, i]) for i, p in enumerate(parts)], [[] for _ in parts])
