"""Checkpoints: an interrupted training goes on to the same bits, a torn file is passed over, a killed command loses nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saebench import pipeline
from saebench.checkpoint import KEPT, Saver, checkpoints, load_checkpoint, save_checkpoint
from saebench.checks import InputError
from saebench.config import RunConfig
from saebench.member import Member
from saebench.sae_configs import SAE_VARIANTS
from saebench.train import train
from tests.configs import run_config, stats_of, synthetic

TIMES = ("tokens_per_s", "seconds")
STEPS = 24


class Source:
    """Batches of synthetic activations."""

    batch_size = 128

    def between(self, start: int, stop: int) -> Iterator[Tensor]:
        """Batches start .. stop - 1."""
        for s in range(start, stop):
            yield synthetic(128, seed=s + 1)


def config(variant: str, *overrides: str) -> RunConfig:
    """A small run."""
    small = [
        "sae.d_sae=96",
        "train.batch_size=128",
        f"train.n_tokens={128 * STEPS}",
        "train.lr=0.003",
        "train.log_every=3",
    ]
    return run_config(f"sae={variant}", "sae.dead_tokens=512", *small, *overrides)


def member(cfg: RunConfig) -> Member:
    """A fresh member."""
    return Member(cfg, stats_of(synthetic(4096)), torch.device("cpu"))


def bits(one: Member) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The state but for times."""
    tensors, record = one.state()
    return tensors, [{key: value for key, value in row if key not in TIMES} for row in record["log"]]


def same(left: Member, right: Member) -> bool:
    """Whether two members are in the same state to the last bit."""
    (mine, log), (others, other_log) = bits(left), bits(right)
    assert mine.keys() == others.keys()
    return log == other_log and all(torch.equal(mine[name], others[name]) for name in mine)


class Stop(Exception):  # noqa: N818
    """Ends a training in the middle."""


def stopping(saver: Saver, members: list[Member], at: int) -> Any:
    """After step `at` of the first member: save and stop."""

    def after_step() -> None:
        if members[0].done == at:
            saver.save()
            raise Stop

    return after_step


