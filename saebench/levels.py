"""Groups of latents between nested prefixes: how often they fire, how much they carry, how alike their directions are."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
from numpy import ndarray

from saebench.progress import Progress

BLOCK = 2048  # decoder rows whose cosines with as many others are held at once


def level_rows(frequency: ndarray, energy: ndarray, max_cosine: ndarray, prefixes: list[int]) -> list[dict[str, Any]]:
    """For each group of latents [first, last) between rising prefixes, levels counted from 0, and for all of them (level
    "all"): the means of its frequency, energy and max_cosine [d_sae each], and `dead`, the share that never fired."""
    groups = [(str(level), *ends) for level, ends in enumerate(pairwise([0, *prefixes]))]
    return [
        {
            "level": level,
            "first": first,
            "last": last,
            "frequency": frequency[first:last].mean(),
            "energy": energy[first:last].mean(),
            "dead": (frequency[first:last] == 0).mean(),
            "max_cosine": max_cosine[first:last].mean(),
        }
        for level, first, last in [*groups, ("all", 0, len(frequency))]
    ]


def blocks(d_sae: int) -> int:
    """The blocks that max_cosines goes through."""
    return math.comb(-(-d_sae // BLOCK) + 1, 2)


def max_cosines(W_dec: ndarray, progress: Progress) -> ndarray:
    """The largest cosine of each decoder row of W_dec [d_sae, d_in] with any other row: [d_sae], float32.

    Blocks of the symmetric Gram matrix in turn, so that BLOCK^2 of its cells are held; `progress` counts them.
    """
    rows = W_dec / np.maximum(np.linalg.norm(W_dec, axis=1, keepdims=True), 1e-12)  # [d_sae, d_in]
    best = np.full(len(rows), -1.0, dtype=np.float32)
    starts = range(0, len(rows), BLOCK)
    for i in starts:
        for j in starts[i // BLOCK :]:
            gram = rows[i : i + BLOCK] @ rows[j : j + BLOCK].T  # [b, c]
            if i == j:
                np.fill_diagonal(gram, -1.0)
            for start, most in ((i, gram.max(1)), (j, gram.max(0))):
                np.maximum(best[start : start + BLOCK], most, out=best[start : start + BLOCK])
            progress.advance()
    return best
