"""Gangs that do not fit into memory: the estimate against the measured peak, waves, equal weights, what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from saebench import memory
from saebench.checks import InputError
from saebench.parallel import SOLO
from saebench.pipeline import run
from saebench.room import REFS, Need, free_bytes, held_by, needs_of, packed, peak, waves
from tests.configs import run_config, stats_of, synthetic

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
MB = 1e-3  # in the unit of memory_gb
linux = pytest.mark.skipif(not REFS.exists(), reason="a process's peak can be measured on Linux only")


def printed(what: str) -> int:
    """What tests/peak.py says."""
    found = subprocess.run(
        [sys.executable, "-m", "tests.peak", what], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    return int(found.stdout)


@linux
def test_the_estimate_is_within_15_percent_of_the_measured_peak() -> None:
    assert printed("estimate") == pytest.approx(printed("measure"), rel=0.15)


@linux
def test_what_a_member_surely_needs_is_more_than_it_does() -> None:
    stats = stats_of(synthetic(64))
    for variant in ("topk", "batchtopk", "matryoshka", "hierarchical", "lattice", "relu", "jumprelu", "gated"):
        cfg = run_config(f"sae={variant}", "sae.d_sae=4096", "train.batch_size=512")
        (need,), bound = needs_of([cfg], stats, CPU, SOLO), held_by(cfg, len(stats.mean), CPU)
        assert need.held <= bound.held
        assert need.passing <= bound.passing


def test_what_is_larger_than_all_the_memory_is_refused_unless_ranks_share_it_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg = run_config("sae=topk", "sae.d_sae=1_000_000", "shard=on", "train.precision=float32")
    monkeypatch.setattr(
        memory, "memory_of", lambda device: int(20e9)
    )  # 2e9 weights: 32 GB whole, 8 + 12 / ranks a weight shared
    with pytest.raises(
        InputError, match=r"sae\.d_sae=1000000: training needs 32\.0 GB and cpu has 20\.0; lower it, or share it out"
    ):
        memory.check_memory(cfg, 1000, CPU)
    with pytest.raises(InputError, match=r"training needs 28\.0 GB and cpu has 20\.0; lower it$"):
        memory.check_memory(cfg, 1000, CPU, 2)
    memory.check_memory(cfg, 1000, CPU, 8)


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 30)), max_size=12), st.integers(80, 200))
def test_groups_fit_and_hold_everything_once(sizes: list[tuple[int, int]], room: int) -> None:
    needs = [Need(*size) for size in sizes]
    groups = packed(needs, room)
    assert sorted(i for g in groups for i in g) == list(range(len(needs)))
    assert all(peak([needs[i] for i in g]) <= room for g in groups)
    if needs and peak(needs) <= room:
        assert len(groups) == 1


def test_a_gang_that_fits_is_one_wave_and_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saebench.room.tried", None)  # would fail if it were called
    configs = [run_config("sae.d_sae=64", f"seed={seed}") for seed in range(3)]
    assert waves(configs, stats_of(synthetic(64)), CPU, SOLO) == [[0, 1, 2]]
    assert (free_bytes(CPU) or 1e9) > 1e8


def small(outputs: Path, *overrides: str) -> list[str]:
    return [
        "sae.d_sae=2048", "sae.k=8", "data.n_tokens=8192", "data.eval_tokens=1024", "train.batch_size=512",
        "evaluate.ce_tokens=0", "evaluate.sizes=[]", "evaluate.rules=[]", "train.importance_tokens=1024", f"outputs={outputs}",
        *overrides,
    ]  # fmt: skip


@linux
def test_waves_change_no_weight_and_are_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    together = run([run_config(*small(tmp_path / "a", f"seed={seed}")) for seed in range(3)])
    assert "waves" not in capsys.readouterr().err
    monkeypatch.setattr("saebench.room.tried", lambda *_: Need(9_000_000, 12_000_000))
    configs = [run_config(*small(tmp_path / "b", f"seed={seed}", f"memory_gb={31 * MB}")) for seed in range(3)]
    apart = run(configs)
    told = capsys.readouterr().err
    assert "3 SAEs take 0.04 GB together and 0.03 GB are free: trained in 2 waves of 2 and 1" in told
    for one, other in zip(together, apart, strict=True):
        assert one.name == other.name  # memory_gb is outside every key
        a, b = load_file(one / "sae.safetensors"), load_file(other / "sae.safetensors")
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert (one / "config.yaml").read_text() == (other / "config.yaml").read_text().replace("/b", "/a")


def test_an_sae_that_does_not_fit_alone_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sae\.d_sae=2048: training topk takes .* lower it or train\.batch_size"):
        run([run_config(*small(tmp_path, f"memory_gb={3 * MB}"))])
    with pytest.raises(InputError, match=r"memory_gb=0\.0: must be positive"):
        run_config("memory_gb=0")
