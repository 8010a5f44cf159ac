"""Scores of latents without a judge: from sentence embeddings of their contexts (here) and from tokens alone (purity.py).

What is embedded is the window trimmed to `before` tokens ahead of the centre, the centre, and `after` tokens behind it. A
whole window tells its document's topic; what made the latent active stands at the centre and shortly before it, because a
causal language model has seen nothing else. Measured on a TopK SAE (Gemma 3 270M, layer 9, Brown, 44 latents), intruder
exceeded chance by .09 with whole windows (before, after = 16, 16), .13 with (8, 4), .16 with (8, 0) and (4, 2); on latents moved
to random tokens it stayed at chance. Contexts are compared across documents only.

| score | of | value | chance |
|---|---|---|---|
| intruder | embeddings | share of draws (4 held contexts, 1 negative) in which the negative is the odd one out | 1/5, exact |
| coherence | embeddings | mean cosine among held contexts minus that between held and negatives | 0, exact |
| probe | embeddings | balanced accuracy of telling held from negatives by the shown ones' centroid | 1/2, exact |
| token_purity, previous_token_purity, document_purity | tokens | share of the commonest centre token, ... | drawn, of equal n |
| consistency | tokens | share of held activations' variance that the token tells | drawn, acts shuffled |

Exact means: the expectation if held contexts and negatives were drawn alike. A latent that has too few contexts for a score
has none: no row is made up for it, and agreement.summarise counts it as asked for and not scored.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy import ndarray
from numpy.random import Generator

from saebench.checks import at_least, one_of
from saebench.interpret.contexts import Context, LatentContexts, Score
from saebench.interpret.purity import PURITIES, Pools, consistency, purity
from saebench.progress import Progress

NUMERICS = 1  # raised by hand when a score of unchanged contexts changes
TOGETHER = 16  # latents whose texts are embedded in one call
OTHERS = 4  # activating contexts beside the intruder
EQUAL = 1e-9  # cosines nearer than this are ties


class Embedder(Protocol):
    """Turns texts into unit vectors: [n, d]."""

    def embed(self, texts: Sequence[str]) -> ndarray: ...


@dataclass
class FreeConfig:
    """Which scores are made without a judge, and how."""

    scores: list[str]  # of SCORES
    encoder: str  # all-minilm-l6-v2 (saebench[interpret]) or a folder of sentence-transformers
    before: int  # tokens ahead of the centre that are embedded with it
    after: int  # tokens behind it
    draws: int  # of intruders, per latent
    seed: int

    def __post_init__(self) -> None:
        for name in self.scores:
            one_of("interpret.free.scores", name, SCORES)
        at_least("interpret.free.before", self.before, 0)
        at_least("interpret.free.after", self.after, 0)
        at_least("interpret.free.draws", self.draws, 1)
        at_least("interpret.free.seed", self.seed, 0)


@dataclass(frozen=True)
class Embedded:
    """Contexts of one kind as unit vectors [n, d] (float64), with the document of each [n]."""

    vectors: ndarray
    documents: ndarray

    def __len__(self) -> int:
        return len(self.vectors)


@dataclass(frozen=True)
class LatentVectors:
    """A latent's contexts, embedded."""

    shown: Embedded
    held: Embedded
    negatives: Embedded


Measured = tuple[float, float, int]  # value, chance, n


def intruder(latent: LatentVectors, draws: int, rng: Generator) -> Measured | None:
    """The share of draws in which the context farthest from the mean of the other four is the one in which it is silent.

    A draw is a negative, four documents other than its own, and a held context of each. The intruder is found if
    cos(e_i, sum of the other e_j) is smallest for it; ties count in part. Chance 1/5; n is the number of draws, which share
    contexts, so that their spread is not that of n independent ones. None without four documents beside a negative's.
    """
    documents, place, counts = np.unique(latent.held.documents, return_inverse=True, return_counts=True)
    order = np.argsort(place, kind="stable")  # held contexts by document
    clashes = latent.negatives.documents[:, None] == documents  # [negatives, documents]
    usable = (len(documents) - clashes.sum(1) >= OTHERS).nonzero()[0]
    if len(usable) == 0:
        return None
    odd = rng.choice(usable, draws)  # [draws]
    keys = np.where(clashes[odd], np.inf, rng.random((draws, len(documents))))  # [draws, documents]
    chosen = np.argsort(keys, axis=1)[:, :OTHERS]  # [draws, 4] documents
    within = (rng.random(chosen.shape) * counts[chosen]).astype(int)
    others = order[(counts.cumsum() - counts)[chosen] + within]  # [draws, 4] held contexts
    five = np.concatenate([latent.held.vectors[others], latent.negatives.vectors[odd, None]], 1)  # [draws, 5, d]
    rest = five.sum(1, keepdims=True) - five  # [draws, 5, d]
    near = (five * rest).sum(2) / np.maximum(np.linalg.norm(rest, axis=2), 1e-12)  # [draws, 5]
    farthest = near <= near.min(1, keepdims=True) + EQUAL  # [draws, 5]
    return float((farthest[:, -1] / farthest.sum(1)).mean()), 1 / (OTHERS + 1), draws


