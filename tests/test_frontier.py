"""Areas under the frontier by hand, over the L0 that all curves share; which views make a curve."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from saebench.frontier import Views, mean_over_log, measured, worst_step, write_frontier
from saebench.tables import write_tables
from tests.synthetic_runs import write_run


def views(*points: tuple[float, float]) -> Views:
    l0, fvu = np.array(points).T
    return {"l0": l0, "fvu": fvu, "fvu_std": fvu, "cka_std": 1 - fvu}


def test_the_mean_over_log_l0_by_hand() -> None:
    curve = views((2, 0.4), (8, 0.2))
    assert mean_over_log(curve, "fvu", 2, 8) == pytest.approx(0.3)
    assert mean_over_log(curve, "fvu", 4, 8) == pytest.approx(0.25)
    bent = views((1, 1.0), (2, 0.5), (4, 0.5))
    assert mean_over_log(bent, "fvu", 1, 4) == pytest.approx((0.75 + 0.5) / 2)
    assert mean_over_log(bent, "fvu", math.sqrt(2), 4) == pytest.approx((0.625 / 2 + 0.5) / 1.5)


def test_the_worst_step() -> None:
    assert worst_step(views((1, 0.4), (2, 0.2), (4, 0.19))) == pytest.approx(0.19 / 0.2 - 1)
    assert worst_step(views((1, 0.4), (2, 0.5))) == pytest.approx(0.25)


def test_areas_are_over_what_the_trained_ones_span() -> None:
    place = {"model": "a", "layer": 1, "site": "s", "data": "d", "d_sae": 8, "tokens": "all"}
    curves = [
        ("trained", views((2, 0.5), (4, 0.2))),
        ("trained", views((2, 0.4), (8, 0.2))),
        ("topk", views((1, 0.5), (16, 0.1))),
    ]
    rows = list(measured([(place | {"curve": name}, points) for name, points in curves]))
    assert "area_fvu" not in rows[0]  # it ends at 4
    assert [(row["low"], row["high"]) for row in rows[1:]] == [(2, 8)] * 2
    assert rows[1]["area_fvu"] == pytest.approx(1 - 0.3)
    assert rows[2]["area_fvu"] == pytest.approx(1 - 0.3)
    assert rows[2]["area_cka_std"] == pytest.approx(1 - 0.3)
    (alone,) = measured([(place | {"curve": "topk"}, views((1, 0.5), (2, 0.2)))])
    assert "area_fvu" not in alone


def test_the_table_has_a_curve_for_each_run_and_for_each_seed_of_a_variant(tmp_path: Path) -> None:
    for seed in (0, 1):
        for k in (8, 16, 32):
            write_run(tmp_path, "topk", k=k, seed=seed, train__lr=0.1 / k, evaluate__ce_tokens=64 * (k > 8))
        write_run(tmp_path, "hierarchical", k=32, seed=seed)
    write_tables(tmp_path)
    (path,) = write_frontier(tmp_path)
    rows = [row for row in pd.read_csv(path).to_dict("records") if row["tokens"] == "typical"]
    separate = [row for row in rows if row["curve"] == "trained"]
    assert [(row["variant"], row["points"]) for row in separate] == [("topk", 3)] * 2
    one = [row for row in rows if (row["variant"], row["curve"]) == ("hierarchical", "topk")]
    assert len(one) == 2
    assert all(row["worst_step"] < 0 for row in one)
    cut = [row for row in rows if (row["variant"], row["curve"]) == ("topk", "topk") and row["area_fvu"] > 0]
    assert len(cut) == 2  # of k 32, as the others do not reach it
    assert min(row["area_fvu"] for row in one) > max(row["area_fvu"] for row in cut)


def test_without_a_curve_there_is_no_table(tmp_path: Path) -> None:
    write_run(tmp_path, "topk", k=4)
    write_tables(tmp_path)
    (tmp_path / "tables" / "frontier.csv").write_text("old")
    assert write_frontier(tmp_path) == []
    assert not (tmp_path / "tables" / "frontier.csv").exists()
