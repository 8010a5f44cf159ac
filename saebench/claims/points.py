"""What one side of a pair measured, and how two of them are made comparable."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy import ndarray

from saebench.claims.rows import NoRowsError


@dataclass(frozen=True)
class Point:
    """A metric of one side: its value, and where it is a ratio of sums over documents, its `draws` over resampled documents.

    `documents` maps each document to its denominator: equal for both sides of a pair.
    """

    runs: tuple[str, ...]
    l0: float
    value: float
    draws: ndarray | None = None
    documents: dict[Any, float] = field(default_factory=dict)
    strata: dict[int, tuple[float, int]] | None = (
        None  # instead of a value: one and its latents, by stratum of frequency
    )


def in_common(left: Point, right: Point) -> tuple[Point, Point]:
    """Both sides with a value over the strata that both have, if they are told by stratum.

    A stratum counts in both as n_left n_right / (n_left + n_right), so that one of few latents on either side counts little.
    """
    if left.strata is None or right.strata is None:
        return left, right
    common = sorted(left.strata.keys() & right.strata.keys())
    if not common:
        raise NoRowsError(f"{' '.join(left.runs)} and {' '.join(right.runs)} have no stratum of frequency in common")
    (a, n), (b, m) = (np.array([strata[s] for s in common]).T for strata in (left.strata, right.strata))
    weights = n * m / (n + m)
    return (
        replace(left, value=float(a @ weights / weights.sum())),
        replace(right, value=float(b @ weights / weights.sum())),
    )


def between(low: Point, high: Point, l0: float, log: bool) -> Point:
    """The point at `l0` on the line through two, in log L0 and the metric or its log."""
    share = math.log(l0 / low.l0) / math.log(high.l0 / low.l0)

    def mix(a: Any, b: Any) -> Any:
        return np.exp((1 - share) * np.log(a) + share * np.log(b)) if log else (1 - share) * a + share * b

    draws = None if low.draws is None or high.draws is None else mix(low.draws, high.draws)
    return Point((*low.runs, *high.runs), l0, float(mix(low.value, high.value)), draws, low.documents)
