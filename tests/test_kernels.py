"""Triton's kernels: right in its interpreter, and compiled for sm_80 and sm_90; in processes of their own, as triton's mode is
chosen when it is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from saebench import kernels

pytestmark = pytest.mark.skipif(not kernels.available(), reason="triton is not installed")


def run(module: str, env: dict[str, str]) -> str:
    """Run a module of the tests; its output, which is shown if it fails."""
    command = [sys.executable, "-W", "error", "-m", module]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | env, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_kernels_equal_plain_torch_in_the_interpreter() -> None:
    assert "selection" in run("tests.kernels_interpreted", {"TRITON_INTERPRET": "1"})


def test_kernels_compile_for_sm_80_and_sm_90(tmp_path: Path) -> None:
    assert "90" in run("tests.kernels_compiled", {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)})


def test_the_package_itself_imports_no_triton() -> None:
    code = "import sys; import saebench.kernels; saebench.kernels.available(); print('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