@pytest.mark.parametrize(
    ("variant", "overrides"),
    [*((v, ()) for v in SAE_VARIANTS), *((v, ("sae.prefix_sampling=random",)) for v in ("matryoshka", "lattice"))],
)
def test_an_interrupted_training_goes_on_to_the_same_bits(
    variant: str, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    cfg = config(variant, *overrides)
    undisturbed = member(cfg)
    train([undisturbed], Source())  # pyright: ignore[reportArgumentType]
    for at in (7, 18):  # twice, in the middle of the log's rhythm and of the dead latents'
        begun = member(cfg)
        with pytest.raises(Stop):
            train([begun], Source(), stopping(Saver({tmp_path: begun}, 0), [begun], at))  # pyright: ignore[reportArgumentType]
    last = member(cfg)
    assert load_checkpoint(last, tmp_path)
    assert last.done == 18
    train([last], Source())  # pyright: ignore[reportArgumentType]
    assert same(last, undisturbed)


def test_mixed_precision_goes_on_with_the_same_twins(tmp_path: Path) -> None:
    cfg = config("topk", "train.precision=bfloat16")
    undisturbed, begun, last = member(cfg), member(cfg), member(cfg)
    train([undisturbed], Source())  # pyright: ignore[reportArgumentType]
    with pytest.raises(Stop):
        train([begun], Source(), stopping(Saver({tmp_path: begun}, 0), [begun], 7))  # pyright: ignore[reportArgumentType]
    load_checkpoint(last, tmp_path)
    assert all(torch.equal(last.sae.copies[name], begun.sae.copies[name]) for name in begun.sae.copies)
    train([last], Source())  # pyright: ignore[reportArgumentType]
    assert same(last, undisturbed)


def test_members_at_different_steps_go_on_together(tmp_path: Path) -> None:
    first, second = config("topk"), config("batchtopk", f"train.n_tokens={128 * 20}")
    wanted = [member(first), member(second)]
    train(wanted, Source())  # pyright: ignore[reportArgumentType]
    begun = member(first)
    with pytest.raises(Stop):
        train([begun], Source(), stopping(Saver({tmp_path: begun}, 0), [begun], 9))  # pyright: ignore[reportArgumentType]
    gang = [member(second), member(first)]
    load_checkpoint(gang[1], tmp_path)
    train(gang, Source())  # pyright: ignore[reportArgumentType]
    assert same(gang[0], wanted[1])
    assert same(gang[1], wanted[0])


def saved(tmp_path: Path, steps: int = 5) -> Member:
    """A member that saved after each of its steps."""
    one = member(config("topk"))
    for s in range(steps):
        one.step(synthetic(128, seed=s + 1))
        one.settle()
        save_checkpoint(one, tmp_path)
    return one


@pytest.mark.parametrize("harm", ["cut", "flip", "missing", "json", "array"])
def test_the_newest_whole_checkpoint_is_used(harm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path)
    names = [path.name for path in checkpoints(tmp_path)]
    assert names == ["step-000000005.json", "step-000000004.json"]
    assert len(list(tmp_path.iterdir())) == 2 * KEPT
    newest = tmp_path / "step-000000005.safetensors"
    if harm == "cut":
        newest.write_bytes(newest.read_bytes()[:1000])
    elif harm == "flip":
        raw = bytearray(newest.read_bytes())
        raw[-7] ^= 1
        newest.write_bytes(bytes(raw))
    elif harm == "missing":
        newest.unlink()
    else:
        newest.with_suffix(".json").write_text("{" if harm == "json" else "[]")
    again = member(config("topk"))
    assert load_checkpoint(again, tmp_path)
    assert again.done == 4
    assert "step-000000005.json: this checkpoint is not whole" in capsys.readouterr().err


def test_a_state_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    one = saved(tmp_path)
    with torch.no_grad():
        one.sae.W_enc[0, 0] = torch.nan
    one.done += 1
    save_checkpoint(one, tmp_path)
    assert checkpoints(tmp_path)[0].name == "step-000000005.json"


def test_time_and_signals_save(tmp_path: Path) -> None:
    one = member(config("topk"))
    one.step(synthetic(128))
    saver = Saver({tmp_path: one}, 3600)
    saver.after_step()
    assert checkpoints(tmp_path) == []
    saver.next = 0.0
    saver.after_step()
    assert len(checkpoints(tmp_path)) == 1
    assert saver.next > time.monotonic() + 3000
    one.step(synthetic(128))
    before = signal.getsignal(signal.SIGTERM)
    with saver.watching():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            saver.after_step()
    assert signal.getsignal(signal.SIGTERM) is before
    assert len(checkpoints(tmp_path)) == 2
    with saver.watching(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


SMALL = [
    "model=tiny-gpt2", "sae.d_sae=64", "sae.k=4", "data.n_tokens=20_000", "data.eval_tokens=4_000", "data.stats_tokens=8_000",
    "train.batch_size=256", "train.window_tokens=8_000", "train.importance_tokens=2_000", "evaluate.ce_tokens=512",
    "evaluate.sizes=[0.5]", "evaluate.rules=[energy]", "evaluate.budgets=[2]", "evaluate.ce_views=2",
    "evaluate.rsa_tokens=200", "evaluate.threshold_tokens=2_000", "train.lr=0.003", "seed=3",
]  # fmt: skip


def whole_run(folder: Path) -> dict[str, bytes]:
    """The bytes of what a run must reproduce."""
    return {name: (folder / name).read_bytes() for name in ("sae.safetensors", "metrics.csv", "latents.csv", "l0.csv")}


def test_a_run_that_is_stopped_goes_on_and_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [run_config("sae=topk", *SMALL, f"outputs={tmp_path / name}") for name in ("a", "b")]
    (wanted,) = pipeline.run(configs[:1])
    after_step = Saver.after_step

    def interrupt(self: Saver) -> None:
        self.asked = next(iter(self.folders.values())).done == 40
        after_step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Saver, "after_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(configs[1:])
    (unfinished,) = (tmp_path / "b" / "runs").glob("*.partial")
    assert [path.name for path in checkpoints(unfinished)] == ["step-000000040.json"]
    (found,) = pipeline.run(configs[1:])
    assert whole_run(found) == whole_run(wanted)
    heads = [(run / "train.csv").read_text().partition("\n")[0] for run in (found, wanted)]
    assert heads[0] == heads[1]
    assert not unfinished.exists()
    assert list(found.glob("step-*")) == []


def test_a_run_that_diverges_is_marked_failed(tmp_path: Path) -> None:
    cfg = run_config("sae=topk", *SMALL, "train.lr=1e30", f"outputs={tmp_path}")
    for _ in range(2):
        with pytest.raises(InputError, match=r"topk-.*: the loss became (nan|inf) at step"):
            pipeline.run([cfg])
        (unfinished,) = (tmp_path / "runs").glob("*.partial")
        assert "lower train.lr" in (unfinished / "failed.json").read_text()
        assert not (unfinished / "done.json").exists()


def test_a_member_that_runs_out_of_memory_stops_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def configs(name: str) -> list[RunConfig]:
        return [
            run_config(f"sae={sae}", *SMALL, "checkpoint=1e-9", f"outputs={tmp_path / name}")
            for sae in ("topk", "matryoshka")
        ]

    wanted = pipeline.run(configs("undisturbed"))
    advance = Member.advance

    def greedy(self: Member, x: torch.Tensor) -> None:
        if self.cfg.sae.name == "matryoshka" and self.done == 7:
            torch.empty(1 << 55)
        advance(self, x)

    with monkeypatch.context() as patch:
        patch.setattr(Member, "advance", greedy)
        patch.setattr("saebench.checkpoint.SHARE", 1e9)  # a checkpoint after every step
        with pytest.raises(InputError, match=r"1 of 2 runs failed.*matryoshka-.*memory ran out in step 8"):
            pipeline.run(configs("b"))
    (unfinished,) = (tmp_path / "b" / "runs").glob("*.partial")
    assert [path.name for path in checkpoints(unfinished)] == ["step-000000007.json", "step-000000006.json"]
    assert (unfinished / "failed.json").is_file()
    found = tmp_path / "b" / "runs" / wanted[0].name
    assert whole_run(found) == whole_run(wanted[0])
    assert whole_run(pipeline.run(configs("b"))[1]) == whole_run(wanted[1])
    assert not unfinished.exists()


def command(outputs: Path) -> list[str]:
    """A training from the start in a process of its own."""
    return [
        sys.executable,
        "-m",
        "saebench",
        "train",
        "sae=matryoshka",
        *SMALL,
        "train.n_tokens=100_000",
        "checkpoint=0.05",
        f"outputs={outputs}",
    ]


def kill_at_random(outputs: Path, kills: int, seed: int, longest: float) -> int:
    """Kill the command `kills` times after random seconds, or until it ends; then let it end. Returns how often it was killed."""
    draw, killed = random.Random(seed), 0
    while killed < kills:
        process = subprocess.Popen(command(outputs), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            if process.wait(draw.uniform(0.3, 1.0) * longest) == 0:
                break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
    subprocess.run(command(outputs), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return killed


def killed_runs_agree(tmp_path: Path, kills: int) -> None:
    """A run killed again and again has the bytes of one left alone."""
    began = time.monotonic()
    subprocess.run(command(tmp_path / "alone"), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    took = time.monotonic() - began
    (alone,) = (tmp_path / "alone" / "runs").iterdir()
    killed, seed = 0, 0
    while killed < kills:
        outputs = tmp_path / f"killed-{seed}"
        killed += kill_at_random(outputs, kills - killed, seed, took)
        (found,) = (outputs / "runs").iterdir()
        assert whole_run(found) == whole_run(alone)
        seed += 1


def test_three_kills_change_nothing(tmp_path: Path) -> None:
    killed_runs_agree(tmp_path, 3)


@pytest.mark.long
def test_twenty_five_kills_change_nothing(tmp_path: Path) -> None:
    killed_runs_agree(tmp_path, 25)
