"""Every command of docs/configuration.md runs, on the embedded model, and says what the page says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from saebench.origins import show

PAGE = (Path(__file__).parent.parent / "docs" / "configuration.md").read_text(encoding="utf-8")


def test_the_excerpt_is_what_show_prints() -> None:
    shown = show(["sae=matryoshka", "model.layer=1"]).splitlines()
    excerpt = re.findall(r"```\n(model:.*?)```", PAGE, re.DOTALL)[0].splitlines()
    assert [line for line in excerpt if line not in shown] == []


@pytest.mark.long
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_every_command_runs(tmp_path: Path) -> None:
    command = tmp_path / "bin" / "saebench"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nfrom saebench.cli.main import main\nmain()\n")
    command.chmod(0o755)
    env = os.environ | {"PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)}
    told = ""
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL):
        done = subprocess.run(["bash", "-euc", block], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        told += done.stdout
    assert "mine/sae/wide.yaml" in told
    assert "# grid 1, 3 jobs: sae.d_sae=512,1024,2048" in told
    assert len([*(tmp_path / "outputs" / "runs").glob("batchtopk-*")]) == 3
    assert len([*(tmp_path / "outputs" / "runs").glob("topk-*")]) == 1
