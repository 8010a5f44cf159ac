"""`saebench interpret` from end to end on a small run: views, scores, what is kept, what is added, what is refused."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from saebench.checks import InputError
from saebench.interpret.command import interpret, table_of
from saebench.interpret.options import section
from saebench.interpret.scoring import rank_level
from saebench.interpret.study import parse_view
from saebench.interpreted import write_interpretability
from saebench.pipeline import run
from saebench.saes import build
from tests.configs import run_config, sae_config, stats_of, synthetic

SMALL = ["interpret.tokens=20_000", "interpret.pool=8192"]
PLAIN = ["token_purity", "consistency"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Matryoshka SAE of the embedded model."""
    cfg = run_config(
        "sae=matryoshka", "sae.d_sae=128", "sae.k=8", "data.n_tokens=20_000", "data.eval_tokens=2000", "evaluate.ce_tokens=0",
        "evaluate.sizes=[]", "evaluate.rules=[]", f"outputs={tmp_path_factory.mktemp('outputs')}",
    )  # fmt: skip
    return run([cfg])[0]


def folders(run: Path) -> dict[str, Path]:
    """The folder of each view, by the view's kind."""
    return {path.name.split("-")[0]: path for path in (run / "interpretability").iterdir() if path.name != "pages"}


def test_views_are_collected_in_one_pass_and_scored(trained: Path) -> None:
    rows = interpret([trained], ["full", "prefix:32", "budget:4:threshold"], 12, PLAIN, SMALL)
    found = folders(trained)
    assert found.keys() == {"full", "prefix", "budget"}
    inside = pq.read_table(found["prefix"] / "latents.parquet").to_pandas()
    assert len(inside) == 128
    assert inside["n_active"].iloc[32:].sum() == 0 < inside["n_active"].iloc[:32].sum()
    active = pq.read_table(found["budget"] / "latents.parquet").to_pandas()["frequency"].sum()
    assert active == pytest.approx(4, rel=0.1)  # the mean L0 that its threshold was set for
    every = [row for row in rows if (row["level"], row["stratum"]) == ("all", "all")]
    pairs = {(row["view"], row["score"]) for row in every}
    assert pairs == {(view, score) for view in ("full", "prefix", "budget") for score in PLAIN}
    assert len(every) == 6
    assert all(row["low"] <= row["value"] <= row["high"] and row["asked"] <= 12 for row in every)
    levels = {row["level"] for row in rows if row["view"] == "full"}
    assert {"0-15", "16-31", "32-63", "64-127"} & levels
    assert any(level.startswith("rank") for level in levels)
    summary = pd.read_csv(found["full"] / "summary.csv")
    assert set(summary["run"]) == {trained.name}
    assert "token_purity" in table_of(rows)


def test_tables_gather_the_summaries_of_all_runs(trained: Path) -> None:
    interpret([trained], ["full"], 6, ["token_purity"], SMALL)
    outputs = trained.parent.parent
    (path,) = write_interpretability(outputs, [trained])
    rows = pd.read_csv(path)
    assert set(rows["variant"]) == {"matryoshka"}
    assert "token_purity" in set(rows["score"])
    (path.parent / "agreement.csv").write_text("old")
    write_interpretability(outputs, [trained])
    assert not (path.parent / "agreement.csv").exists()  # nothing was judged


def test_more_latents_and_scores_are_added_to_those_there_are(trained: Path) -> None:
    interpret([trained], ["full"], 6, ["token_purity"], SMALL)
    folder = folders(trained)["full"]
    before = (folder / "done.json").stat().st_mtime_ns
    few = pq.read_table(folder / "scores.parquet").to_pandas()
    interpret([trained], ["full"], 20, ["document_purity"], SMALL)
    assert (folder / "done.json").stat().st_mtime_ns == before  # contexts are not collected again
    more = pq.read_table(folder / "scores.parquet").to_pandas()
    kept = more.merge(few, on=["latent", "score"], suffixes=("", "_before"))
    assert len(kept) == len(few)
    assert (kept["value"] == kept["value_before"]).all()
    assert (more["score"] == "document_purity").sum() > (few["score"] == "token_purity").sum() > 0


@pytest.mark.parametrize(
    ("views", "scores", "overrides", "message"),
    [
        (["half"], [], [], r"--views=half: give full, prefix:M"),
        (["prefix:500"], [], [], r"--views=prefix:500: 500 must be a number from 1 to 128"),
        (["prefix:32:40"], [], [], r"--views=prefix:32:40: 40 must be a number from 1 to 32"),
        (["pruned:luck:4"], [], [], r"--views=pruned:luck:4: give full"),
        ([], [], [], r"--views: name at least one"),
        (["full"], ["charm"], [], r"--score=charm"),
        (["full"], ["detection"], [], r"judge\.model: give the endpoint's model"),
        (["full"], [], ["top=3"], r"top=3: give KEY=VALUE with a key of interpret\., free\., judge\."),
        (["full"], [], ["interpret.top=3"], r"interpret\.top=3: must be even"),
        (["full"], [], ["interpret.top=many"], r"interpret\.top=many: .*the keys are interpret\.tokens"),
        (["full"], [], ["interpret.tip=4"], r"interpret\.tip=4: .*the keys are interpret\.tokens"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(
    trained: Path, views: list[str], scores: list[str], overrides: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message) as raised:
        interpret([trained], views, 5, scores, overrides)
    assert "\n" not in str(raised.value)


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.yaml there"):
        interpret([tmp_path], ["full"], 5, [], [])


def test_short_names_of_views() -> None:
    stats = stats_of(synthetic(64))
    topk = build(sae_config("topk"), stats, 0)
    nested = build(sae_config("matryoshka", prefixes="[12,96]"), stats, 0)
    assert parse_view("full", topk).name() == "full-96-4-topk"
    assert parse_view("prefix:12", nested).order == "select_then_prune"
    assert parse_view("prefix:12:3", nested).mode == "batch"
    assert parse_view("prefix:12:3", topk).mode == "topk"
    assert parse_view("budget:2", nested).name() == "budget-96-2-topk"
    assert parse_view("pruned:energy:24", topk).rule == "energy"


def test_ranks_are_named_by_ranges_that_double() -> None:
    assert [rank_level(r) for r in (0.2, 0.9, 2.4, 3.4, 4.2, 7.4, 8.0)] == [
        "rank 0", "rank 1", "rank 2-3", "rank 2-3", "rank 4-7", "rank 4-7", "rank 8-15"
    ]  # fmt: skip


def test_the_defaults_are_those_of_the_yaml() -> None:
    assert section("interpret", []).window == 32
    assert section("free", ["free.before=3"]).before == 3
    assert section("judge", ["judge.model=m", "judge.price_in=1", "judge.price_out=2"]).price_out == 2.0
