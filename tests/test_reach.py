"""The search for a knob that gives a mean L0: on formulas, and on runs of the embedded model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from saebench.checks import InputError
from saebench.reach import Seeker, reach, reached_table
from tests.configs import run_config
from tests.test_pipeline import small


def seek(seeker: Seeker, l0: Callable[[float], float], most: int = 12) -> dict[float, dict[str, float]]:
    """Move the knob against a formula until every target is settled."""
    wanted = seeker.first()
    while wanted:
        seeker.known.update({value: l0(value) for value in wanted})
        wanted = seeker.settle(0.05, most)
    return seeker.found


def coefficient(targets: list[float]) -> Seeker:
    return Seeker(run_config("sae=jumprelu", "sae.target_l0=null", "sae.l0=1"), targets)


def test_a_knob_that_is_the_l0_is_right_at_once() -> None:
    seeker = Seeker(run_config("sae=batchtopk", "sae.k=32"), [16.0, 64.0])
    assert seeker.key == "k"
    assert seek(seeker, lambda k: k * 1.01) == {
        16.0: {"knob": 16.0, "l0": 16 * 1.01, "hit": True, "runs": 1},
        64.0: {"knob": 64.0, "l0": 64 * 1.01, "hit": True, "runs": 1},
    }
    assert {cfg.sae.k for cfg in map(seeker.at, seeker.known)} == {16, 64}  # pyright: ignore[reportAttributeAccessIssue]
    steered = Seeker(run_config("sae=jumprelu", "sae.target_l0=20"), [16.0])
    assert steered.key == "target_l0"
    found = seek(steered, lambda target: target * 1.2)  # misses, and is corrected
    assert found[16.0]["hit"]
    assert found[16.0]["runs"] == 2
    assert found[16.0]["knob"] == pytest.approx(16 / 1.2, rel=0.01)


@pytest.mark.parametrize("power", [0.3, 1.0, 2.5])
def test_a_coefficient_is_found_by_interpolation(power: float) -> None:
    seeker = coefficient([16.0, 32.0, 64.0])
    assert seeker.key == "l0"
    found = seek(seeker, lambda c: 300.0 * c**-power / (1 + 0.2 * math.log1p(c)))
    assert all(one["hit"] and abs(one["l0"] / target - 1) <= 0.05 for target, one in found.items())
    assert all(2 <= one["runs"] <= 6 for one in found.values())
    assert len(seeker.known) <= sum(one["runs"] for one in found.values())


def test_what_cannot_be_reached_is_given_up() -> None:
    stuck = seek(coefficient([16.0]), lambda c: 100.0, most=4)
    assert stuck == {16.0: {"knob": 1.0, "l0": 100.0, "hit": False, "runs": 4}}
    dead = seek(coefficient([16.0]), lambda c: 0.0 if c > 0.05 else 17.0 * 0.05 / c)
    assert dead[16.0]["runs"] <= 12


def test_runs_are_trained_counted_and_judged(tmp_path: Path) -> None:
    configs = [
        small(tmp_path, "sae=batchtopk", "sae.k=4", "evaluate.ce_tokens=0"),
        small(tmp_path, "sae=jumprelu", "sae.target_l0=null", "sae.l0=1", "evaluate.ce_tokens=0"),
    ]
    rows = reach(configs, [2.0, 4.0], tolerance=0.3, most=3)
    table = pd.read_csv(tmp_path / "tables" / "reached.csv")
    assert list(table["knob_key"]) == ["sae.k", "sae.k", "sae.l0", "sae.l0"]
    assert table["hit"].tolist() == ((table["l0"] / table["target"] - 1).abs() <= 0.3).tolist()
    assert (tmp_path / "runs" / table["run"].iloc[0] / "metrics.csv").is_file()  # k=4, the configured run
    assert table["runs"].between(1, 3).all()
    trained = list((tmp_path / "runs").glob("*/done.json"))
    assert len(trained) >= 3
    assert reached_table(rows).count("sae.k") == 2
    assert reach(configs, [2.0, 4.0], tolerance=0.3, most=3) == rows  # all of it known already
    assert sorted((tmp_path / "runs").glob("*/done.json")) == sorted(trained)
    with pytest.raises(InputError, match=r"--l0=0: must be positive"):
        reach(configs, [0.0])


def test_each_layer_is_measured_on_its_own_activations(tmp_path: Path) -> None:
    given = ["sae=batchtopk", "sae.k=4", "evaluate.ce_tokens=0"]
    alone = reach([small(tmp_path / "alone", *given, "model.layer=1")], [4.0], 0.3, 1)
    layers = [small(tmp_path / "both", *given, f"model.layer={layer}") for layer in (3, 1)]
    both = reach(layers, [4.0], 0.3, 1)
    assert both[0]["l0"] != both[1]["l0"]
    assert both[1]["l0"] == alone[0]["l0"]
