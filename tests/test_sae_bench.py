"""The adapter to the sae-bench package: what it reads of its results, what it hands over, what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from saebench.checks import InputError
from saebench.probing import sae_bench_driver
from saebench.probing.sae_bench import EVALS, found, read_result, settings_of, version_of

RESULT = Path(__file__).parent / "fixtures" / "sae_bench_absorption.json"  # written by sae-bench 0.6.0's own classes


def test_a_result_becomes_rows_under_its_own_names() -> None:
    rows = {row["score"]: row for row in read_result(RESULT)}
    assert rows["sae_bench_mean_absorption_fraction_score"]["value"] == 0.25
    assert rows["sae_bench_mean_full_absorption_score"]["value"] == 0.5
    assert len(rows) == 6
    assert {row["task"] for row in rows.values()} == {"sae_bench_absorption_first_letter"}
    assert {(row["class"], row["low"], row["chance"]) for row in rows.values()} == {("all", None, None)}


@pytest.mark.parametrize("text", ["[]", "{}", '{"eval_type_id": "core", "eval_result_metrics": {"a": 1}}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "any_eval_results.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"any_eval_results\.json"):
        read_result(path)


def test_numbers_that_stand_for_none_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "any.json"
    metrics = {"a": {"kl": -1, "l0": 32.0, "name": "x"}}
    path.write_text(json.dumps({"eval_type_id": "core", "eval_result_metrics": metrics}))
    assert [(row["score"], row["value"]) for row in read_result(path)] == [("sae_bench_l0", 32.0)]


def test_settings_are_of_an_evaluation() -> None:
    found = settings_of(["absorption.max_k_value=5", "sparse_probing.k_values=[1, 2]", "core.dataset=a/b"])
    assert found == {
        "absorption": {"max_k_value": 5},
        "sparse_probing": {"k_values": [1, 2]},
        "core": {"dataset": "a/b"},
    }
    assert set(EVALS) == {"core", "absorption", "sparse_probing"}
    with pytest.raises(InputError, match=r"ravel\.x=1: give EVAL\.key=value"):
        settings_of(["ravel.x=1"])


def test_an_interpreter_without_the_package_is_told_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pip install sae-bench"):
        version_of(sys.executable)
    with pytest.raises(InputError, match="no such program"):
        found(tmp_path / "python")


def test_a_model_stops_where_all_that_is_asked_has_been_seen() -> None:
    class Hooked:
        """Answers with what it was given."""

        def run_with_cache(self, *given: object, **named: object) -> dict[str, object]:
            return {"given": given} | named

    sae_bench_driver.stop_early(Hooked)
    for hooks, stop in (
        (["blocks.9.hook_resid_post"], 10),
        (["blocks.2.hook_resid_post", "blocks.4.hook_resid_post"], 5),
        (["blocks.9.hook_mlp_out"], None),
        ([], None),
        (None, None),
    ):
        seen = Hooked().run_with_cache("text", names_filter=hooks)
        assert seen.get("stop_at_layer") == stop
        assert (seen["given"], seen["names_filter"]) == (("text",), hooks)
    assert Hooked().run_with_cache(names_filter=["blocks.9.hook_resid_post"], stop_at_layer=3)["stop_at_layer"] == 3
