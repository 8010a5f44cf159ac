"""`saebench plan`: what it counts as left to do, the bytes it states, that it writes nothing. Times are not tested."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from saebench.cli.main import main
from saebench.config import RunConfig
from saebench.member import Member
from saebench.pipeline import run
from saebench.plan import Costs, Line, costs, held, spliced_tokens, stages
from saebench.plan.cost import Kind, thin
from saebench.plan.todo import Todo, outstanding
from saebench.room import held_by, kept, kind_of
from saebench.saes import REGISTRY, build
from saebench.search import searched
from tests.configs import run_config, sae_config, stats_of, synthetic
from tests.test_pipeline import SMALL

STEPS = 6400 // 256


def small(outputs: Path, *overrides: str) -> RunConfig:
    return run_config(*SMALL, f"outputs={outputs}", *overrides)


def only(configs: list[RunConfig]) -> Todo:
    """What is left for configs that make one gang."""
    (todo,) = outstanding(configs)
    return todo


def amounts(configs: list[RunConfig]) -> dict[str, Line]:
    """The lines of the plan, by stage."""
    return {line.stage: line for line in stages([(todo, costs(todo)) for todo in outstanding(configs)])}


def test_a_plan_counts_all_that_a_sweep_does_and_writes_nothing(tmp_path: Path) -> None:
    jobs = [small(tmp_path / "out", "sae=batchtopk", f"sae.k={k}", "sae.d_sae=64") for k in (2, 4)]
    lines = amounts([*jobs, small(tmp_path / "out", "evaluate.ce_views=0")])
    assert lines["caching"].amount.startswith("6,400 tokens at ")
    assert lines["learning-rate search"] == Line("learning-rate search", "0 searches, 0 SAEs, 0 steps", 0.0)
    assert lines["training"].amount == f"3 SAEs, {3 * STEPS} steps"
    assert lines["held-out pass"].amount == "1 pass"  # two ways of evaluating
    # evaluate.ce_views of 2 SAEs, the ablations once for both; the third SAE asks for none
    assert lines["cross-entropy"].amount == f"10 views, {256 * (10 + 3):,} tokens"
    assert all(line.seconds is None or line.seconds >= 0 for line in lines.values())
    assert lines["total"].seconds == pytest.approx(sum(v.seconds or 0 for k, v in lines.items() if k != "total"))
    assert not (tmp_path / "out").exists()


def test_sites_that_one_pass_serves_are_read_once(tmp_path: Path) -> None:
    jobs = [small(tmp_path, f"model.layer={i}", *more) for i, more in ((0, []), (1, []), (1, ["cache=stream"]))]
    shallow, deep, streamed = outstanding(jobs)
    assert (shallow.cached, shallow.read) == (deep.cached, 0)
    assert deep.read == deep.cached > 0
    assert streamed.read > 0


def test_views_are_those_that_are_evaluated_and_done_work_counts_nothing(tmp_path: Path) -> None:
    jobs = [small(tmp_path), small(tmp_path, "sae=batchtopk")]
    before = amounts(jobs)
    folders = run(jobs[:1])
    rows = [len(set((f / "metrics.csv").read_text().splitlines())) - 1 for f in folders]
    left = amounts(jobs)
    assert left["caching"] == Line("caching", "0 tokens", 0.0)
    assert left["training"].amount == f"1 SAEs, {STEPS} steps"
    views = [int(lines["evaluation of views"].amount.split()[0]) for lines in (before, left)]
    assert views[0] - views[1] == rows[0] / 2  # a row for all tokens, one for the typical
    run(jobs)
    written = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    done = amounts(jobs)
    assert {line.seconds for line in done.values()} == {0.0, None}
    assert done["training"].amount == "0 SAEs, 0 steps"
    other = only([small(tmp_path, "evaluate.budgets=[1]")])
    assert (other.runs, len(other.evaluations), other.read) == ([], 1, 0)
    assert only([small(tmp_path, "seed=5")]).runs
    assert written == sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))


def test_searches_count_their_trials_and_spare_the_winner(tmp_path: Path) -> None:
    quick = ["evaluate.rules=[]", "evaluate.budgets=[]", "evaluate.sizes=[]", "evaluate.ce_tokens=0"]
    jobs = [small(tmp_path, *quick, "experiment.lr_factors=[0.5,1,2]", f"sae.k={k}") for k in (2, 4)]
    todo = only(jobs)
    assert (len(todo.found), len(todo.trials), len(todo.runs)) == (1, 3, 1)
    assert [len(group) for group in todo.evaluations] == [2]
    chosen = searched(jobs)
    after = only(jobs)
    assert (len(after.found), len(after.trials), len(after.runs)) == (0, 0, 1)
    table = tmp_path / "tables" / "lr_search.csv"
    table.unlink()
    assert after.runs == [chosen[1]]  # the trials had the lower k
    run(chosen)
    done = only(jobs)
    assert (done.runs, done.evaluations, done.read) == ([], [], 0)
    assert not table.exists()


def test_an_interrupted_cache_and_a_stream_count_what_is_read(tmp_path: Path) -> None:
    partial = small(tmp_path)
    path = tmp_path / "activations"
    from saebench.store import key_of

    folder = path / f"{key_of(only([partial]).source.inputs)}.partial"
    folder.mkdir(parents=True)
    (folder / "shard-00000.safetensors").touch()
    assert only([partial]).read == 6400 - 1024
    streamed = only([small(tmp_path, "cache=stream"), small(tmp_path, "cache=stream", "seed=1")])
    # statistics; training; a window for importance; a shard for the evaluation
    assert (streamed.cached, streamed.read) == (0, 2048 + 6400 + 2048 + 1024)


@pytest.mark.parametrize("variant", sorted(REGISTRY))
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_bytes_are_those_of_the_real_tensors(variant: str, precision: str) -> None:
    cfg = run_config(f"sae={variant}", "sae.d_sae=64", "train.batch_size=32", f"train.precision={precision}")
    cfg.sae = sae_config(variant, d_sae=64)
    x = synthetic(32)
    member = Member(cfg, stats_of(x), torch.device("cpu"))
    gradients: list[int] = []
    for parameter in member.sae.parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda p: gradients.append(p.grad.nbytes if p.grad is not None else 0)
        )
    member.step(x)
    tensors = list(member.sae.parameters())
    tensors += [moment for slot in member.optimizer.slots.values() for moment in (slot.mean, slot.square)]
    tensors += list(member.sae.copies.values())
    state = sum(t.nbytes for t in kept(member))
    beside = sum(t.nbytes for t in (*member.sae.buffers(), member.since_fired))
    assert state == sum(t.nbytes for t in tensors) + beside
    least = held_by(member.cfg, 24, torch.device("cpu"))
    assert state <= least.held
    assert sum(gradients) <= least.passing
    if variant == "topk":
        assert state - beside == 12 * (2 * 24 * 64 + 64 + 24) + (4 * 24 * 64 if precision == "bfloat16" else 0)


def test_a_gang_holds_every_member_and_what_a_step_of_one_needs(tmp_path: Path) -> None:
    jobs = [small(tmp_path, f"sae.d_sae={d}") for d in (64, 128)] + [small(tmp_path, "seed=3")]
    kinds = {kind_of(jobs[0]): Kind(1, 1, 12, 4, 2), kind_of(jobs[1]): Kind(1, 1, 24, 8, 3)}
    assert kind_of(jobs[0]) == kind_of(jobs[2])  # the seed costs nothing
    assert held(jobs, Costs(0, 0, kinds, [])) == 12 + 24 + 12 + 8


def test_no_tokens_are_spliced_where_none_is_asked_for(tmp_path: Path) -> None:
    assert spliced_tokens([small(tmp_path)], []) == 0


@pytest.mark.parametrize("variant", [name for name, sae in REGISTRY.items() if sae.dense])
def test_untrained_dense_saes_are_thinned_to_plausible_latents(variant: str) -> None:
    x = synthetic(200)
    sae = build(sae_config(variant), stats_of(x), 0)
    assert float(sae.encode(x).l0().double().mean()) > 10
    thin(sae, x, 5)
    assert float(sae.encode(x).l0().double().mean()) == pytest.approx(5, abs=0.02)
    thin(sae, x, 50)
    assert float(sae.encode(x).l0().double().mean()) == pytest.approx(5, abs=0.02)  # never raised


def test_the_table_ends_in_a_total_and_says_what_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["saebench", "plan", *SMALL, "sae=topk,relu", f"outputs={tmp_path / 'out'}"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    printed = capsys.readouterr().out
    assert re.search(r"^training +2 SAEs, 50 steps +[\d.]+ s$", printed, re.MULTILINE)
    assert re.search(r"^total +[\d.]+ (s|min)$", printed, re.MULTILINE)
    assert re.search(
        r"^memory .* for the SAEs of the largest gang; more than is free: in waves$", printed, re.MULTILINE
    )
    assert "not in the time: tokenising the text" in printed
    assert not (tmp_path / "out").exists()


def test_a_missing_model_is_named_as_in_other_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = ["model=local", "model.layer=0", "model.path=/nowhere/at/all", f"outputs={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "argv", ["saebench", "plan", *missing])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert "/nowhere/at/all" in error[-1]
    assert list(tmp_path.iterdir()) == []