def coherence(latent: LatentVectors, _draws: int, _rng: Generator) -> Measured | None:
    """mean cos(held, held) - mean cos(held, negative), over pairs in different documents; from -2 to 2, chance 0.

    The difference removes what all texts of the corpus and this encoder have in common. n counts the pairs of held contexts.
    None without a pair of either kind.
    """
    held, negatives = latent.held, latent.negatives
    apart = np.triu(held.documents[:, None] != held.documents, 1)  # [held, held]
    across = held.documents[:, None] != negatives.documents  # [held, negatives]
    if not apart.any() or not across.any():
        return None
    among = (held.vectors @ held.vectors.T)[apart].mean()
    return float(among - (held.vectors @ negatives.vectors.T)[across].mean()), 0.0, int(apart.sum())


def probe(latent: LatentVectors, _draws: int, _rng: Generator) -> Measured | None:
    """Balanced accuracy of calling active the contexts nearest to the centroid of the shown ones, as many as are active.

    With P held contexts and N negatives, the P largest of cos(e, mean of shown e) are called active (ties in part):
    (share of held called active + share of negatives not) / 2. No negative is used to learn from, and the number called makes
    chance exactly 1/2 for any P and N. n = P + N. None if any kind is missing.
    """
    held, negatives = latent.held, latent.negatives
    if min(len(latent.shown), len(held), len(negatives)) == 0:
        return None
    near = np.concatenate([held.vectors, negatives.vectors]) @ latent.shown.vectors.mean(0)  # [held + negatives]
    last = np.sort(near)[-len(held)]
    above, tied = near > last + EQUAL, np.abs(near - last) <= EQUAL
    called = above + tied * (len(held) - above.sum()) / tied.sum()  # [held + negatives], from 0 to 1
    right = called[: len(held)].mean() + 1 - called[len(held) :].mean()
    return float(right / 2), 0.5, len(near)


EMBEDDED: dict[str, Callable[[LatentVectors, int, Generator], Measured | None]] = {
    "intruder": intruder,
    "coherence": coherence,
    "probe": probe,
}
SCORES = (*EMBEDDED, *PURITIES, "consistency")


def trimmed(context: Context, before: int, after: int) -> str:
    """The text from `before` tokens ahead of the centre to `after` tokens behind it, cut at the window's ends."""
    return "".join(context.texts[max(0, context.centre - before) : context.centre + after + 1])


def free_scores(
    latents: Sequence[LatentContexts], cfg: FreeConfig, embedder: Embedder | None, pools: Pools | None = None
) -> Iterator[Score]:
    """The scores cfg.scores of each latent in turn; `embedder` may be None where no score needs one.

    `pools` (by default of these latents) are what purities are compared with: pass one where latents come in parts. A score
    depends on the latent, cfg and the pools, not on the other latents' order.
    """
    pools = Pools.of(latents, cfg.seed) if pools is None else pools
    wanted = [name for name in EMBEDDED if name in cfg.scores]
    assert embedder is not None or not wanted, f"{wanted} need an embedder"
    with Progress(len(latents), "latents", "scores without a judge") as progress:
        for start in range(0, len(latents), TOGETHER):
            part = latents[start : start + TOGETHER]
            vectors = embedded(part, cfg, embedder) if embedder is not None and wanted else [None] * len(part)
            for latent, its in zip(part, vectors, strict=True):
                yield from scores_of(latent, its, cfg, pools)
            progress.advance(len(part))


def scores_of(latent: LatentContexts, vectors: LatentVectors | None, cfg: FreeConfig, pools: Pools) -> Iterator[Score]:
    """One latent's scores, in the order of cfg.scores."""
    for name in cfg.scores:
        rng = np.random.default_rng([cfg.seed, latent.latent, zlib.crc32(name.encode())])
        if name in PURITIES:
            measured = purity(name, latent, pools)
        elif name == "consistency":
            measured = consistency(latent, rng)
        else:
            assert vectors is not None
            measured = EMBEDDED[name](vectors, cfg.draws, rng)
        if measured is not None:
            yield Score(latent.latent, name, *measured)


def embedded(latents: Sequence[LatentContexts], cfg: FreeConfig, embedder: Embedder) -> list[LatentVectors]:
    """All contexts of some latents, embedded in one call."""
    groups = [group for latent in latents for group in (latent.shown, latent.held, latent.negatives)]
    texts = [trimmed(context, cfg.before, cfg.after) for group in groups for context in group]
    vectors = embedder.embed(texts).astype(np.float64)  # [n, d]
    ends = np.cumsum([len(group) for group in groups])
    parts = [
        Embedded(rows, np.array([context.document for context in group], dtype=np.int64))
        for group, rows in zip(groups, np.split(vectors, ends[:-1]), strict=True)
    ]
    return [LatentVectors(*parts[i : i + 3]) for i in range(0, len(parts), 3)]
