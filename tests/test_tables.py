"""Tables: means and spreads by hand, configurations kept apart, what is left out, and what is said."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from saebench.checks import InputError
from saebench.finished import thin
from saebench.tables import PLACE, missing, read_table, result_table, sparsity, varying, write_tables
from tests.synthetic_runs import write_run


def set_full(run: Path, **values: float | None) -> None:
    """Overwrite columns of the full view's rows of a run."""
    rows = pd.read_csv(run / "metrics.csv")
    for name, value in values.items():
        rows.loc[rows["view"] == "full", name] = value
    rows.to_csv(run / "metrics.csv", index=False)


def typical(outputs: Path) -> pd.DataFrame:
    """The typical rows of the summary."""
    summary = read_table(outputs, "summary")
    return summary.loc[summary["tokens"] == "typical"]


def test_mean_and_sd_over_seeds_by_hand(tmp_path: Path) -> None:
    for seed, fvu, ce in ((0, 0.1, 3.5), (1, 0.2, 3.6), (2, 0.6, 4.0)):
        set_full(write_run(tmp_path, seed=seed), fvu=fvu, ce_sae=ce, ce_clean=3.25)
    write_tables(tmp_path)
    (row,) = typical(tmp_path).to_dict("records")
    assert row["runs"] == row["fvu_count"] == 3
    assert row["fvu"] == pytest.approx(0.3)
    assert row["fvu_sd"] == pytest.approx((0.07) ** 0.5)  # (0.04 + 0.01 + 0.09) / 2
    assert row["ce_increase"] == pytest.approx(0.45)
    assert row["ce_increase_sd"] == pytest.approx(0.07**0.5)


def test_runs_are_told_apart_by_the_evaluation_that_is_published(tmp_path: Path) -> None:
    for seed, tokens in ((0, 64), (1, 128)):  # config.yaml says how each was evaluated at first
        run = write_run(tmp_path, seed=seed, evaluate__ce_tokens=tokens)
        (run / "evaluation.json").write_text('{"evaluate": {"ce_tokens": 256}}')
    write_tables(tmp_path)
    assert list(typical(tmp_path)["runs"]) == [2]


def test_orders_of_the_data_are_averaged_like_seeds(tmp_path: Path) -> None:
    for order_seed in (0, 1):
        write_run(tmp_path, train__order_seed=order_seed)
    write_tables(tmp_path)
    assert list(typical(tmp_path)["runs"]) == [2]


def test_typical_and_all_tokens_are_rows_of_their_own(tmp_path: Path) -> None:
    write_run(tmp_path)
    write_tables(tmp_path)
    assert list(read_table(tmp_path, "summary")["tokens"]) == ["all", "typical"]


@pytest.mark.parametrize(
    ("change", "column", "shown"),
    [
        ({"train__lr": 0.01}, "train.lr", ["0.01", "null"]),
        ({"data__n_tokens": 1_200_000}, "data.n_tokens", ["1200000", "600000"]),
        ({"sparsity__name": "warmup"}, "sparsity.name", ["constant", "warmup"]),
        ({"sae__prefixes": [64, 256]}, "sae.prefixes", ["0.0625 0.125 0.25 0.5 1", "0.25 1"]),
    ],
)
def test_runs_that_differ_in_another_key_are_not_mixed(tmp_path: Path, change, column, shown) -> None:
    set_full(write_run(tmp_path, "matryoshka"), fvu=0.1)
    set_full(write_run(tmp_path, "matryoshka", **change), fvu=0.9)
    write_tables(tmp_path)
    rows = typical(tmp_path)
    rows = rows.loc[rows["mode"] == "threshold"].sort_values(by=column)
    assert list(rows[column]) == shown
    assert sorted(rows["fvu"]) == [0.1, 0.9]
    assert rows["fvu_sd"].isna().all()  # one seed has no spread


def test_keys_without_effect_on_a_row_make_no_columns(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0)
    write_run(tmp_path, seed=1, device="cuda", evaluate__sizes=[0.5], train__log_every=5)
    write_run(tmp_path, "matryoshka", d_sae=1024)  # its prefixes are the same shares of another size
    write_run(tmp_path, "matryoshka", d_sae=256)
    write_tables(tmp_path)
    summary = read_table(tmp_path, "summary")
    assert not [name for name in summary if "." in name]
    assert set(summary.loc[summary["variant"] == "topk", "runs"]) == {2}


def test_a_steered_coefficient_is_no_configuration(tmp_path: Path) -> None:
    for seed, coefficient in ((0, 0.011), (1, 0.013)):
        run = write_run(tmp_path, "relu", seed=seed)
        rows = pd.read_csv(run / "metrics.csv").assign(coefficient=coefficient)
        rows.to_csv(run / "metrics.csv", index=False)
    write_run(tmp_path, "relu", sae__target_l0=None)
    write_tables(tmp_path)
    rows = typical(tmp_path)
    assert sorted((sparsity(row), row["runs"]) for _, row in rows.iterrows()) == [("L0 16", 2), ("coef 0.05", 1)]


