"""Effects over seeds and documents: standard errors, intervals, p-values, Holm's correction. Numbers in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy import ndarray
from scipy.special import stdtr, stdtrit

DRAWS = 1000  # of the documents, with replacement
LEVEL = 0.95  # of intervals; verdicts are taken at 1 - LEVEL


@lru_cache(maxsize=8)
def resamples(documents: int) -> ndarray:
    """How often each document is drawn: [DRAWS, documents], the same for every side and seed, so that all are paired."""
    rng = np.random.default_rng([20250430, documents])
    return rng.multinomial(documents, np.full(documents, 1 / documents), size=DRAWS).astype(np.float64)


def pooled(numerator: ndarray, denominator: ndarray) -> ndarray:
    """The ratio of two sums over documents [documents] in every resample, over the ratio in all of them: [DRAWS]."""
    times = resamples(len(numerator))
    return (times @ numerator) / (times @ denominator) * (denominator.sum() / numerator.sum())


@dataclass(frozen=True)
class Estimate:
    """A mean effect with its standard error and the degrees of freedom of Student's t."""

    value: float
    se: float
    df: float

    def interval(self) -> tuple[float, float]:
        """The two-sided interval at LEVEL."""
        half = 0.0 if self.se == 0 else self.se * float(stdtrit(self.df, 0.5 + LEVEL / 2))
        return self.value - half, self.value + half

    def p_outside(self, region: tuple[float, float]) -> float:
        """Twice the one-sided p of "the effect does not lie in the open `region`": below 1 - LEVEL where the interval does.

        For a region with two ends it is the larger of the two (two one-sided tests).
        """
        low, high = region
        return min(1.0, 2 * max(self.p_beyond(self.value - low), self.p_beyond(high - self.value)))

    def p_beyond(self, distance: float) -> float:
        """One-sided p of a mean that lies `distance` inside an end of a region."""
        if self.se == 0 or math.isinf(distance):
            return 0.0 if distance > 0 else 1.0
        return float(stdtr(self.df, -distance / self.se))


def estimate(effects: Sequence[float], draws: Sequence[ndarray] | None, documents: int) -> Estimate:
    """The mean of `effects` (one per seed), uncertain by seeds and, given `draws` (per seed [DRAWS]), by documents.

    All seeds are measured on the same documents, so that the variances add: se^2 = s^2 / S + v D / (D - 1), with s^2 over the
    S seeds and v that of the mean effect over resamples of the D documents. Degrees of freedom after Welch and Satterthwaite.
    """
    count = len(effects)
    assert count >= 2, "one seed has no spread"
    by_seed = float(np.var(effects, ddof=1)) / count
    by_document = 0.0
    if draws is not None:
        by_document = float(np.var(np.mean(draws, axis=0), ddof=1)) * documents / (documents - 1)
    variance = by_seed + by_document
    weights = by_seed**2 / (count - 1) + (by_document**2 / (documents - 1) if draws is not None else 0.0)
    return Estimate(float(np.mean(effects)), math.sqrt(variance), variance**2 / weights if weights > 0 else count - 1)


def percentiles(draws: ndarray) -> tuple[float, float]:
    """The percentile interval at LEVEL of one seed's resampled effects."""
    low, high = np.quantile(draws, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return float(low), float(high)


def holm(ps: Sequence[float]) -> list[float]:
    """p-values adjusted for their number after Holm (1979): the i-th smallest of n times n - i + 1, made monotone, at most 1."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    adjusted, largest = [0.0] * len(ps), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, ps[i] * (len(ps) - place)))
        adjusted[i] = largest
    return adjusted
