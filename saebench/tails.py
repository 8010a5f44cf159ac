"""Is a sample's upper tail a power law? Fits, goodness of fit and rivals after Clauset, Shalizi, Newman (2009, arXiv 0706.1062).

A sample is its distinct values v [m], rising, and how often each occurs. With u = log(x / x0), x0 = xmin, the laws of u >= 0 are
    power law: a u                       exponential: a (e^u - 1)
    stretched: (a / b) (e^(b u) - 1)     lognormal: u normal, cut off at 0: density ~ exp(-a u - c u^2 / 2)
the first three given as -log P(U > u). The power law is the limit of the last two (b = 0, c = 0), so on continuous data their
likelihood is never below its own: they beat it or they do not. Counts follow the zeta law, p(x) ~ x^-alpha, and the rivals
rounded to whole numbers (x0 = xmin - 1/2). The package `powerlaw` (1.5 and 2.0 alike) neither thins its scan for xmin nor
bootstraps, and its stretched exponential stops short of the optimum: on 4000 draws of x^-2.5 it finds the power law likelier
by 19.6 (p 0.003) where the ratio is 0. So the fits are ours, and the tests compare them with its own where it converges.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy import ndarray

CANDIDATES = 50  # values of xmin tried, the sizes of the tails they leave in geometric progression
MIN_TAIL = 50  # values that a tail must hold, or half of the sample if that is fewer
MIN_SAMPLE = 10  # distinct values below which nothing is fitted
ALPHA = (1.0001, 20.0)  # range of a zeta law's exponent
TABLE = 4096  # values from xmin on at which draws of the zeta law are exact
TIE = 0.1  # a log likelihood ratio this near 0 is none: the rival lies at its power-law limit, where Vuong's variance is 0 too
SEARCH = {"xatol": 1e-5, "fatol": 1e-10, "maxiter": 4000, "maxfev": 4000}


class Sample(NamedTuple):
    """Distinct positive values [m], rising; `above` [m + 1] how many of the sample are at least as large (0 at the end)."""

    values: ndarray
    above: ndarray
    discrete: bool

    @property
    def counts(self) -> ndarray:
        """[m]: how often each value occurs."""
        return self.above[:-1] - self.above[1:]

    def tail(self, xmin: float) -> Sample:
        """The values from `xmin` on."""
        first = int(np.searchsorted(self.values, xmin))
        return Sample(self.values[first:], self.above[first:], self.discrete)


class Fit(NamedTuple):
    """A power law p(x) ~ x^-alpha for x >= xmin, its Kolmogorov-Smirnov distance, and the share of the sample in the tail."""

    xmin: float
    alpha: float
    ks: float
    tail_share: float


def sample_of(x: ndarray, discrete: bool = False) -> Sample:
    """A sample from its values x [n], all above 0, in any order."""
    values, counts = np.unique(x, return_counts=True)
    return Sample(values, np.append(counts[::-1].cumsum()[::-1], 0), discrete)


def fit(sample: Sample) -> Fit:
    """The power law of maximum likelihood above that xmin, of CANDIDATES, from which on it is nearest in KS distance."""
    starts = candidates(sample)  # [c] into values
    n, logs = sample.above[:-1], np.log(sample.values)
    sums = (sample.counts * logs)[::-1].cumsum()[::-1]  # [m] of log x over the tail
    alphas = exponents(sample.values[starts], n[starts], sums[starts], sample.discrete)
    distances = [distance(sample, i, alpha) for i, alpha in zip(starts, alphas, strict=True)]
    best = int(np.argmin(distances))
    i = starts[best]
    return Fit(float(sample.values[i]), float(alphas[best]), float(distances[best]), float(n[i] / n[0]))


def candidates(sample: Sample) -> ndarray:
    """Positions [c] of the candidates for xmin among the distinct values; the largest value is none."""
    n = sample.above[0]
    sizes = np.geomspace(n, min(MIN_TAIL, max(2, n // 2)), CANDIDATES).round()
    found = np.searchsorted(-sample.above[:-1], -sizes)  # the first value whose tail is no larger
    return np.unique(found.clip(max=len(sample.values) - 2))


def exponents(xmin: ndarray, n: ndarray, sums: ndarray, discrete: bool) -> ndarray:
    """The exponents of maximum likelihood [c] for tails of n values from xmin on whose logs sum to `sums` (eq. 3.1, 3.5)."""
    if not discrete:
        return 1 + n / (sums - n * np.log(xmin))
    from scipy.special import zeta

    mean, h = sums / n, 1e-4
    alpha = (1 + 1 / (mean - np.log(xmin - 0.5))).clip(*ALPHA)  # eq. 3.7, near the maximum
    for _ in range(8):  # Newton on log zeta(alpha, xmin) + alpha mean, which is convex
        low, mid, high = (np.log(zeta(alpha + step, xmin)) for step in (-h / 2, 0.0, h / 2))
        slope, bend = (high - low) / h + mean, 4 * (high - 2 * mid + low) / h**2
        alpha = (alpha - slope / np.maximum(bend, 1e-12)).clip(*ALPHA)
    return alpha


def survival(x: ndarray, xmin: float, alpha: float, discrete: bool) -> ndarray:
    """P(X >= x) of the power law from xmin on."""
    if not discrete:
        return (x / xmin) ** (1 - alpha)
    from scipy.special import zeta

    return zeta(alpha, x) / zeta(alpha, xmin)


def distance(sample: Sample, start: int, alpha: float) -> float:
    """The Kolmogorov-Smirnov distance of the tail from the value at `start` on to its power law."""
    x, n = sample.values[start:], sample.above[start:]
    share = n / n[0]  # P(X >= x)
    at = survival(x, x[0], alpha, sample.discrete)
    beyond = survival(x + 1, x[0], alpha, True) if sample.discrete else at  # P(X > x)
    return float(max(np.abs(share[:-1] - at).max(), np.abs(share[1:] - beyond).max()))


# goodness of fit


def synthetic(x: ndarray, law: Fit, discrete: bool, rng: np.random.Generator) -> ndarray:
    """As many values as x [n]: a tail drawn from the law, the rest drawn anew from those of x below xmin (section 4.1)."""
    body = x[x < law.xmin]
    n_tail = rng.binomial(len(x), law.tail_share) if len(body) else len(x)
    return np.concatenate([rng.choice(body, len(x) - n_tail) if len(body) else body, draw(law, n_tail, discrete, rng)])


def draw(law: Fit, n: int, discrete: bool, rng: np.random.Generator) -> ndarray:
    """n values from the power law; counts beyond TABLE values are rounded from the continuous law (their eq. D.6)."""
    chance = 1 - rng.random(n)  # in (0, 1]
    if not discrete:
        return pareto(law.xmin, law.alpha, chance)
    table = survival(law.xmin + np.arange(TABLE), law.xmin, law.alpha, True)  # falling
    near = law.xmin + np.searchsorted(-table, -chance, side="right") - 1
    last = law.xmin + TABLE - 1
    far = np.floor(pareto(last - 0.5, law.alpha, np.minimum(chance / table[-1], 1)) + 0.5)
    return np.where(chance <= table[-1], far, near)


def pareto(xmin: float, alpha: float, chance: ndarray) -> ndarray:
    """The value that the continuous law exceeds with a chance in (0, 1], or the largest that can be squared."""
    return xmin * np.exp(np.minimum(np.log(chance) / (1 - alpha), 300.0))


def rank_size(sample: Sample) -> tuple[float, float]:
    """The slope of log value against log rank, by least squares over all ranks, and its R^2."""
    y = np.repeat(np.log(sample.values), sample.counts)[::-1]
    x = np.log(np.arange(1, len(y) + 1))
    x, y = x - x.mean(), y - y.mean()
    slope = float(x @ y / (x @ x))
    return slope, float(slope**2 * (x @ x) / (y @ y))


# rivals


def stretched(u: ndarray, theta: ndarray) -> tuple[ndarray, ndarray]:
    """log P(U > u) and log density of u for log a, log b."""
    a, b = np.exp(theta)
    log_survival = -a / b * np.expm1(np.minimum(b * u, 700.0))
    return log_survival, theta[0] + b * u + log_survival


def exponential(u: ndarray, theta: ndarray) -> tuple[ndarray, ndarray]:
    """The stretched exponential with b = 1."""
    return stretched(u, np.array([theta[0], 0.0]))


def lognormal(u: ndarray, theta: ndarray) -> tuple[ndarray, ndarray]:
    """log P(U > u) and log density of u for a, log c."""
    a, c = theta[0], np.exp(theta[1])
    z = a / np.sqrt(2 * c)
    exponent, norm = -a * u - c * u**2 / 2, log_erfcx(z)
    return exponent + log_erfcx(z + u * np.sqrt(c / 2)) - norm, exponent - norm - 0.5 * np.log(np.pi / (2 * c))


def log_erfcx(z: ndarray) -> ndarray:
    """log(e^(z^2) erfc(z)), without overflow."""
    from scipy.special import erfcx

    return np.where(z < -20, z**2 + np.log(2), np.log(erfcx(np.maximum(z, -20))))


class Rival(NamedTuple):
    """Another law of u: its log survival and density, where the search starts (given mean and sd of u), and its bounds."""

    law: Callable[[ndarray, ndarray], tuple[ndarray, ndarray]]
    start: Callable[[float, float], list[float]]
    bounds: list[tuple[float, float]]


RIVALS = {
    "lognormal": Rival(lognormal, lambda mean, sd: [-mean / sd**2, -2 * np.log(sd)], [(-1e6, 1e6), (-16.0, 16.0)]),
    "exponential": Rival(exponential, lambda mean, sd: [-np.log(mean)], [(-40.0, 20.0)]),
    "stretched": Rival(stretched, lambda mean, sd: [-np.log(mean), -1.0], [(-40.0, 20.0), (-9.0, 3.0)]),
}


def log_likelihoods(tail: Sample, rival: Rival, theta: ndarray) -> ndarray:
    """log p of each distinct value [m] of a tail; of log x where the sample is continuous."""
    x = tail.values
    if not tail.discrete:
        return rival.law(np.log(x / x[0]), theta)[1]
    low, high = (rival.law(np.log((x + half) / (x[0] - 0.5)), theta)[0] for half in (-0.5, 0.5))
    return low + np.log(-np.expm1(np.minimum(high - low, -1e-300)))


def fit_rival(tail: Sample, rival: Rival) -> ndarray:
    """log p of each distinct value [m] under the rival's maximum likelihood."""
    from scipy.optimize import minimize

    u, n = np.log(tail.values / tail.values[0]), tail.above[0]
    mean = float(tail.counts @ u / n)
    sd = float(np.sqrt(tail.counts @ (u - mean) ** 2 / n))

    def cost(theta: ndarray) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            value = -float(tail.counts @ log_likelihoods(tail, rival, theta)) / n
        return value if np.isfinite(value) else np.inf

    start = np.clip(rival.start(mean, sd), *np.transpose(rival.bounds))
    found = minimize(cost, start, method="Nelder-Mead", bounds=rival.bounds, options=SEARCH)
    assert found.success, found.message
    return log_likelihoods(tail, rival, found.x)


