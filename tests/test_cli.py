"""The commands: contract of what they print, and one line with exit code 2 for what a user gets wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from saebench.checks import InputError
from saebench.cli.main import main
from saebench.compose import load, load_sweep
from tests.configs import run_config

WRONG = {
    "sae.kk=3": "sae.kk: there is no such key; did you mean sae.k?",
    "modl.layer=3": "did you mean model.layer?",
    "sae=topkk": "sae=topkk: did you mean topk?",
    "model=gpt2-smal": "did you mean gpt2-small?",
    "sae.k=5000": "sae.k=5000: cannot exceed sae.d_sae=1024",
    "sae.k=abc": "sae.k: Value 'abc'",
    "sae=matryoshka sae.prefixes=[64,32,1024]": "sae.prefixes=[64, 32, 1024]: must rise",
    "sae=matryoshka sae.prefixes=[64,128]": "must end at sae.d_sae=1024",
    "sae=matryoshka sae.prefixes=[]": "sae.prefixes=[]: must rise",
    "sae=hierarchical sae.budgets=some": "give all, powers or numbers",
    "sae=jumprelu sae.k=4": "sae.k: sae=jumprelu has no k; those that have: topk, multitopk, batchtopk, ",
    "engine.parts=4": "engine.parts: engine=local has no parts; those that have: joblib, submitit",
    "sae=relu sae.taget_l0=4": "sae.taget_l0: there is no such key; did you mean sae.target_l0?",
    "model.layer=99": "model.layer=99: tiny-gpt2 has layers 0 to 3",
    "model.layer=-1": "model.layer=-1: must be at least 0",
    "model.site=resid_mid": "model.site=resid_mid: did you mean resid_pre?",
    "model.dtype=float16": "model.dtype=float16",
    "model=local": "model.layer, model.path: no value",
    "model=local model.layer=0 model.path=/nowhere/at/all": "/nowhere/at/all",
    "data=text": "data.path: no value",
    "data=text data.path=/nowhere.txt": "/nowhere.txt",
    "data.seq_len=4096": "data.seq_len=4096: tiny-gpt2 has",
    "data.n_tokens=900000000": "data.n_tokens",
    "device=gpu": "device=gpu: choose one of",
    "cache=ram": "cache=ram",
    "train.batch_size=0": "train.batch_size=0: must be at least 1",
    "train.lr=-1": "train.lr=-1",
    "evaluate.rules=[enrgy]": "evaluate.rules=enrgy: did you mean energy?",
    "outputs=/proc/nothing": "cannot write /proc/nothing",
    "sae.k": "sae.k",
}


@pytest.mark.parametrize("overrides", WRONG)
def test_wrong_input_is_one_line_and_leaves_nothing(
    overrides: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["saebench", "train", *overrides.split()])
    with pytest.raises(SystemExit) as stopped:
        main()
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 2
    assert WRONG[overrides] in error
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_an_interrupt_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(outputs: Path, repair: bool) -> None:
        raise KeyboardInterrupt  # what a SIGINT makes, unless the process was started with the signal ignored

    monkeypatch.setattr("saebench.verify.verify", interrupted)
    monkeypatch.setattr(sys, "argv", ["saebench", "verify", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "saebench: stopped; the same command goes on from here\n"


def test_cuda_without_a_gpu_is_named(tmp_path: Path) -> None:
    import torch

    from saebench.pipeline import run

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InputError, match="device=cuda: no CUDA device is visible"):
        run([run_config("device=cuda", f"outputs={tmp_path}")])


def test_sweeps_make_rectangles_and_grids() -> None:
    jobs = load_sweep(["sae=topk,batchtopk", "sae.k=4,8", "seed=3"])
    assert [(j.sae.name, j.sae.k, j.seed) for j in jobs] == [
        ("topk", 4, 3), ("topk", 8, 3), ("batchtopk", 4, 3), ("batchtopk", 8, 3)
    ]  # fmt: skip
    demo = load_sweep(["experiment=demo"])
    assert {j.sae.name for j in demo} >= {"topk", "batchtopk", "matryoshka", "hierarchical", "relu", "jumprelu"}
    assert {j.seed for j in load_sweep(["experiment=demo", "seed=7"])} == {7}


def test_the_users_own_yamls_come_first(tmp_path: Path) -> None:
    (tmp_path / "sae").mkdir()
    (tmp_path / "sae" / "mine.yaml").write_text("defaults: [topk, _self_]\nk: 5\n")
    assert load(["sae=mine"], str(tmp_path)).sae.k == 5
    with pytest.raises(InputError, match="no such folder"):
        load([], str(tmp_path / "none"))


@pytest.mark.parametrize("path", sorted(Path("conf").rglob("*.yaml")), ids=str)
def test_every_yaml_composes(path: Path) -> None:
    group, name = str(path.parent.relative_to("conf")), path.stem
    if group in (".", "claims"):  # claims are read by `saebench claims`, not composed
        return
    if group.startswith("experiment"):
        option = str(path.relative_to("conf/experiment").with_suffix(""))
        assert load_sweep([f"experiment={option}", "data.path=x", "model.path=x"])
        return
    needs = {"model": ["model.path=x", "model.layer=0"], "data": ["data.path=x"]}.get(group, [])
    chosen = getattr(load([f"{group}={name}", *needs]), group)
    assert getattr(chosen, "name", name) == name


def test_help_needs_no_heavy_import() -> None:
    done = subprocess.run([sys.executable, "-m", "saebench", "--help"], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0
    for command in ("train", "sweep", "cache", "evaluate", "tables", "figures"):
        assert command in done.stdout
