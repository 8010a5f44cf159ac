"""Scores of latents from the tokens of their contexts alone: how pure the contexts are, and what the token tells.

A purity is a share of the commonest kind among n contexts, which is large by itself where n is small or a kind is common.
Its chance is therefore drawn: the mean of the same share over DRAWS draws of n contexts, without replacement, from the pool of
all latents' contexts. The standard error of that mean is below 0.5 / sqrt(DRAWS) = 0.016, and far below for large n.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain

import numpy as np
from numpy import ndarray
from numpy.random import Generator

from saebench.interpret.contexts import Context, LatentContexts

DRAWS = 1000  # of n contexts from a pool
SHUFFLES = 100  # of the shown activations over their tokens
FEWEST = 2  # contexts; one is always pure


def normal(text: str) -> str:
    """A token's text without surrounding space and case; white space alone stays itself."""
    return text.strip().casefold() or text


def centre_token(context: Context) -> str:
    """The token that the context was chosen for."""
    return normal(context.texts[context.centre])


def previous_token(context: Context) -> str | None:
    """The token before it, or None at the window's start."""
    return normal(context.texts[context.centre - 1]) if context.centre > 0 else None


def document(context: Context) -> str:
    """The document the context comes from."""
    return str(context.document)


PURITIES: dict[str, Callable[[Context], str | None]] = {
    "token_purity": centre_token,
    "previous_token_purity": previous_token,
    "document_purity": document,
}


def kinds(name: str, latent: LatentContexts) -> list[str]:
    """What a purity counts, of each context in which the latent is active (shown or held)."""
    found = (PURITIES[name](context) for context in chain(latent.shown, latent.held))
    return [kind for kind in found if kind is not None]


def numbered(names: Sequence[str]) -> ndarray:
    """Each name's place among the distinct names in order: [n]."""
    places = {name: i for i, name in enumerate(sorted(set(names)))}
    return np.array([places[name] for name in names], dtype=np.int64)


def commonest(ids: ndarray) -> ndarray:
    """The share of the commonest value in each row of ids [rows, n]: [rows]."""
    ordered = np.sort(ids, axis=1)
    longest = run = np.ones(len(ids), dtype=np.int64)
    for i in range(1, ids.shape[1]):
        run = np.where(ordered[:, i] == ordered[:, i - 1], run + 1, 1)
        longest = np.maximum(longest, run)
    return longest / ids.shape[1]


class Pools:
    """For each purity the kinds of all latents' activating contexts, from which its chance is drawn once per n."""

    def __init__(self, pools: dict[str, list[str]], seed: int) -> None:
        self.ids = {name: np.sort(numbered(pool)) for name, pool in pools.items()}  # [n] each
        self.seed = seed
        self.drawn: dict[tuple[str, int], float] = {}

    @classmethod
    def of(cls, latents: Iterable[LatentContexts], seed: int) -> Pools:
        """The pools of these latents, whatever their order."""
        pools: dict[str, list[str]] = {name: [] for name in PURITIES}
        for latent in latents:
            for name, pool in pools.items():
                pool += kinds(name, latent)
        return cls(pools, seed)

    def chance(self, name: str, n: int) -> float:
        """The mean purity of n contexts drawn from the pool."""
        assert n <= len(self.ids[name]), "the pool lacks contexts of the latent that it is asked for"
        if (name, n) not in self.drawn:
            ids = self.ids[name]
            rng = np.random.default_rng([self.seed, n, zlib.crc32(name.encode())])
            rows = [rng.choice(ids, n, replace=False, shuffle=False) for _ in range(DRAWS)]
            self.drawn[name, n] = float(commonest(np.array(rows)).mean())
        return self.drawn[name, n]


def purity(name: str, latent: LatentContexts, pools: Pools) -> tuple[float, float, int] | None:
    """The share of activating contexts that are of their commonest kind, from 1/n to 1; the chance; n. None if n < FEWEST.

    Kinds: the centre's token (token_purity), the one before it (previous_token_purity), each without case and surrounding
    space, or the document (document_purity: what is large is confined to few texts, not more meaningful).
    """
    found = kinds(name, latent)
    if len(found) < FEWEST:
        return None
    most = Counter(found).most_common(1)[0][1]
    return most / len(found), pools.chance(name, len(found)), len(found)


def consistency(latent: LatentContexts, rng: Generator) -> tuple[float, float, int] | None:
    """The share of the variance of activations in held windows that the token alone tells, learnt from shown windows.

    R^2 = 1 - sum (a - p)^2 / sum (a - mean a)^2 over all tokens of held windows, silent ones at 0, with the prediction
    p(token) = (sum of a + m) / (count + 1) over that token in the shown windows and m their mean, so that unseen tokens get m.
    At most 1; 0 is no better than knowing the mean. Silent tokens count because a latent that fires at every `the` and one that
    fires at some are told apart by those where it is silent, and a latent of one token has no other variance that matters.
    Out of sample, because in sample rare tokens explain themselves. Chance: the mean of R^2 over SHUFFLES shuffles of the shown
    activations over their tokens (a little below 0). n: tokens in held windows. None if there is no such variance.
    """
    ids = numbered([text for context in chain(latent.shown, latent.held) for text in context.texts])
    learnt = np.array([act for context in latent.shown for act in context.acts])  # [shown tokens]
    acts = np.array([act for context in latent.held for act in context.acts])  # [held tokens]
    if len(learnt) == 0 or len(acts) == 0 or np.ptp(acts) == 0:
        return None
    shuffled = rng.permuted(np.tile(learnt, (SHUFFLES, 1)), axis=1)  # [SHUFFLES, shown tokens]
    told = explained(np.concatenate([learnt[None], shuffled]), acts, ids)  # [1 + SHUFFLES]
    return float(told[0]), float(told[1:].mean()), len(acts)


def explained(learnt: ndarray, acts: ndarray, ids: ndarray) -> ndarray:
    """R^2 of `acts` [held] predicted from each row of `learnt` [rows, shown]; ids [shown + held] are their tokens: [rows]."""
    shown, held = ids[: learnt.shape[1]], ids[learnt.shape[1] :]
    vocabulary = int(ids.max()) + 1
    places = shown + vocabulary * np.arange(len(learnt))[:, None]  # [rows, shown]
    sums = np.bincount(places.ravel(), learnt.ravel(), len(learnt) * vocabulary).reshape(-1, vocabulary)
    counts = np.bincount(shown, minlength=vocabulary)  # [vocabulary]
    predicted = ((sums + learnt.mean(1, keepdims=True)) / (counts + 1))[:, held]  # [rows, held]
    return 1 - ((acts - predicted) ** 2).sum(1) / ((acts - acts.mean()) ** 2).sum()
