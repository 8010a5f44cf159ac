"""Two processes train as one does: the same curves, selections and files; a signal saves; a rank that dies ends the others.

TOLERANCE is what two ranks may differ by from one process in loss and FVU over 20 steps: sums are rounded in another order (about
3e-7 is seen), which Adam does not let grow much in so few. The ranks between themselves agree to the last bit.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from saebench import engines, pipeline
from saebench.activations import Batches
from saebench.checkpoint import checkpoints, save_checkpoint
from saebench.checks import InputError, RankLost
from saebench.member import Member
from saebench.parallel import SOLO, World, join, peers_within
from saebench.room import Need, needs_of
from tests.configs import run_config, stats_of, synthetic
from tests.ranks import (
    BEGUN,
    CASES,
    SELECTIONS,
    STEPS,
    STOP,
    STOPPED,
    Source,
    config,
    fresh,
    held_bytes,
    started,
    trained,
    write_configs,
)
from tests.test_checkpoint import SMALL

TOLERANCE = 1e-5
HALVED = 3e-3  # in bfloat16, where shard=on rounds gradients, too, and Adam turns a small one's sign into a step
SECONDS = 30.0  # in which a rank must end that lost another


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks wrote of every case."""
    out = tmp_path_factory.mktemp("ranks")
    write_configs(out)
    begun = fresh(config(BEGUN))
    for x in Source().between(0, 7):
        begun.step(x)
    begun.settle()
    (out / BEGUN).mkdir()
    (out / "stopped").mkdir()
    save_checkpoint(begun, out / BEGUN)
    ends = ended(started(["-m", "tests.ranks", str(out)]))
    assert [code for code, _, _ in ends] == [0, 0], ends[0][2] + ends[1][2]
    return out


