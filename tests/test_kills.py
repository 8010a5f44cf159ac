"""SIGKILL at 25 random moments of caching, training, evaluation and table writing changes no bit of what comes out."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from saebench.verify import verify

KILLS = 25
PHASES = ("caching", "training", "evaluating", "tables")


def work(outputs: Path, doomed: str = "none", seconds: float = 0.0) -> subprocess.CompletedProcess[str]:
    """The job in a process of its own, killed `seconds` after the doomed phase began."""
    command = [sys.executable, "-m", "tests.killed", str(outputs), doomed, str(seconds)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def results(outputs: Path) -> dict[str, bytes]:
    """All that must come out the same: weights, latents, metrics, tables but for times, the cache."""
    names = ("sae.safetensors", "latents.csv", "metrics.csv", "l0.csv", "documents.csv", "summary.csv", "views.csv")
    kept = [p for p in outputs.rglob("*") if p.name in names or p.parent.parent.name in ("activations", "tokens")]
    return {str(p.relative_to(outputs)): p.read_bytes() for p in kept if p.is_file() and p.name != "done.json"}


def unfinished(outputs: Path) -> list[str]:
    """What should be gone when all is done."""
    return [
        str(p) for p in outputs.rglob("*") if p.suffix in (".partial", ".part", ".lock") or p.name.startswith("step-")
    ]


@pytest.mark.long
def test_kills_at_random_moments_of_every_phase_change_nothing(tmp_path: Path) -> None:
    alone = work(tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    took = {line.split()[0]: float(line.split()[1]) for line in alone.stdout.splitlines() if line.split()[0] in PHASES}
    wanted, rng = results(tmp_path / "alone"), random.Random(10)
    assert took.keys() == {*PHASES}
    assert len(wanted) > 15
    outputs, cycle = tmp_path / "killed", 0
    for kill in range(KILLS):
        phase = PHASES[kill % len(PHASES)]
        killed = work(outputs, phase, rng.random() * took[phase])
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        if kill % len(PHASES) == len(PHASES) - 1 or kill == KILLS - 1:
            done = work(outputs)
            assert done.returncode == 0, done.stderr
            assert results(outputs) == wanted
            assert verify(outputs) == []
            assert unfinished(outputs) == []
            cycle += 1
            outputs = tmp_path / f"killed-{cycle}"
