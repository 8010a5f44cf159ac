"""Scores of interpretability in tables and claims: columns by view, comparisons over common strata, what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from saebench.claims.judge import judge
from saebench.claims.points import Point, in_common
from saebench.claims.rows import Evidence, NoRowsError
from saebench.claims.spec import read_claim
from saebench.compose import load_claims
from saebench.config import RunConfig
from saebench.interpret.contexts import Score
from saebench.interpret.scoring import rows_of
from saebench.interpreted import excesses, write_interpretability
from saebench.runs import write_csv
from saebench.tables import read_table, write_tables
from tests.synthetic_claims import sweep, write_runs
from tests.synthetic_runs import write_run

NAMED = {"view": "full", "rule": None, "order": None, "m": 256, "budget": 16, "mode": "topk"}


def summary(
    run: str, named: dict[str, Any], skill: float, frequency: np.ndarray, seed: int, names: tuple[str, ...]
) -> list[dict[str, Any]]:
    """The rows of a view whose latents score `skill` above chance, less by 0.2 for each stratum above the third."""
    rng = np.random.default_rng([seed, len(run), *map(ord, named["view"])])
    strata = np.searchsorted([1e-5, 1e-4, 1e-3, 1e-2, 1e-1], frequency, side="right")
    rows = []
    for name in names:
        values = skill - 0.2 * (strata - 2) + rng.normal(0, 0.01, len(strata))
        scores = {i: Score(i, name, 0.5 + value, 0.5, 10) for i, value in enumerate(values)}
        found = rows_of(scores, range(len(strata)), {}, frequency, seed)
        rows += [{"run": run, "variant": "any"} | named | vars(row) for row in found]
    return rows


def test_views_have_a_column_for_each_score(tmp_path: Path) -> None:
    run, other = write_run(tmp_path, "topk", 256, 16, 0), write_run(tmp_path, "topk", 256, 16, 1)
    frequency = np.array([0.02, 0.03, 0.002])
    rows = summary(run.name, NAMED, 0.3, frequency, 0, ("intruder", "detection"))
    (run / "interpretability" / "full").mkdir(parents=True)
    write_csv(run / "interpretability" / "full" / "summary.csv", rows)
    assert tmp_path / "tables" / "interpretability.csv" in write_tables(tmp_path)
    views = read_table(tmp_path, "summary")
    every = next(row for row in rows if (row["score"], row["stratum"]) == ("intruder", "all"))
    assert views["intruder"].tolist() == pytest.approx([every["value"]] * len(views))
    assert set(views["intruder_count"]) == {1}
    assert set(views["runs"]) == {2}
    assert "probe" not in views
    assert "| intruder |" in (tmp_path / "tables" / "views.md").read_text()
    (run / "interpretability" / "full" / "summary.csv").unlink()
    write_tables(tmp_path)
    assert "intruder" not in read_table(tmp_path, "summary")
    assert other.is_dir()


def test_sides_are_compared_over_the_strata_that_both_have() -> None:
    left = Point(("a",), np.nan, np.nan, strata={2: (0.5, 10), 3: (0.3, 30), 5: (0.0, 4)})
    right = Point(("b",), np.nan, np.nan, strata={2: (0.4, 30), 3: (0.2, 10), 4: (0.9, 8)})
    a, b = in_common(left, right)
    assert a.value == pytest.approx(0.4)  # both strata count 7.5
    assert b.value == pytest.approx(0.3)
    few = Point(("b",), np.nan, np.nan, strata={2: (0.4, 30), 3: (9.0, 1)})
    assert in_common(left, few)[1].value == pytest.approx((0.4 * 7.5 + 9.0 * 30 / 31) / (7.5 + 30 / 31))
    with pytest.raises(NoRowsError, match="no stratum"):
        in_common(left, Point(("b",), np.nan, np.nan, strata={4: (0.1, 3)}))
    plain = Point(("a",), 8.0, 0.3), Point(("b",), 8.0, 0.4)
    assert in_common(*plain) == plain


def test_levels_are_numbered_in_order_of_latents() -> None:
    rows = pd.DataFrame([
        {**NAMED, "run": "a", "score": "probe", "level": level, "stratum": "3", "value": 0.6, "chance": 0.5, "latents": 4}
        for level in ("all", "0-15", "16-127", "128-255", "rank 2-3")
    ])  # fmt: skip
    table = excesses(rows).set_index("level")["level_number"]
    assert table.dropna().to_dict() == {"0-15": 1, "16-127": 2, "128-255": 3}


WORLD = {"topk": 0.3, "batchtopk": 0.3, "matryoshka": 0.25, "hierarchical": 0.35}


def interpret_all(outputs: Path, configs: list[RunConfig], names: tuple[str, ...]) -> None:
    """Summaries of the views that the claims read: skill by variant; Matryoshka's innermost level is better by 0.1."""
    for folder in sorted((outputs / "runs").iterdir()):
        cfg = configs[int(folder.name.split("-")[-1])]
        skill, m = WORLD.get(cfg.sae.name, 0.3), cfg.sae.d_sae
        k = getattr(cfg.sae, "k", None)
        mode = "threshold" if cfg.sae.name in ("batchtopk", "matryoshka") else "topk"
        full = {"view": "full", "rule": None, "order": None, "m": m, "budget": k, "mode": mode}
        kind = {"topk": ("pruned", "energy"), "matryoshka": ("prefix", None)}.get(cfg.sae.name)
        views = [full]
        if kind:
            views.append(full | {"view": kind[0], "rule": kind[1], "order": "select_then_prune", "m": 1024})
        if cfg.sae.name == "hierarchical":
            views.append(full | {"view": "budget", "budget": 32})
        frequency = 10.0 ** -np.random.default_rng([cfg.seed, m]).uniform(0.5, 4, 60)
        rows = [row for view in views for row in summary(folder.name, view, skill, frequency, cfg.seed, names)]
        if cfg.sae.name == "matryoshka":
            for level, better in (("0-255", 0.1), ("256-4095", 0.0)):
                found = summary(folder.name, full, skill + better, frequency, cfg.seed, names)
                rows += [row | {"level": level} for row in found]
        (folder / "interpretability" / "x").mkdir(parents=True)
        write_csv(folder / "interpretability" / "x" / "summary.csv", rows)
    write_interpretability(outputs, sorted((outputs / "runs").iterdir()))