def ended(ranks: Sequence[subprocess.Popen[str]], within: float = 200) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each rank; none is left running."""
    try:
        return [(p.wait(within), *p.communicate()) for p in ranks]
    finally:
        for p in ranks:
            p.kill()


def log_of(rows: Any) -> list[dict[str, float]]:
    """The rows of a log as a checkpoint holds it."""
    return [dict(row) for row in rows]


def same_log(found: list[dict[str, Any]], wanted: list[dict[str, Any]], tolerance: float = TOLERANCE) -> None:
    """Assert that two logs agree: loss, FVU and L0 within the tolerance, counts and schedules exactly."""
    assert [row["step"] for row in found] == [row["step"] for row in wanted]
    for mine, other in zip(found, wanted, strict=True):
        for name in ("loss", "fvu", "l0"):
            assert float(mine[name]) == pytest.approx(float(other[name]), rel=tolerance), (name, mine["step"])
        for name in ("tokens", "dead", "lr"):
            assert mine[name] == other[name], (name, mine["step"])


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_as_one_process_does(case: str, together: Path) -> None:
    alone = trained(config(case))
    logs = [log_of(json.loads((together / f"{case}-{rank}.json").read_text())) for rank in (0, 1)]
    assert len(logs[0]) == STEPS
    halved = config(case).train.precision == "bfloat16"
    same_log(logs[0], alone.log, HALVED if halved else TOLERANCE)
    states = [load_file(together / f"{case}-{rank}.safetensors") for rank in (0, 1)]
    wanted, _ = alone.state()
    assert states[0].keys() == states[1].keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(states[0][name], states[1][name]), name
        if name.startswith("sae."):
            torch.testing.assert_close(states[0][name], tensor, rtol=1e-4, atol=1e-2 if halved else 1e-5)
    assert torch.equal(states[0]["since_fired"], wanted["since_fired"])


def test_ranks_share_out_weights_and_moments_where_asked(together: Path) -> None:
    for case in ("topk", "topk-shared", "topk-uneven", "topk-halved", "jumprelu-shared", "lattice-shared", BEGUN):
        whole = held_bytes(fresh(config(case)))
        share = 0.5 if config(case).shard == "on" else 1
        kept = [json.loads((together / f"{case}-{rank}-bytes.json").read_text()) for rank in (0, 1)]
        assert kept == pytest.approx([share * whole] * 2, rel=0.02), case  # b_dec, and 97 latents, are not even


def test_what_ranks_need_for_a_shared_member_is_estimated(together: Path) -> None:
    (alone,) = needs_of([config("topk")], stats_of(synthetic(64)), torch.device("cpu"), SOLO)
    for rank in (0, 1):
        need, bound = (Need(*pair) for pair in json.loads((together / f"needs-{rank}.json").read_text()))
        assert 0.5 * alone.held <= need.held < 0.6 * alone.held
        assert need.held <= bound.held
        assert need.passing <= bound.passing


def test_a_compiled_loss_that_ranks_share_out_is_refused() -> None:
    wrong = "compile=on: shard=on gathers the weights of a loss that is not compiled; use auto"
    with pytest.raises(ValueError, match=wrong):
        run_config("shard=on", "compile=on")


def test_some_latents_die_and_take_part(together: Path) -> None:
    log = log_of(json.loads((together / "topk-0.json").read_text()))
    assert log[-1]["dead"] > 0


def test_a_signal_to_one_rank_stops_all_and_another_number_of_ranks_goes_on(together: Path) -> None:
    assert [json.loads((together / f"stopped-{rank}.json").read_text()) for rank in (0, 1)] == [STOP, STOP]
    assert [path.name for path in checkpoints(together / "stopped")] == [f"step-{STOP:09d}.json"]
    gone_on = trained(config(STOPPED), SOLO, together / "stopped")
    same_log(gone_on.log, trained(config(STOPPED)).log)


def test_selection_over_ranks_is_exact(together: Path) -> None:
    for rank in (0, 1):
        assert json.loads((together / f"selections-{rank}.json").read_text()) == [True] * SELECTIONS


def test_alone_nothing_of_it_is_used() -> None:
    assert join() is SOLO
    assert not dist.is_initialized()
    t = torch.arange(3.0)
    assert SOLO.sum(t) is SOLO.mean(t) is SOLO.least(t) is t
    assert SOLO.decided(lambda: True)
    assert not SOLO.either(False)


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_share_every_batch_without_overlap(size: int) -> None:
    order, batch_size = torch.randperm(40), 12
    parts = [World(rank, size).own(order, batch_size) for rank in range(size)]
    whole = torch.cat([p.view(3, -1) for p in parts], 1)
    assert torch.equal(whole, order[:36].view(3, 12))


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"train\.batch_size=100: cannot be shared evenly by 3 ranks; choose a multiple of 3"
    ):
        Batches(None, [1000], 100, 1000, 0, False, World(0, 3))  # pyright: ignore[reportArgumentType]


def test_a_gpu_by_number_is_refused_among_ranks() -> None:
    assert World(1, 2).device(torch.device("cpu"), "auto") == torch.device("cpu")
    with pytest.raises(InputError, match="device=cuda:1: every rank takes a GPU of its own; use device=cuda"):
        World(1, 2).device(torch.device("cuda:1"), "cuda:1")


def test_an_engine_is_refused_among_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "join", lambda: World(1, 2))
    with pytest.raises(InputError, match="engine=joblib: ranks share every gang; leave engine out"):
        engines.sweep([run_config("engine=joblib")])


def command(outputs: Path, *overrides: str) -> list[str]:
    """A training on the embedded model."""
    return [
        "-m",
        "saebench",
        "train",
        "sae=matryoshka",
        *SMALL,
        "data.shard_tokens=2048",
        f"outputs={outputs}",
        *overrides,
    ]


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def wait_for_step(outputs: Path, ranks: Sequence[subprocess.Popen[str]]) -> None:
    """Until training has saved a checkpoint."""
    until = time.monotonic() + 200
    while not [path for folder in outputs.glob("runs/*.partial") for path in checkpoints(folder)]:
        assert time.monotonic() < until
        assert all(p.poll() is None for p in ranks), [p.communicate()[1] for p in ranks if p.poll() is not None]
        time.sleep(0.02)


@pytest.mark.parametrize("shard", ["off", pytest.param("on", marks=pytest.mark.long)])
def test_a_rank_that_is_killed_ends_the_other_and_one_process_goes_on(shard: str, tmp_path: Path) -> None:
    overrides = ("checkpoint=0.01", "train.n_tokens=40_000", f"shard={shard}")
    ranks = started(command(tmp_path, *overrides))
    wait_for_step(tmp_path, ranks)
    ranks[1].kill()
    began = time.monotonic()
    (code, _, errors), _ = ended(ranks, SECONDS)
    assert time.monotonic() - began < SECONDS
    assert code == 1
    lines = [line for line in errors.splitlines() if line.startswith("saebench: rank 0: another rank is gone")]
    assert len(lines) == 1
    assert "Traceback" not in errors
    (unfinished,) = (tmp_path / "runs").glob("*.partial")
    cfg = run_config(*command(tmp_path, *overrides)[3:])
    stream = pipeline.open_stream(cfg)  # alone
    found = pipeline.run_folder(cfg, stream)
    assert found == unfinished.with_name(unfinished.name.removesuffix(".partial"))
    pipeline.train_gang([cfg], [found], stream)
    undisturbed = Member(cfg, stream.stats, stream.device)
    for x in pipeline.open_batches(cfg, stream).between(0, 30):
        undisturbed.step(x)
    undisturbed.settle()
    for mine, other in zip(rows_of(found / "train.csv"), undisturbed.log, strict=False):
        assert float(mine["loss"]) == pytest.approx(other["loss"], rel=1e-4)
    assert json.loads((found / "env.json").read_text())["ranks"] == 1


def test_an_error_of_a_step_itself_is_not_taken_for_a_lost_rank() -> None:
    with pytest.raises(RuntimeError, match="size") as raised, peers_within():
        torch.ones(2) @ torch.ones(3)
    assert not isinstance(raised.value, RankLost)


def test_commands_of_one_process_are_refused_among_ranks(tmp_path: Path) -> None:
    env = os.environ | {"WORLD_SIZE": "2", "RANK": "1"}
    run = [sys.executable, "-m", "saebench", "tables", str(tmp_path)]
    done = subprocess.run(run, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "saebench: rank 1: WORLD_SIZE=2: only train, sweep, cache, evaluate run on several ranks; start it without torchrun\n"
    )


def torchrun(outputs: Path, *overrides: str) -> list[str]:
    """The command as a user gives it."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*launch, "-m", "saebench", *overrides, *SMALL, "data.shard_tokens=2048", f"outputs={outputs}"]


