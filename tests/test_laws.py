"""Importance laws: known exponents come back, other laws are told from them, a second call measures nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import save_file

from saebench.checks import InputError
from saebench.figures.data import read_groups
from saebench.figures.laws import importance_laws
from saebench.laws import LAWS, LEVELS, law_row, spectrum, write_laws
from saebench.levels import level_rows, max_cosines
from saebench.progress import Progress
from saebench.store import checksum, write_json
from saebench.tables import write_tables
from saebench.tails import Fit, compare, distance, draw, fit, rank_size, ratio, sample_of, survival, synthetic
from tests.synthetic_runs import write_run

TOKENS = 65536


def law(values: np.ndarray, discrete: bool = False, replicates: int = 40) -> dict[str, Any]:
    """The columns of laws.csv for a sample."""
    return law_row(values, discrete, replicates, Progress(1, "samples", "test"))


def pareto(n: int, alpha: float, seed: int = 0) -> np.ndarray:
    """n draws of x^-alpha, x >= 1."""
    return (1 - np.random.default_rng(seed).random(n)) ** (1 / (1 - alpha))


@pytest.mark.parametrize(("alpha", "discrete"), [(1.5, False), (2.5, False), (3.5, False), (1.8, True), (2.5, True)])
def test_a_known_exponent_is_recovered(alpha: float, discrete: bool) -> None:
    tail = draw(Fit(8.0, alpha, 0.0, 1.0), 3000, discrete, np.random.default_rng(3))
    body = np.random.default_rng(4).integers(1, 8, 1500)
    row = law(np.concatenate([tail, body]), discrete)
    assert row["alpha_low"] <= alpha <= row["alpha_high"]
    assert row["alpha"] == pytest.approx(alpha, abs=0.1 * (alpha - 1))
    assert row["p_gof"] > 0.1
    assert "power_law" in row["best"].split()
    assert row["p_exponential"] < 0.05 < row["lr_exponential"]


@pytest.mark.parametrize("name", ["lognormal", "exponential", "stretched"])
def test_another_law_is_told_from_a_power_law(name: str) -> None:
    rng = np.random.default_rng(5)
    draws = {"lognormal": rng.lognormal(0, 1, 4000), "exponential": rng.exponential(1, 4000)}
    values = draws.get(name, rng.weibull(0.6, 4000))
    tail = sample_of(values).tail(float(np.median(values)))  # where the law holds, and not a few values at the end
    exponent = float(1 + 1 / np.log(values[values >= np.median(values)] / np.median(values)).mean())
    ratios, best = compare(tail, exponent)
    assert ratios[name][0] < 0
    assert ratios[name][1] < 1e-6
    assert name in best.split()
    assert "power_law" not in best.split()
    assert law(values)["tail_share"] < 0.2  # the scan for xmin retreats to where all tails look alike


def test_goodness_of_fit_rejects_a_bent_tail_and_accepts_powers() -> None:
    rng = np.random.default_rng(6)
    bent = np.minimum(pareto(2000, 2.0), 30) * rng.uniform(0.999, 1, 2000)  # a power law with a wall
    assert law(bent)["p_gof"] < 0.1
    accepted = [law(pareto(500, 2.0, seed), replicates=20)["p_gof"] > 0.1 for seed in range(8)]
    assert sum(accepted) >= 6


def test_the_rank_size_slope_is_exact_on_a_line() -> None:
    rank = np.arange(1, 301)
    slope, r2 = rank_size(sample_of(7.0 * rank**-1.3))
    assert (slope, r2) == pytest.approx((-1.3, 1.0))


@pytest.mark.parametrize("discrete", [False, True])
def test_fits_by_hand(discrete: bool) -> None:
    x = np.array([2.0, 3, 3, 5, 9, 14])
    sample = sample_of(x, discrete)
    assert sample.counts.tolist() == [1, 2, 1, 1, 1]
    found = fit(sample)
    grid = np.arange(1.01, 6, 0.001)
    tail = x[x >= found.xmin]
    values = np.unique(np.concatenate([np.arange(found.xmin, 40) if discrete else tail]))
    from scipy.special import zeta

    norm = np.log(zeta(grid, found.xmin)) if discrete else -np.log(grid - 1) + (1 - grid) * np.log(found.xmin)
    likelihood = -grid * np.log(tail).sum() - len(tail) * norm
    assert found.alpha == pytest.approx(grid[likelihood.argmax()], abs=0.001)
    at = np.array([(tail >= v).mean() for v in values]) - survival(values, found.xmin, found.alpha, discrete)
    beyond = np.array([(tail > v).mean() for v in values])
    beyond -= survival(values + discrete, found.xmin, found.alpha, discrete)
    assert found.ks == pytest.approx(max(np.abs(at).max(), np.abs(beyond).max()))


def test_draws_follow_the_law_they_are_drawn_from() -> None:
    rng = np.random.default_rng(7)
    for xmin, alpha, discrete in ((1.0, 2.0, True), (5.0, 1.5, True), (0.3, 3.0, False)):
        sample = sample_of(draw(Fit(xmin, alpha, 0.0, 1.0), 20_000, discrete, rng), discrete)
        assert distance(sample, 0, alpha) < 1.63 / np.sqrt(20_000) + (0 if sample.values[0] == xmin else 1e-3)
    values = np.concatenate([rng.uniform(0.1, 1, 900), pareto(100, 2.0)])
    again = synthetic(values, Fit(1.0, 2.0, 0.0, 0.1), False, rng)
    assert len(again) == 1000
    assert np.isin(again[again < 1], values).all()
    assert (again >= 1).sum() == pytest.approx(100, abs=45)


@pytest.mark.filterwarnings("ignore")  # the package warns of its own optimiser
def test_fits_agree_with_the_package_where_its_own_converge() -> None:
    powerlaw = pytest.importorskip("powerlaw")
    rng = np.random.default_rng(8)
    for values, discrete in ((rng.lognormal(0, 1, 3000), False), (np.floor(rng.lognormal(3, 1, 3000)) + 1, True)):
        xmin = float(np.floor(np.quantile(values, 0.4))) or float(np.quantile(values, 0.4))
        theirs = powerlaw.Fit(values, xmin=xmin, discrete=discrete, estimate_discrete=False, verbose=0)
        tail = sample_of(values, discrete).tail(xmin)
        ratios, _ = compare(tail, float(theirs.power_law.alpha))
        for name in ("lognormal", "stretched_exponential"):
            expected = theirs.distribution_compare("power_law", name)
            assert ratios[name.split("_")[0]][0] == pytest.approx(expected[0], abs=0.5)


def test_vuongs_p_by_hand() -> None:
    sample = sample_of(np.array([1.0, 2, 3, 4]))
    first, second = np.array([1.0, 2, 3, 4]), np.array([0.0, 2, 1, 4])
    total, p = ratio(sample, first, second)  # differences 1 0 2 0: sum 3, squares about the mean 2.75
    assert total == 3
    assert p == pytest.approx(0.0704404, abs=1e-6)  # erfc(3 / sqrt(5.5))


def test_the_spectrum_is_that_of_the_covariance() -> None:
    rng = np.random.default_rng(9)
    W_dec = (rng.normal(size=(5000, 6)) * [6, 5, 4, 3, 2, 1] + 40).astype(np.float32)
    np.testing.assert_allclose(spectrum(W_dec), np.linalg.eigvalsh(np.cov(W_dec.T, bias=True))[::-1], rtol=1e-4)
    assert len(spectrum(W_dec[:4])) == 3  # four rows span three dimensions about their mean


def test_levels_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saebench.levels.BLOCK", 7)
    W_dec = np.random.default_rng(10).normal(size=(30, 5)).astype(np.float32)
    unit = W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True)
    gram = unit @ unit.T - 3 * np.eye(30)
    with Progress(15, "blocks", "test") as progress:
        np.testing.assert_allclose(max_cosines(W_dec, progress), gram.max(1), rtol=1e-5)
    assert progress.done == 15
    rows = level_rows(np.array([0.5, 0.0, 0.25, 0.0]), np.array([4.0, 0, 1, 0]), np.array([0.1, 0.3, 0.5, 0.7]), [2, 4])
    assert [list(row.values()) for row in rows] == [
        ["0", 0, 2, 0.25, 2.0, 0.5, 0.2],
        ["1", 2, 4, 0.125, 0.5, 0.5, 0.6],
        ["all", 0, 4, 0.1875, 1.25, 0.5, pytest.approx(0.4)],
    ]


def write_measured(outputs: Path, variant: str, seed: int = 0) -> Path:
    """A finished run with a decoder, and frequencies that are shares of TOKENS tokens."""
    run = write_run(outputs, variant, seed=seed, train__batch_size=2048, train__importance_tokens=TOKENS + 7)
    latents = pd.read_csv(run / "latents.csv")
    latents["frequency"] = (latents["frequency"] * TOKENS).round() / TOKENS
    latents.to_csv(run / "latents.csv", index=False)
    W_dec = np.random.default_rng(seed).normal(size=(256, 64)).astype(np.float32)
    save_file({"W_dec": W_dec}, run / "sae.safetensors")
    files = {name: {"sha256": checksum(run / name)} for name in ("latents.csv", "sae.safetensors")}
    write_json(run / "done.json", {"inputs": {}, "files": files})
    return run


def test_tables_and_figure_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [write_measured(tmp_path, "topk"), *(write_measured(tmp_path, "matryoshka", seed) for seed in (0, 1))]
    write_tables(tmp_path)
    (before,) = read_groups(tmp_path)
    assert importance_laws(before) == []  # the tables of laws are optional
    written = write_laws(tmp_path, 20)
    assert sorted(path.name for path in written) == ["laws.csv", "levels.csv", "ranks.csv"]
    laws, levels = (pd.read_csv(tmp_path / "tables" / name) for name in ("laws.csv", "levels.csv"))
    assert (list(laws), list(levels)) == (LAWS, LEVELS)
    assert (
        laws.groupby("run")["quantity"].apply(list).tolist() == [["energy", "frequency", "firings", "eigenvalue"]] * 3
    )
    assert (laws.loc[laws["quantity"] == "eigenvalue", "n"] == 64).all()
    frequency, firings = (laws.loc[laws["quantity"] == name].reset_index() for name in ("frequency", "firings"))
    np.testing.assert_allclose(frequency["alpha"], firings["alpha"], rtol=0.1)
    np.testing.assert_allclose(frequency["slope"], firings["slope"])
    prefixes = yaml.safe_load((runs[1] / "config.yaml").read_text())["sae"]["prefixes"]
    assert (
        levels.groupby("run")["last"].apply(list).tolist() == [[*prefixes, prefixes[-1]]] * 3
    )  # topk cut at the nested runs' sizes

    monkeypatch.setattr("saebench.laws.measure", None)  # a second call measures nothing
    before_again = (tmp_path / "tables" / "laws.csv").read_bytes()
    write_laws(tmp_path, 20)
    assert (tmp_path / "tables" / "laws.csv").read_bytes() == before_again

    (group,) = read_groups(tmp_path)
    (figure,) = importance_laws(group)
    dashed = [[line.get_linestyle() for line in ax.get_lines()].count("--") for ax in figure.axes]
    assert dashed == [1, 1, 1, 2, 2, 2]  # a fit for each run, a row for each configuration


def test_few_values_are_counted_and_not_fitted() -> None:
    assert law(np.array([1.0, 2, 3] * 20)) == {"n": 60}


def test_runs_without_a_decoder_are_named(tmp_path: Path) -> None:
    write_run(tmp_path, train__importance_tokens=TOKENS)
    with pytest.raises(InputError, match=r"no latents.csv and no sae.safetensors; remove the folder"):
        write_laws(tmp_path, 20)
    with pytest.raises(InputError, match=r"--replicates=3: must be at least 20"):
        write_laws(tmp_path, 3)