@pytest.mark.parametrize(
    ("preset", "wanted", "scores"),
    [
        ("progressive", {"A9a": "reproduced", "A9b": "reproduced"}, ("fuzzing", "simulation")),
        ("progressive", {"A9c": "reproduced", "A9d": "reproduced"}, ("intruder", "coherence", "probe")),
        ("hierarchical", {"C5a": "reproduced"}, ("detection", "fuzzing")),
        ("hierarchical", {"C5b": "reproduced"}, ("intruder", "coherence", "probe")),
    ],
)
def test_claims_on_interpretability_are_decided(
    tmp_path: Path, preset: str, wanted: dict[str, str], scores: tuple[str, ...]
) -> None:
    configs = sweep(tmp_path, f"experiment={preset}/cpu", "data.path=a.txt", "data.heldout_path=b.txt", "model.path=m")
    configs = [cfg for cfg in configs if cfg.sae.d_sae == 4096]
    write_runs(configs, lambda cfg: [{"fvu": 0.1}])
    given = load_claims([preset])
    claims = {name: read_claim("test", name, given[name]) for name in wanted}
    before = {name: judge(claim, Evidence(configs)).verdict for name, claim in claims.items()}
    assert {v.verdict for v in before.values()} == {"inconclusive"}
    assert all("saebench interpret" in v.reason for v in before.values())
    interpret_all(tmp_path, configs, scores)
    assert {name: judge(claim, Evidence(configs)).verdict.verdict for name, claim in claims.items()} == wanted