@pytest.mark.long
@pytest.mark.parametrize("shard", ["off", "on"])
def test_torchrun_trains_a_sweep_to_the_same_runs(shard: str, tmp_path: Path) -> None:
    grid = ["sweep", "sae=batchtopk,lattice,multitopk", "train.log_every=5"]
    one, two = tmp_path / "one", tmp_path / "two"
    done = subprocess.run(torchrun(two, *grid, f"shard={shard}"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    alone = [sys.executable, "-m", "saebench", *grid, *SMALL, "data.shard_tokens=2048", f"outputs={one}"]
    single = subprocess.run(alone, capture_output=True, text=True, check=True)
    names = [Path(line).name for line in done.stdout.split()]
    assert names == [Path(line).name for line in single.stdout.split()]
    assert len(names) == 3
    for name in names:
        mine, other = rows_of(two / "runs" / name / "train.csv"), rows_of(one / "runs" / name / "train.csv")
        for a, b in zip(mine, other, strict=True):
            assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-3)
        a, b = (rows_of(out / "runs" / name / "metrics.csv") for out in (two, one))
        assert [float(row["fvu"]) for row in a] == pytest.approx([float(row["fvu"]) for row in b], rel=1e-2)
        a, b = (rows_of(out / "runs" / name / "latents.csv") for out in (two, one))
        assert sum(float(row["energy"]) for row in a) == pytest.approx(sum(float(row["energy"]) for row in b), rel=1e-2)
        assert [float(row["decoder_norm"]) for row in a] == pytest.approx([1.0] * len(b), rel=1e-5)
        assert json.loads((two / "runs" / name / "env.json").read_text())["ranks"] == 2
    for path in (one / "activations").glob("*/shard-*"):
        assert (two / path.relative_to(one)).read_bytes() == path.read_bytes()


@pytest.mark.long
def test_torchrun_ends_when_a_rank_is_killed(tmp_path: Path) -> None:
    run = torchrun(tmp_path, "train", "sae=topk", "checkpoint=0.01", "train.n_tokens=10_000_000")
    agent = subprocess.Popen(run, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for_step(tmp_path, [agent])
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    victim = next(pid for pid in children if b"RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
    os.kill(int(victim), signal.SIGKILL)
    ((code, _, errors),) = ended([agent], 2 * SECONDS)
    assert code != 0
    assert "saebench: rank 0: another rank is gone" in errors
    assert all(not Path(f"/proc/{pid}").exists() for pid in children)
