"""500 runs in outputs, and `saebench tables` in 5 seconds."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pandas as pd
import pytest

from tests.synthetic_runs import VARIANTS, write_run

RUNS, SECONDS, TRIES = 500, 5.0, 5


def seconds(outputs: Path) -> float:
    """How long the command takes, or what it works, if that is less."""
    began, before = time.monotonic(), os.times()
    subprocess.run([sys.executable, "-m", "saebench", "tables", str(outputs)], check=True, capture_output=True)
    after = os.times()
    worked = after.children_user + after.children_system - before.children_user - before.children_system
    return min(worked, time.monotonic() - began)


@pytest.mark.long
def test_tables_of_five_hundred_runs_take_five_seconds(tmp_path: Path) -> None:
    grid = list(product(VARIANTS, (256, 1024), (4, 8, 12, 16, 24, 32, 48), range(6)))[:RUNS]
    for variant, d_sae, k, seed in grid:
        write_run(tmp_path, variant, d_sae, k, seed)
    assert min(seconds(tmp_path) for _ in range(TRIES)) < SECONDS  # other processes, and a busy host, may make it wait
    for name in ("runs", "metrics"):
        assert len(set(pd.read_csv(tmp_path / "tables" / f"{name}.csv")["run"])) == RUNS
