"""Logistic regressions: closed forms, two solvers against each other, conditions of the optimum, any scale of features."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from saebench.probing.logistic import Design, balanced, f1, fit, fit_few, lasso, signs
from saebench.sparse import SparseLatents


def problem(n: int = 200, d: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Sparse features [n, d], two labels [n, 2] and which rows train [n]."""
    g = torch.Generator().manual_seed(seed)
    x = torch.relu(torch.randn(n, d, generator=g, dtype=torch.float64) - 0.5)
    noise = torch.randn(n, 2, generator=g, dtype=torch.float64)
    y = x[:, :2] - x[:, 2:4] + noise > 0.5
    return x, y, torch.arange(n) < 150


def test_a_feature_of_two_values_has_the_log_odds_of_its_counts() -> None:
    x = torch.tensor([[1.0]] * 4 + [[0.0]] * 4)
    y = torch.tensor([True, True, True, False, True, False, False, False])
    for probe in (
        fit_few(x, y, torch.ones(8, dtype=torch.float64), 1e-9),
        fit(Design.dense(x, torch.ones(8, dtype=torch.bool)), y[:, None], torch.ones(8, 1, dtype=torch.float64), 1e-9),
    ):
        assert float(probe.b) == pytest.approx(-math.log(3), abs=1e-4)
        assert float(probe.w) == pytest.approx(2 * math.log(3), abs=1e-4)


def test_both_solvers_find_the_optimum_of_dense_and_of_sparse_features() -> None:
    x, y, train = problem()
    weights = balanced(y, train)
    dense, sparse = Design.dense(x, train), Design.sparse(SparseLatents.from_dense(x), train)
    one, other = fit(dense, y, weights, 1.0), fit(sparse, y, weights, 1.0)
    assert one.w == pytest.approx(other.w, abs=2e-4)
    assert one.b == pytest.approx(other.b, abs=2e-4)
    for i in range(2):
        few = fit_few(x, y[:, i], weights[:, i], 1.0)
        assert few.w[:, 0] == pytest.approx(one.w[:, i], abs=2e-4)


def test_the_gradient_vanishes_at_the_optimum() -> None:
    x, y, train = problem()
    weights, design = balanced(y, train), Design.dense(x, train)
    few = fit_few(x, y[:, 0], weights[:, 0], 0.3)
    w = (few.w[:, 0] * design.scale).requires_grad_()
    b = (few.b[0] + design.centre @ few.w[:, 0]).requires_grad_()
    assert isinstance(design.x, Tensor)
    margin = signs(y[:, 0]) * (design.x @ w + b)
    loss = (weights[:, 0] * torch.log1p(torch.exp(-margin))).sum() + 0.15 * w.square().sum()
    loss.backward()
    assert w.grad is not None and b.grad is not None  # noqa: PT018
    assert float(w.grad.abs().max()) < 1e-9
    assert float(b.grad.abs()) < 1e-9


def test_rows_that_do_not_train_have_no_effect() -> None:
    x, y, train = problem()
    weights = balanced(y, train)
    assert float(weights[~train].abs().max()) == 0
    assert float(weights[train & y[:, 0], 0].sum()) == pytest.approx(75)  # half of the rows' weight on either side
    before = fit_few(x[train], y[train, 0], weights[train, 0], 1.0)
    assert fit_few(x, y[:, 0], weights[:, 0], 1.0).w == pytest.approx(before.w, abs=1e-9)


def test_the_scale_of_features_does_not_matter() -> None:
    x, y, train = problem()
    weights, factor = balanced(y, train)[:, 0], torch.tensor([1e-3, 1, 10, 1e4, 7, 0.1])
    one, other = fit_few(x, y[:, 0], weights, 1.0), fit_few(x * factor + 3.0, y[:, 0], weights, 1.0)
    assert x @ one.w + one.b == pytest.approx((x * factor + 3.0) @ other.w + other.b, abs=1e-6)


def test_the_l1_probe_meets_the_conditions_of_its_optimum() -> None:
    x, y, train = problem()
    weights = balanced(y, train)
    design = Design.sparse(SparseLatents.from_dense(x), train)
    w = lasso(design, y, weights, 0.05)
    dense = Design.dense(x, train)
    assert isinstance(dense.x, Tensor)
    for i in range(2):
        best = torch.zeros((), dtype=torch.float64).requires_grad_()
        optimiser = torch.optim.LBFGS([best], max_iter=100, line_search_fn="strong_wolfe")
        scores, t, s = dense.x @ w[:, i], signs(y[:, i]), weights[:, i]

        def closure(
            scores: Tensor = scores, t: Tensor = t, s: Tensor = s, b: Tensor = best, o: torch.optim.LBFGS = optimiser
        ) -> Tensor:
            o.zero_grad()
            loss = (s * torch.log1p(torch.exp(-t * (scores + b)))).sum() / 150
            loss.backward()
            return loss

        optimiser.step(closure)  # pyright: ignore[reportArgumentType]
        slope = -t * s * torch.sigmoid(-t * (scores + best.detach())) / 150
        gradient = dense.x.T @ slope  # [d]
        zero = w[:, i] == 0
        assert gradient[~zero] == pytest.approx(-0.05 * w[~zero, i].sign(), abs=1e-4)
        assert bool((gradient[zero].abs() <= 0.05 + 1e-4).all())
        assert bool(zero.any())
        assert w[i, i] > 0 > w[i + 2, i]
    assert float(lasso(design, y, weights, 10.0).abs().max()) == 0


def test_f1_is_counted_by_hand() -> None:
    y = torch.tensor([True, True, True, False, False])
    assert float(f1(torch.tensor([True, True, False, True, False]), y)) == pytest.approx(2 / 3)
    assert float(f1(torch.zeros(5, dtype=torch.bool), torch.zeros(5, dtype=torch.bool))) == 0
