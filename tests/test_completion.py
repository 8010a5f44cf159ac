"""Shell completion: what is put in for a word, through the protocols of bash and zsh, and in a real bash."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from saebench.catalogue import options, values
from saebench.cli.main import app
from saebench.completion import SECTIONS, complete, complete_name, interpret_keys, keys_of, parted
from saebench.config import ORDERS, RULES, SITES, TRACKERS
from saebench.engine_configs import ENGINES
from saebench.sae_configs import SAE_VARIANTS

CASES = {  # words before the one that is typed, by bash's parting and without; what is typed; what is put in
    "| mod": ["model=", "model."],
    "| sae.d_s": ["sae.d_sae=", "sae.d_sae=1024"],
    "| ++sae.d_s": ["++sae.d_sae=", "++sae.d_sae=1024"],
    "sae=jumprelu | sae.t": ["sae.target_l0=", "sae.threshold=", "sae.threshold_lr="],
    "sae = jumprelu | sae.ta": ["sae.target_l0=", "sae.target_l0=32.0"],
    "| sae.target": [],
    "experiment=demo | sae.target": ["sae.target_l0=", "sae.target_l0=32.0"],
    "| data.text": ["data.text_column=", "data.text_column=text"],
    "| sae=mat": ["sae=matryoshka"],
    "sae = | mat": ["matryoshka"],
    "seed = 1 engine | ": sorted(ENGINES),
    "| sae=topk,b": ["sae=topk,batchtopk"],
    "sae = | topk,batchtopk,t": [],
    "| experiment=progressive/c": ["experiment=progressive/cost", "experiment=progressive/cpu"],
    "| model.site=": [f"model.site={site}" for site in SITES],
    "model.site | ": [*SITES],
    "| tracker.name=": [f"tracker.name={name}" for name in TRACKERS],
    "| evaluate.scale_k=": ["evaluate.scale_k=true", "evaluate.scale_k=false"],
    "| evaluate.rules=": [f"evaluate.rules=[{rule}" for rule in RULES],
    "| evaluate.orders=[select_then_prune,": [f"evaluate.orders=[select_then_prune,{ORDERS[1]}"],
    "| experiment.claims=[r": ["experiment.claims=[reach"],
    "| train.n_tokens=": ["train.n_tokens=null"],
    "| cache=": ["cache=disk", "cache=stream"],
    "| nothing": [],
    "| nothing.at.all=": [],
    "nothing | ": [],
    "sae=nothing | sae.k": [],
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_put_in(case: str) -> None:
    words, _, typed = case.partition("| ")
    assert [*dict.fromkeys(value for value, _ in complete(words.split(), typed))] == CASES[case]


def test_without_anything_typed_there_are_groups_and_keys_each_with_a_word_on_it() -> None:
    found = dict(complete([], ""))
    assert {*found} >= {"model=", "sae.", "experiment=", "device=", "seed="}
    assert "claims=" not in found
    assert [value for value, told in found.items() if not told] == []


@pytest.mark.parametrize("variant", SAE_VARIANTS)
def test_the_keys_of_a_variant_are_its_own(variant: str) -> None:
    found = {value.partition("=")[0] for value, _ in complete([f"sae={variant}"], "sae.")}
    assert found == {f"sae.{name}" for name in SAE_VARIANTS[variant].__dataclass_fields__}


@pytest.mark.parametrize("group", [group for group in SECTIONS if group != "experiment"])
def test_the_value_that_conf_has_is_among_those_of_its_key(group: str) -> None:
    """The checks name the values when they are given a wrong one; were another key wrong first, they would name its values."""
    for o in options(group):
        content = {f"{group}.{name}": value for name, value in values(group, o.name).items()}
        keys = keys_of(group, [f"{group}={o.name}"], None)
        assert {*content} == {*keys}
        closed = {name: key.values for name, key in keys.items() if len({*key.values} - {"null"}) > 1}
        for name, known in closed.items():
            now = content[name] if isinstance(content[name], list) else [content[name]]
            assert {str(value).lower() for value in now} <= {*known}, name


def test_own_options_and_their_keys(tmp_path: Path) -> None:
    (tmp_path / "sae").mkdir()
    (tmp_path / "sae" / "mine.yaml").write_text("# Mine.\ndefaults: [jumprelu, _self_]\nl0: 0.7\n")
    assert complete([], "sae=mi", str(tmp_path)) == [("sae=mine", "Mine.")]
    found = [value for value, _ in complete(["sae=mine"], "sae.l0", str(tmp_path))]
    assert found == ["sae.l0=", "sae.l0=0.7"]
    for wrong in ("k: [\n", "k: 5\n", "- 5\n", "name: nothing\n"):
        (tmp_path / "sae" / "mine.yaml").write_text(wrong)
        assert complete(["sae=mine"], "sae.", str(tmp_path)) == []
    assert complete([], "sae=mi", str(tmp_path / "nowhere")) == []


def test_words_that_bash_parted_are_joined() -> None:
    assert parted(["sae", "=", "topk", "seed", "=", "1"]) == (["sae=topk", "seed=1"], "")
    assert parted(["sae", "=", "topk", "seed"]) == (["sae=topk"], "seed")
    assert parted(["sae", "=", "topk", "seed", "="]) == (["sae=topk"], "seed")
    assert parted(["sae=topk", "seed=1"]) == (["sae=topk", "seed=1"], "")
    assert parted([]) == ([], "")


def test_names_of_configs_and_keys_of_interpret() -> None:
    assert [name for name, _ in complete_name("s")] == ["sae", "sparsity"]
    assert [name for name, _ in complete_name("experiment/progressive/c")] == [
        "experiment/progressive/cost",
        "experiment/progressive/cpu",
    ]
    assert complete_name("nothing/") == []
    assert [name for name, _ in interpret_keys("judge.concur")] == ["judge.concurrency=", "judge.concurrency=16"]


# the shells' protocols


def asked(line: str, shell: str) -> str:
    """What the command answers a shell that completes the end of a line."""
    words = line.replace("=", "\n=\n").split() if shell == "bash" else []
    words += [""] if line.endswith(" ") else []
    env = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1), "_TYPER_COMPLETE_ARGS": line}
    result = CliRunner().invoke(app, [], prog_name="saebench", env=env | {"_SAEBENCH_COMPLETE": f"complete_{shell}"})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_bash_protocol() -> None:
    assert {"configs", "show", "train"} <= {*asked("saebench ", "bash").split()}
    assert asked("saebench tra", "bash").split() == ["train"]
    assert "--config-dir" in asked("saebench train --", "bash").split()
    assert asked("saebench train seed=1 sae=mat", "bash").split() == ["matryoshka"]
    assert asked("saebench train sae=", "bash").split() == sorted(SAE_VARIANTS)
    assert asked("saebench sweep sae=jumprelu sae.ta", "bash").split() == ["sae.target_l0=", "sae.target_l0=32.0"]
    assert asked("saebench configs sae/b", "bash").split() == ["sae/batchtopk"]


def test_zsh_protocol() -> None:
    assert asked("saebench sweep sae=topk,b", "zsh").startswith(
        '_arguments \'*: :(("sae=topk,batchtopk":"A batch of n tokens keeps'
    )
    assert '"sae.d_sae=":"latents"' in asked("saebench train sae.d", "zsh")
    assert asked("saebench train data.path=corp", "zsh").strip() == "_files"


def test_a_candidate_is_one_line_in_every_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Typer breaks what is said of a candidate at the terminal's width, and reads [ as markup."""
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    monkeypatch.setenv("COLUMNS", "60")
    lines = asked("saebench sweep experiment=", "fish").splitlines()
    assert [line.partition("\t")[0] for line in lines] == [f"experiment={o.name}" for o in options("experiment")]
    assert "such as [module ..." in asked("saebench sweep engine=submitit engine.setup", "fish")