def test_missing_ce_stays_missing(tmp_path: Path) -> None:
    set_full(write_run(tmp_path, seed=0), ce_sae=None, ce_clean=None, recovered_zero=None)
    write_tables(tmp_path)
    (row,) = typical(tmp_path).to_dict("records")
    assert missing(row["ce_increase"])
    assert row["ce_increase_count"] == 0
    assert "CE increase" not in result_table(tmp_path).splitlines()[1]


def test_views_keep_order_and_scaled_k_apart(tmp_path: Path) -> None:
    write_run(tmp_path)
    write_tables(tmp_path)
    views = read_table(tmp_path, "views").query("tokens == 'typical' and rule == 'energy' and m == 64")
    found = sorted(zip(views["order"], views["budget"], strict=True))
    assert found == [("prune_then_select", 4), ("prune_then_select", 16), ("select_then_prune", 16)]


def test_unfinished_and_partial_runs_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished = write_run(tmp_path, seed=0)
    write_run(tmp_path, seed=1, done=False)
    write_run(tmp_path, seed=2).rename(tmp_path / "runs" / "topk-x.partial")
    (write_run(tmp_path, seed=3) / "metrics.csv").unlink()
    write_tables(tmp_path)
    assert set(read_table(tmp_path, "metrics")["run"]) == {finished.name}
    assert "1 of 2 runs are not evaluated yet" in capsys.readouterr().err


def test_metrics_holds_every_row_as_it_was(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, seed=seed) for seed in (0, 1)]
    write_tables(tmp_path)
    rows = pd.concat([pd.read_csv(run / "metrics.csv") for run in runs], ignore_index=True)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "tables" / "metrics.csv"), rows)


def test_latents_are_sorted_each_by_itself(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    latents = pd.DataFrame({"latent": [0, 1, 2], "frequency": [0.1, 0.3, 0.2], "energy": [5.0, 1.0, 0.0]})
    latents.assign(decoder_norm=1.0).to_csv(run / "latents.csv", index=False)
    write_tables(tmp_path)
    table = read_table(tmp_path, "latents")
    assert table[["rank", "energy", "frequency"]].to_numpy().tolist() == [[1, 5, 0.3], [2, 1, 0.2], [3, 0, 0.1]]


def test_curves_are_thinned_with_both_ends(tmp_path: Path) -> None:
    write_run(tmp_path)
    write_tables(tmp_path)
    steps = read_table(tmp_path, "curves")["step"]
    assert len(steps) <= 200
    assert (steps.iloc[0], steps.iloc[-1]) == (10, 3000)
    assert list(thin(["a", "b"])) == ["a", "b"]
    assert list(thin([])) == []


def test_two_models_are_two_places(tmp_path: Path) -> None:
    write_run(tmp_path)
    write_run(tmp_path, model__name="gpt2-small", model__layer=8)
    write_tables(tmp_path)
    assert len(typical(tmp_path)[PLACE].drop_duplicates()) == 2
    assert "gpt2-small" in result_table(tmp_path)


def test_result_table_fits_and_aligns(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, "hierarchical", seed=seed)
        write_run(tmp_path, "jumprelu", seed=seed, train__lr=0.001, sae__input="token")
        write_run(tmp_path, "jumprelu", seed=seed)
    write_tables(tmp_path)
    title, *lines = result_table(tmp_path).splitlines()
    rows = lines[:4]
    assert title == "model tiny-gpt2, layer 2, site resid_post, data python-docs, tokens typical"
    assert len({len(row) for row in rows}) == 1
    assert len(rows[0]) <= 120
    assert rows[0].split()[:4] == ["variant", "d_sae", "input", "sparsity"]
    assert "±" in rows[1]


def test_markdown_has_a_row_per_row(tmp_path: Path) -> None:
    write_run(tmp_path)
    write_tables(tmp_path)
    lines = (tmp_path / "tables" / "summary.md").read_text().splitlines()
    assert len([line for line in lines if line.startswith("|")]) == 2 + len(read_table(tmp_path, "summary"))


def test_errors_name_the_folder_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no finished run in .*saebench train"):
        write_tables(tmp_path)
    with pytest.raises(InputError, match=r"run `saebench tables` first"):
        result_table(tmp_path)
    run = write_run(tmp_path)
    other = write_run(tmp_path, seed=1)
    pd.read_csv(run / "metrics.csv").drop(columns="rsa_pearson").to_csv(other / "metrics.csv", index=False)
    with pytest.raises(InputError, match=r"topk-256-16-1.*other columns"):
        write_tables(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    (write_run(tmp_path) / "train.csv").unlink()
    with pytest.raises(InputError, match=r"train\.csv: missing or empty"):
        write_tables(tmp_path)


def test_a_rate_chosen_for_each_of_several_kinds_does_not_split(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, seed=seed, train__lr=0.004)
        write_run(tmp_path, seed=seed, train__lr=0.008, sae__input="token")
    write_tables(tmp_path)
    assert [key for key in varying(read_table(tmp_path, "summary")) if "." in key] == ["sae.input"]
    write_run(tmp_path, train__lr=0.002)
    write_tables(tmp_path)
    assert [key for key in varying(read_table(tmp_path, "summary")) if "." in key] == ["sae.input", "train.lr"]
