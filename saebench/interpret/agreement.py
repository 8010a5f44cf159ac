"""Scores of many latents in a few rows: how a judge-free score agrees with a judged one, and means that compare SAEs.

Latents are the sample: every interval is a bootstrap over them (DRAWS resamples, percentiles at LEVEL of claims.effects).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
from numpy import ndarray
from scipy.stats import rankdata

from saebench.claims.effects import DRAWS, percentiles
from saebench.interpret.contexts import Score

CELLS = 1 << 20  # numbers held at once while resampling
ALL = "all"  # the level of every latent, and the stratum of every stratum


@dataclass(frozen=True)
class Agreement:
    """Spearman's rho between two scores over the `n` latents that have both, with its interval (NaN where undefined)."""

    score: str
    judged: str
    rho: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Summary:
    """The mean of a score over the latents of a level and a stratum, or over strata of equal weight (stratum "all").

    `latents` of the `asked` could be scored, from `n` judgements, `broken` of them no answers. `strata`: those averaged over.
    """

    score: str
    level: str
    stratum: str
    value: float
    low: float
    high: float
    chance: float
    latents: int
    asked: int
    n: int
    broken: int
    strata: str


@dataclass(frozen=True)
class Difference:
    """The mean of a score in one set of latents minus that in another, over the strata that both have, equally weighted."""

    score: str
    value: float
    low: float
    high: float
    latents_a: int
    latents_b: int
    strata: str


def generator(seed: int, *names: str) -> np.random.Generator:
    """A generator that depends on the seed and these names alone."""
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


def excess(scores: Iterable[Score]) -> dict[str, dict[int, float]]:
    """value - chance by score and latent."""
    found: dict[str, dict[int, float]] = {}
    for score in scores:
        found.setdefault(score.name, {})[score.latent] = score.value - score.chance
    return found


def agreement(scores: Iterable[Score], judged: Sequence[str], seed: int) -> list[Agreement]:
    """A row for each score that is not in `judged` with each that is, over latents that have both.

    Both are compared as value - chance. Resamples in which either does not vary have no rho and are left out of the interval.
    """
    table = excess(scores)
    pairs = [(name, by) for name in table if name not in judged for by in judged if by in table]
    return [agree(name, by, table[name], table[by], seed) for name, by in pairs]


def agree(name: str, by: str, a: dict[int, float], b: dict[int, float], seed: int) -> Agreement:
    """One row of `agreement`."""
    both = sorted(a.keys() & b.keys())
    x, y = (np.array([scores[latent] for latent in both]) for scores in (a, b))  # [n]
    if len(both) == 0:
        return Agreement(name, by, nan, nan, nan, 0)
    parts = [spearman(x[rows], y[rows]) for rows in resampled(len(x), len(x), generator(seed, name, by))]
    draws = np.concatenate(parts)  # [DRAWS]
    return Agreement(name, by, float(spearman(x[None], y[None])[0]), *interval(draws[~np.isnan(draws)]), len(both))