def test_runs_are_put_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("topk-1", "topk-2", "relu-1.partial"):
        (tmp_path / "outputs" / "runs" / name).mkdir(parents=True)
    (tmp_path / "outputs" / "runs" / "topk-1" / "config.yaml").touch()
    assert asked("saebench prune ou", "bash").split() == ["outputs/runs/topk-1"]
    assert asked("saebench diff to", "bash").split() == ["topk-1"]
    assert asked("saebench rm --outputs elsewhere to", "bash").split() == []
    assert asked("saebench interpret outputs/runs/topk-1 free.dr", "bash").split() == ["free.draws=", "free.draws=100"]


@pytest.mark.long
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_in_a_real_bash(tmp_path: Path) -> None:
    command = tmp_path / "saebench"
    command.write_text(f"#!{sys.executable}\nfrom saebench.cli.main import main\nmain()\n")
    command.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)}
    env |= {"PS1": "", "TERM": "dumb", "INPUTRC": "/dev/null", "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    script = subprocess.run([command, "--show-completion", "bash"], env=env, capture_output=True, text=True, check=True)
    (tmp_path / "script.sh").write_text(script.stdout)
    dialogue = {  # what is typed, and what bash then makes of the line
        f"source {tmp_path}/script.sh && echo ready:\n": "\nready:",
        "saebench tr\t": "saebench train ",
        "sae=matr\t": "sae=matryoshka ",
        "sae.pre\t": "sae.prefix",
        "es=nu\t": "es=null ",
        "model.si\t": "model.site=",
        "resid_po\t": "resid_post ",
        "sae.dead\t": "sae.dead_tokens=",
    }
    assert "saebench train sae=matryoshka sae.prefixes=null model.site=resid_post sae.dead_tokens=" in said(
        dialogue, env
    )


def said(dialogue: dict[str, str], env: dict[str, str]) -> str:
    """What an interactive bash shows while keys are typed, each batch of them after the answer to the one before."""
    process, terminal = pty.fork()
    if process == 0:
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], env)
    termios.tcsetwinsize(terminal, (24, 400))
    shown = ""
    for keys, answer in dialogue.items():
        os.write(terminal, keys.encode())
        before, end = len(shown), time.monotonic() + 60
        while answer not in shown[before:] and time.monotonic() < end:
            if select.select([terminal], [], [], 1.0)[0]:
                shown += os.read(terminal, 4096).decode(errors="replace").replace("\r", "").replace("\a", "")
    os.kill(process, signal.SIGKILL)
    os.close(terminal)
    os.waitpid(process, 0)
    return shown
