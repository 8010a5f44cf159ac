"""Metrics by hand, their invariances, and the mistakes that other libraries made."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saebench.metrics import Moments, Reconstruction, TokenSums, recovered
from tests.configs import synthetic


def measure(x: Tensor, x_hat: Tensor, batch: int = 1000, centre: Tensor | None = None) -> dict[str, float]:
    """The metrics row of a reconstruction, streamed in batches."""
    centre = x.mean(0) if centre is None else centre
    parts = []
    counts = torch.arange(len(x)) % 3
    for a, b, l0 in zip(x.split(batch), x_hat.split(batch), counts.split(batch), strict=True):
        fired = torch.tensor([1, 0, 2])
        tokens = TokenSums((a - b).square().sum(1).double(), a.square().sum(1).double(), l0)
        parts.append((Moments.of(a - centre), Reconstruction.of(a, b, centre, tokens, fired)))
    moments, sums = parts[0]
    for m, s in parts[1:]:
        moments, sums = moments + m, sums + s
    return sums.row(moments, torch.ones(3, dtype=torch.bool))


def test_fvu_of_the_mean_predictor_is_one_and_of_x_itself_zero() -> None:
    x = synthetic(4000) + 1000  # a large mean: where squaring before averaging goes wrong
    mean = x.double().mean(0).float().expand_as(x)
    row = measure(x, mean)
    assert row["fvu"] == pytest.approx(1, abs=1e-5)
    assert row["fvu_std"] == pytest.approx(1, abs=1e-5)
    perfect = measure(x, x)
    assert perfect["fvu"] == 0
    assert perfect["cka"] == pytest.approx(1, abs=1e-9)
    assert perfect["cka_std"] == pytest.approx(1, abs=1e-9)
    assert row["dead_fraction"] == pytest.approx(1 / 3)


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 300), shift=st.floats(-100, 100), scale=st.floats(0.1, 50))
def test_metrics_do_not_depend_on_batches_shift_or_scale(batch: int, shift: float, scale: float) -> None:
    x = synthetic(300)
    x_hat = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    plain = measure(x, x_hat)
    moved = measure(x * scale + shift, x_hat * scale + shift, batch)
    for name in ("fvu", "fvu_std", "cka", "cka_std", "l0", "l0_p05", "l0_p95", "dead_fraction"):
        assert moved[name] == pytest.approx(plain[name], rel=2e-3), name


def test_values_by_hand() -> None:
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [2.0, 4.0]])
    x_hat = x + torch.tensor([1.0, 0.0])
    row = measure(x, x_hat, centre=torch.zeros(2))
    assert row["mse"] == 0.5
    assert row["fvu"] == pytest.approx(4 / (4 * 1 + 4 * 4))
    assert row["fvu_std"] == pytest.approx((1 / 1 + 0) / 2)
    assert row["nmse"] == pytest.approx(4 / (4 + 16 + 20))
    assert row["l0"] == 0.75
    assert (row["l0_p05"], row["l0_p95"]) == (0, 2)


def test_cka_against_the_gram_matrix_definition() -> None:
    x, y = synthetic(200).double(), synthetic(200, seed=3).double()
    y = x @ torch.randn(24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) + y
    centring = torch.eye(200, dtype=torch.float64) - 1 / 200
    k, m = centring @ x @ x.T @ centring, centring @ y @ y.T @ centring
    expected = (k * m).sum() / (k.norm() * m.norm())
    assert measure(x.float(), y.float())["cka"] == pytest.approx(float(expected), rel=1e-4)


def test_moments_refuse_what_is_undefined() -> None:
    with pytest.raises(ValueError, match="no tokens"):
        Moments.of(torch.zeros(0, 3)).variance()
    with pytest.raises(ValueError, match="does not vary"):
        Moments.of(torch.zeros(5, 3)).variance()


def test_recovered() -> None:
    assert recovered(2.0, 2.0, 8.0) == 1
    assert recovered(2.0, 8.0, 8.0) == 0
    assert recovered(2.0, 3.5, 8.0) == 0.75