def power_log_likelihoods(tail: Sample, alpha: float) -> ndarray:
    """log p of each distinct value [m] of a tail under the power law; of log x where the sample is continuous."""
    x = tail.values
    if not tail.discrete:
        return np.log(alpha - 1) - (alpha - 1) * np.log(x / x[0])
    from scipy.special import zeta

    return -alpha * np.log(x) - np.log(zeta(alpha, x[0]))


def ratio(tail: Sample, first: ndarray, second: ndarray) -> tuple[float, float]:
    """The log likelihood ratio of two laws (above 0: the first is likelier) and Vuong's two-sided p of its sign (appendix C)."""
    from scipy.special import erfc

    n, each = tail.above[0], first - second  # [m]
    total = float(tail.counts @ each)
    spread = float(tail.counts @ (each - total / n) ** 2)
    return total, float(erfc(abs(total) / np.sqrt(2 * spread))) if abs(total) > TIE else 1.0


def compare(tail: Sample, alpha: float, level: float = 0.05) -> tuple[dict[str, tuple[float, float]], str]:
    """The power law against each rival, and the laws that the likeliest does not beat at `level`, itself first (in a tie
    the power law, which has the fewest parameters)."""
    logs = {"power_law": power_log_likelihoods(tail, alpha)}
    logs |= {name: fit_rival(tail, rival) for name, rival in RIVALS.items()}
    order = sorted(logs, key=lambda name: -float(tail.counts @ logs[name]) - TIE * (name == "power_law"))
    best = [order[0], *(name for name in order[1:] if ratio(tail, logs[order[0]], logs[name])[1] >= level)]
    return {name: ratio(tail, logs["power_law"], logs[name]) for name in RIVALS}, " ".join(best)