def resampled(n: int, size: int, rng: np.random.Generator) -> Iterator[ndarray]:
    """`size` of n places with replacement, DRAWS times, in parts of at most CELLS numbers: [draws, size]."""
    most = max(1, CELLS // size)
    for start in range(0, DRAWS, most):
        yield rng.integers(n, size=(min(most, DRAWS - start), size))


def spearman(x: ndarray, y: ndarray) -> ndarray:
    """The Pearson correlation of the ranks (ties share theirs) of each row of x and y [rows, n]; NaN if either is constant."""
    centred = [ranks - ranks.mean(1, keepdims=True) for ranks in (rankdata(v, axis=1) for v in (x, y))]  # [rows, n]
    norm = np.sqrt(np.prod([(ranks**2).sum(1) for ranks in centred], axis=0))  # [rows]
    return np.divide((centred[0] * centred[1]).sum(1), norm, out=np.full(len(x), nan), where=norm > 0)


def interval(draws: ndarray) -> tuple[float, float]:
    """The percentile interval of draws [n], NaN if there are none or they are undefined."""
    return percentiles(draws) if len(draws) else (nan, nan)


def summarise(
    scores: Sequence[Score], strata: Mapping[int, int], levels: Mapping[int, str], seed: int
) -> list[Summary]:
    """Rows of every score: for all latents and for each level, one with equal weight per stratum, and one per stratum.

    `strata` and `levels` say where each latent that was asked for belongs (levels may be empty). SAEs that fire at other
    frequencies are comparable per stratum, and in "all" where they have the same `strata`; see `differences`.
    """
    assert {score.latent for score in scores} <= strata.keys()
    assert not levels or levels.keys() == strata.keys()
    groups = {ALL: sorted(strata)} | {
        level: [latent for latent in sorted(strata) if levels[latent] == level]
        for level in sorted(set(levels.values()))
    }
    names = dict.fromkeys(score.name for score in scores)
    rows = []
    for name in names:
        by_latent = {score.latent: score for score in scores if score.name == name}
        for level, asked in groups.items():
            rows += level_rows(name, level, asked, by_latent, strata, seed)
    return rows


def level_rows(
    name: str, level: str, asked: Sequence[int], by_latent: dict[int, Score], strata: Mapping[int, int], seed: int
) -> list[Summary]:
    """The rows of one score and level: all strata, then each; none if no latent of the level is scored."""
    found = {
        s: [by_latent[i] for i in asked if strata[i] == s and i in by_latent] for s in sorted(set(strata.values()))
    }
    found = {stratum: scores for stratum, scores in found.items() if scores}
    if not found:
        return []
    values = {s: np.array([score.value for score in scores]) for s, scores in found.items()}
    draws = mean_draws(values, generator(seed, name, level))  # [strata, DRAWS]
    named = ",".join(map(str, found))
    every = [score for scores in found.values() for score in scores]
    value = float(np.mean([v.mean() for v in values.values()]))
    chance = float(np.mean([np.mean([score.chance for score in scores]) for scores in found.values()]))
    rows = [row(name, level, ALL, value, draws.mean(0), chance, every, len(asked), named)]
    for (s, scores), drawn in zip(found.items(), draws, strict=True):
        chance, n = float(np.mean([score.chance for score in scores])), sum(strata[i] == s for i in asked)
        rows.append(row(name, level, str(s), float(values[s].mean()), drawn, chance, scores, n, str(s)))
    return rows


def row(
    name: str, level: str, stratum: str, value: float, draws: ndarray, chance: float, scores: list[Score], asked: int,
    strata: str,
) -> Summary:  # fmt: skip
    """A row, with the interval and the counts."""
    n, broken = sum(score.n for score in scores), sum(score.broken for score in scores)
    return Summary(name, level, stratum, value, *interval(draws), chance, len(scores), asked, n, broken, strata)


def mean_draws(groups: Mapping[int, ndarray], rng: np.random.Generator) -> ndarray:
    """Resampled means of each group of values, drawn independently: [groups, DRAWS].

    Residuals are scaled by sqrt(n / (n - 1)), so that the spread is that of s^2 / n. A group of one value has none of its own
    and takes the other groups'; NaN where all have one.
    """
    own = [(v - v.mean()) * np.sqrt(len(v) / max(1, len(v) - 1)) for v in groups.values()]
    pooled = np.concatenate([[], *(residuals for residuals in own if len(residuals) > 1)])
    rows = []
    for values, residuals in zip(groups.values(), own, strict=True):
        spread = residuals if len(residuals) > 1 else pooled
        parts = resampled(len(spread), len(values), rng) if len(spread) else ()
        noise = [spread[chosen].mean(1) for chosen in parts] or [np.full(DRAWS, nan)]
        rows.append(values.mean() + np.concatenate(noise))
    return np.array(rows)


def differences(
    a: Sequence[Score], b: Sequence[Score], strata_a: Mapping[int, int], strata_b: Mapping[int, int], seed: int
) -> list[Difference]:
    """A row for each score that both have: a minus b as value - chance, with latents of the two sides resampled apart."""
    (left, right), rows = (excess(a), excess(b)), []
    for name in (name for name in left if name in right):
        sides = [by_stratum(left[name], strata_a), by_stratum(right[name], strata_b)]
        common = sorted(sides[0].keys() & sides[1].keys())
        kept = [{s: side[s] for s in common} for side in sides]
        if not common:
            continue
        draws = [mean_draws(side, generator(seed, name, which)) for side, which in zip(kept, "ab", strict=True)]
        means = [float(np.mean([v.mean() for v in side.values()])) for side in kept]
        n_a, n_b = (sum(len(v) for v in side.values()) for side in kept)
        ends = interval((draws[0] - draws[1]).mean(0))
        rows.append(Difference(name, means[0] - means[1], *ends, n_a, n_b, ",".join(map(str, common))))
    return rows


def by_stratum(values: Mapping[int, float], strata: Mapping[int, int]) -> dict[int, ndarray]:
    """Values of latents by stratum, in order of latent."""
    found: dict[int, list[float]] = {}
    for latent in sorted(values):
        found.setdefault(strata[latent], []).append(values[latent])
    return {stratum: np.array(group) for stratum, group in found.items()}
