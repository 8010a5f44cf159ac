"""The search for learning rates: groups, equal budgets, the choice, reuse, and what a sweep and its claims make of it."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from saebench.checks import InputError
from saebench.config import RunConfig
from saebench.pipeline import run
from saebench.search import Group, describe, group, read_rows, searched, with_rate, with_rates
from tests.configs import run_config
from tests.test_pipeline import SMALL

QUICK = [*SMALL, "evaluate.sizes=[]", "evaluate.rules=[]", "evaluate.budgets=[]", "evaluate.ce_tokens=0"]


def small(outputs: Path, *overrides: str) -> RunConfig:
    return run_config(*QUICK, f"outputs={outputs}", "experiment.lr_factors=[0.01,1,3e4]", *overrides)


def test_jobs_share_a_search_that_differ_in_knob_seed_and_evaluation_alone(tmp_path: Path) -> None:
    jobs = [small(tmp_path, f"sae.k={k}", f"seed={seed}") for seed in (1, 0) for k in (8, 2, 4)]
    jobs += [small(tmp_path, "sae.k=4", "evaluate.ce_views=2"), small(tmp_path, "sae.k=4", "sae.d_sae=128")]
    jobs += [small(tmp_path, "sae=batchtopk", "sae.k=4"), small(tmp_path, "sae.k=4", "train.lr=1e-3")]
    first, *others = group(jobs)
    assert first.jobs == [0, 1, 2, 3, 4, 5, 6]
    assert [g.jobs for g in others] == [[7], [8]]  # a rate that was given is left alone
    assert {(t.sae.k, t.seed) for t in first.trials} == {(4, 1)}  # the middle knob, the seed that comes first
    assert [t.train.lr for t in first.trials] == pytest.approx([f * 1e-3 * (16384 / 64) ** 0.5 for f in (0.01, 1, 3e4)])


def test_a_search_chooses_the_rate_of_the_lowest_late_loss_and_keeps_its_run(tmp_path: Path) -> None:
    jobs = [small(tmp_path, f"sae.k={k}") for k in (2, 4)]
    chosen = searched(jobs)
    rows = read_rows(tmp_path / "tables" / "lr_search.csv")
    losses = [float(row["loss"]) for row in rows]
    assert (
        [row["chosen"] for row in rows] == [str(loss == min(losses)) for loss in losses] == ["False", "True", "False"]
    )
    assert {cfg.train.lr for cfg in chosen} == {float(rows[1]["lr"])}
    assert rows[1]["at_edge"] == "False"
    kept = [path.name for path in (tmp_path / "runs").iterdir()]
    assert len(kept) == 1
    assert not list((tmp_path / "searches" / "trials").iterdir())
    trained = (tmp_path / "runs" / kept[0] / "done.json").stat().st_mtime_ns
    folders = run(chosen)
    assert folders[0].name == kept[0]
    assert (folders[0] / "done.json").stat().st_mtime_ns == trained
    logged = [read_rows(folder / "train.csv")[-1] for folder in folders]
    assert logged[0]["tokens"] == logged[1]["tokens"]
    last = [
        float(r["loss"]) for r in read_rows(folders[0] / "train.csv") if int(r["step"]) > 0.9 * int(logged[0]["step"])
    ]
    assert float(rows[1]["loss"]) == pytest.approx(sum(last) / len(last))


def test_what_is_searched_is_not_searched_again_and_claims_find_the_same_rates(tmp_path: Path) -> None:
    jobs = [small(tmp_path, "sae.k=2")]
    assert with_rates(jobs) == jobs  # nothing is known yet
    chosen = searched(jobs)
    record = next((tmp_path / "searches").glob("*/done.json"))
    before = record.stat().st_mtime_ns
    assert searched(jobs) == with_rates(jobs) == chosen
    assert record.stat().st_mtime_ns == before
    assert len(json.loads(record.read_text())["inputs"]["trials"]) == 3


def test_failed_trials_lose_and_a_search_without_a_winner_says_so(tmp_path: Path) -> None:
    cfg = small(tmp_path)
    trials = [with_rate(cfg, rate) for rate in (1.0, 2.0)]
    found = Group([0], trials, [1.0, 2.0], tmp_path / "searches" / "x")
    rows = describe(found, [0.5, math.inf])
    assert [row["chosen"] for row in rows] == [True, False]
    assert rows[0]["at_edge"]
    with pytest.raises(InputError, match=r"experiment.lr_factors=\[1.0, 2.0\].*lower train.lr_scale"):
        describe(found, [math.inf, math.inf])
    assert dataclasses.replace(cfg) == cfg


def test_factors_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"experiment\.lr_factors"):
        small(tmp_path, "experiment.lr_factors=[1,-2]")
