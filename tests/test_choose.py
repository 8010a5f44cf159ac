"""Costs of views by hand, the cheapest within limits, the frontier, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from saebench.checks import InputError
from saebench.choose import bits, choose, chosen_text, frontier, macs, named, with_costs
from tests.synthetic_runs import write_run


def test_costs_by_hand() -> None:
    row = {"d_in": 10, "d_sae": 64, "m": 16, "l0": 3.0, "k": 4, "order": "prune_then_select"}
    assert macs(row) == 10 * (16 + 3)
    assert macs(row | {"order": "select_then_prune"}) == 10 * (64 + 3)
    assert macs(row | {"order": "select_then_prune", "k": None}) == 10 * (16 + 3)  # ReLU's latents do not compete
    assert bits(16, 3.0) == pytest.approx(math.log2(math.comb(16, 3)) + 48)
    assert bits(16, 16.0) == pytest.approx(256)
    assert bits(4, 2.5) > bits(4, 2.0)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path, "matryoshka", 256, 16)


def test_the_cheapest_view_within_a_limit(run: Path) -> None:
    views = with_costs(pd.read_csv(run / "metrics.csv").query("tokens == 'typical'"))
    limit = float(np.median(views["fvu"]))
    for by in ("macs", "bits"):
        best, _ = choose(run, {"fvu": limit}, by)
        fitting = views.query("fvu <= @limit")
        assert best["fvu"] <= limit
        assert best[by] == pytest.approx(min(fitting[by]))
    cost = float(np.quantile(views["macs"], 0.3))
    small, _ = choose(run, {"macs": cost, "l0": None})
    assert small["fvu"] == min(views.loc[views["macs"] <= cost, "fvu"])
    assert named(choose(run, {"flops": 2 * cost})[0]) == named(small)
    both, _ = choose(run, {"fvu": limit, "l0": 12.0})
    assert both["l0"] <= 12
    assert both["fvu"] <= limit


def test_no_view_beats_those_of_the_frontier(run: Path) -> None:
    best, front = choose(run, {"fvu": 1.0})
    views = with_costs(pd.read_csv(run / "metrics.csv").query("tokens == 'typical'"))
    for row in front.to_dict("records"):
        assert views.query(f"macs <= {row['macs']} and fvu < {row['fvu']}").empty
    assert front["macs"].is_monotonic_increasing
    assert front["fvu"].is_monotonic_decreasing
    assert len(frontier(views, "bits")) > 1
    text = chosen_text(best, front).splitlines()
    assert len(text) == len(front) + 1
    assert sum("->" in line for line in text) == 1
    assert len({len(line) for line in text}) == 1
    beaten = views.drop(index=front.index).iloc[0].to_dict()
    assert "->" in chosen_text(beaten | {"ce_increase": 0.1}, front).splitlines()[1]


@pytest.mark.parametrize(
    ("limits", "by", "message"),
    [
        ({"fvu": None}, "macs", "name at least one limit"),
        ({"fvu": 1e-6}, "macs", r"--fvu=1e-06: fvu is 0\.\d+ at the least among the \d+ views left"),
        ({"fvu": 0.9}, "joules", "--by=joules"),
    ],
)
def test_what_cannot_be_chosen_is_said(run: Path, limits: dict[str, float | None], by: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose(run, limits, by)


def test_a_folder_without_metrics_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metrics\.csv: missing"):
        choose(tmp_path, {"fvu": 0.1})
