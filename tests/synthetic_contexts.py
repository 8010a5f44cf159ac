"""Latents whose contexts are known: of one token and topic, or of nothing in particular; and an encoder of word vectors."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy import ndarray
from numpy.random import Generator

from saebench.interpret.contexts import Context, LatentContexts

WORDS = [f" w{i}" for i in range(200)]
TOPIC = [f" t{i}" for i in range(12)]
WINDOW, CENTRE, DOCUMENTS = 17, 8, 40


class BagOfWords:
    """Unit sums of a fixed random vector per word: texts are alike as far as they share words."""

    def __init__(self) -> None:
        self.texts = 0  # embedded so far

    def embed(self, texts: Sequence[str]) -> ndarray:
        self.texts += len(texts)
        rows = np.array([sum(self.word(word) for word in text.split()) for text in texts]).reshape(len(texts), -1)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def word(self, word: str) -> ndarray:
        return np.random.default_rng(zlib.crc32(word.encode())).normal(size=48)


def context(
    rng: Generator, words: Sequence[str], document: int, centre: str | None = None, act: float = 0.0
) -> Context:
    """A window of words drawn from `words`, with activation `act` at its centre alone."""
    texts = [str(word) for word in rng.choice(words, WINDOW)]
    texts[CENTRE] = centre or texts[CENTRE]
    acts = [0.0] * WINDOW
    acts[CENTRE] = act
    return Context(tuple(texts), tuple(acts), CENTRE, document)


def latent(i: int, pure: bool, stratum: int = 2, n: int = 12, seed: int = 0) -> LatentContexts:
    """A latent with n contexts of each kind, of random documents: all about a topic with one centre, or about nothing."""
    rng = np.random.default_rng([seed, i])
    words, centre = (TOPIC, " Purpose") if pure else (WORDS, None)
    documents = rng.integers(DOCUMENTS, size=3 * n).tolist()
    acts = (1 + rng.random(2 * n) * (0 if pure else 1)).tolist()
    active = [context(rng, words, document, centre, act) for document, act in zip(documents, acts, strict=False)]
    silent = [context(rng, WORDS, document) for document in documents[2 * n :]]
    return LatentContexts(i, 1e-3, stratum, 2.0, tuple(active[:n]), tuple(active[n:]), tuple(silent))
