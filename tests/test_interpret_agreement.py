"""Agreement of scores and their summaries: against scipy, by hand, and in the spread of their intervals."""

from __future__ import annotations

from math import isnan

import numpy as np
import pytest
from scipy.stats import spearmanr

from saebench.interpret.agreement import agreement, differences, mean_draws, summarise
from saebench.interpret.contexts import Score


def scores(name: str, values: dict[int, float], chance: float = 0.0, broken: int = 0) -> list[Score]:
    return [Score(latent, name, value, chance, 10, broken) for latent, value in values.items()]


def test_rho_is_spearmans_over_latents_that_have_both() -> None:
    rng = np.random.default_rng(0)
    x = {i: float(value) for i, value in enumerate(rng.integers(6, size=40))}
    y = {i: x[i] + float(rng.normal()) for i in range(10, 40)} | {99: 1.0}
    (row,) = agreement([*scores("probe", x, 0.5), *scores("detection", y, 0.5)], ["detection"], seed=0)
    expected = float(np.asarray(spearmanr([x[i] for i in range(10, 40)], [y[i] for i in range(10, 40)])[0]))
    assert (row.score, row.judged, row.n) == ("probe", "detection", 30)
    assert row.rho == pytest.approx(expected)
    assert row.low < row.rho < row.high


def test_opposite_scores_disagree_and_constant_ones_have_no_rho() -> None:
    rows = agreement(
        [
            *scores("up", {i: i for i in range(9)}),
            *scores("flat", dict.fromkeys(range(9), 1.0)),
            *scores("judged", {i: -(i**3) for i in range(9)}),
        ],
        ["judged", "not made"],
        seed=0,
    )
    assert [(row.score, row.judged) for row in rows] == [("up", "judged"), ("flat", "judged")]
    assert (rows[0].rho, rows[0].low, rows[0].high) == pytest.approx((-1, -1, -1))
    assert isnan(rows[1].rho)
    assert isnan(rows[1].low)


def test_agreement_is_over_chance() -> None:
    """Two scores whose values agree only because their chances do."""
    a = [Score(i, "purity", 0.1 * i, 0.1 * i - [0, 1, 0, 1][i], 5) for i in range(4)]
    (row,) = agreement([*a, *scores("judged", {0: 0, 1: 1, 2: 0, 3: 1})], ["judged"], seed=0)
    assert row.rho == pytest.approx(1)


def test_the_interval_of_rho_covers_the_truth() -> None:
    """Independent scores: 0 lies outside of about 1 in 20 intervals; of 40, more than 8 in one run of 10,000."""
    misses = 0
    for seed in range(40):
        x, y = np.random.default_rng(seed).normal(size=(2, 30))
        (row,) = agreement([*scores("a", dict(enumerate(x))), *scores("b", dict(enumerate(y)))], ["b"], seed)
        misses += not row.low <= 0 <= row.high
    assert misses <= 8


def test_strata_weigh_equally() -> None:
    values = {0: 1.0, **dict.fromkeys(range(1, 10), 0.0)}
    strata = {i: 1 if i == 0 else 3 for i in range(10)} | {10: 3}
    rows = summarise(scores("probe", values, 0.25, broken=1), strata, {}, seed=0)
    found = {(row.level, row.stratum): row for row in rows}
    assert list(found) == [("all", "all"), ("all", "1"), ("all", "3")]
    whole = found["all", "all"]
    assert (whole.value, whole.chance, whole.latents, whole.asked, whole.n, whole.broken) == (
        0.5,
        0.25,
        10,
        11,
        100,
        10,
    )
    assert whole.strata == "1,3"
    assert (found["all", "3"].value, found["all", "3"].latents, found["all", "3"].asked) == (0.0, 9, 10)


def test_levels_are_summarised_apart() -> None:
    values = {i: float(i >= 4) for i in range(8)}
    strata, levels = {i: i % 2 for i in range(8)}, {i: "inner" if i < 4 else "outer" for i in range(8)}
    rows = summarise(scores("probe", values), strata, levels, seed=0)
    means = {row.level: row.value for row in rows if row.stratum == "all"}
    assert means == {"all": 0.5, "inner": 0.0, "outer": 1.0}
    assert {row.stratum for row in rows if row.level == "inner"} == {"all", "0", "1"}


def test_resampled_means_spread_like_the_standard_error() -> None:
    rng = np.random.default_rng(0)
    groups = {1: rng.normal(size=3), 2: rng.normal(size=200) * 3, 4: np.array([5.0])}
    draws = mean_draws(groups, rng)
    for values, drawn in zip([groups[1], groups[2]], draws, strict=False):
        assert drawn.mean() == pytest.approx(values.mean(), abs=4 * drawn.std() / len(drawn) ** 0.5)
        assert drawn.std() == pytest.approx(values.std(ddof=1) / len(values) ** 0.5, rel=0.1)
    others = np.concatenate([groups[1] - groups[1].mean(), groups[2] - groups[2].mean()])
    assert draws[2].mean() == pytest.approx(5, abs=0.5)
    assert draws[2].std() == pytest.approx(others.std(), rel=0.1)  # borrowed from the other groups


def test_lone_latents_have_no_interval() -> None:
    rows = summarise(scores("probe", {0: 0.5, 1: 0.7}), {0: 1, 1: 2}, {}, seed=0)
    assert rows[0].value == pytest.approx(0.6)
    assert all(isnan(row.low) and isnan(row.high) for row in rows)


def test_differences_are_over_common_strata_and_chance() -> None:
    """b is better in both strata that it shares, but has its latents where scores are low."""
    a = {i: [0.2, 0.8, 0.9][i % 3] for i in range(30)}
    b = dict.fromkeys(range(20), 0.3) | {20: 0.9, 21: 0.9}
    strata_a, strata_b = {i: i % 3 for i in a}, {i: 0 if i < 20 else 1 for i in b}
    (row,) = differences(scores("probe", b), scores("probe", a, 0.1), strata_b, strata_a, seed=0)
    assert row.value == pytest.approx((0.3 + 0.9) / 2 - (0.1 + 0.7) / 2)
    assert (row.strata, row.latents_a, row.latents_b) == ("0,1", 22, 20)
    assert row.low <= row.value <= row.high
    (same,) = differences(scores("probe", a), scores("probe", a), strata_a | {0: 1}, strata_a | {0: 1}, seed=0)
    assert same.low < same.value == 0 < same.high  # equal latents of two SAEs are two samples all the same
    assert differences(scores("probe", {0: 1.0}), scores("probe", {1: 1.0}), {0: 0}, {1: 1}, seed=0) == []


def test_the_interval_of_a_difference_covers_no_difference() -> None:
    misses = 0
    for seed in range(60):
        x, y = np.random.default_rng(seed).normal(size=(2, 20))
        strata = {i: i % 2 for i in range(20)}
        (row,) = differences(scores("s", dict(enumerate(x))), scores("s", dict(enumerate(y))), strata, strata, seed)
        misses += not row.low <= 0 <= row.high
    assert 0 < misses <= 10
