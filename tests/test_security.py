"""The promises of SECURITY.md that are about the package as a whole."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from saebench import pipeline
from saebench.checks import InputError
from saebench.claims.holds import columns, holds
from saebench.config import from_dict
from saebench.runconfig import read_config
from tests.configs import run_config
from tests.test_checkpoint import SMALL
from tests.wrong_inputs import TABLES

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "saebench").rglob("*.py"))
RUNNING = {"eval", "exec", "compile", "__import__"}
MODULES = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "tarfile", "zipfile"}
LOADERS = {
    ("torch", "load"),
    ("torch", "save"),
    ("numpy", "load"),
    ("np", "load"),
    ("yaml", "unsafe_load"),
    ("os", "system"),
    ("os", "popen"),
}
FOREIGN = {  # what reads and writes other libraries' formats: the calls that it alone makes
    "safe.py": {"torch.load": "weights_only=True", "np.load": "allow_pickle=False"},
    "dictionary_learning.py": {"torch.save": "tensors"},
}


def called(tree: ast.AST) -> list[ast.Call]:
    """Every call in a file."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def name_of(call: ast.Call) -> tuple[str, str]:
    """The name that is called: what it belongs to, if that is a plain name, and itself."""
    if isinstance(call.func, ast.Attribute):
        return getattr(call.func.value, "id", "a value"), call.func.attr
    return "", getattr(call.func, "id", "")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_in_the_package_runs_what_it_reads(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    foreign = FOREIGN.get(path.name, {}) if path.parent.name == "interop" else {}
    assert foreign or not {name.partition(".")[0] for name in imported} & MODULES
    for call in called(tree):
        owner, name = name_of(call)
        assert owner or name not in RUNNING, ast.unparse(call)
        if f"{owner}.{name}" in foreign:
            assert foreign[f"{owner}.{name}"] in ast.unparse(call)
            continue
        assert (owner, name) not in LOADERS, ast.unparse(call)
        assert not any(k.arg in ("shell", "allow_pickle", "weights_only") for k in call.keywords), ast.unparse(call)
        if (owner, name) == ("yaml", "load"):
            assert ast.unparse(call).endswith("YAML_LOADER)")


def test_files_of_other_libraries_are_never_unpickled() -> None:
    text = (ROOT / "saebench" / "interop" / "safe.py").read_text(encoding="utf-8")
    assert set(re.findall(r"pickle\.\w+", text)) == {"pickle.UnpicklingError"}
    assert "extract" not in text


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_remote_code_is_never_trusted(path: Path) -> None:
    for call in called(ast.parse(path.read_text(encoding="utf-8"))):
        owner, name = name_of(call)
        if name == "from_pretrained" and owner.startswith("Auto"):
            given = {k.arg: ast.unparse(k.value) for k in call.keywords}
            assert given.get("trust_remote_code") == "False", ast.unparse(call)
            assert not owner.startswith("AutoModel") or given.get("use_safetensors") == "True"


def test_every_promise_names_a_test_that_is_there() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    for file, name in re.findall(r"`(test_[a-z_]+\.py)::([a-z_]+)`", text):
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), name
    for table, names in re.findall(r"`wrong_inputs.py`, (\w+): ([^|`;]+)", text):
        for name in names.strip().rstrip(",").split(", "):
            assert name in TABLES[table], name


def test_expressions_of_claims_are_read_not_run() -> None:
    row = {"p": 0.2, "r2": 0.95, "best": "power_law", "n": 3}
    assert holds("p >= 0.1 and r2 > 0.9", row)
    assert holds("not p < 0.1 and -n < 2 * n - 1 <= 5 and (best == 'power_law' or n / 2 > 9)", row)
    assert not holds("p > 0.1 > r2", row)
    assert columns("p + n > r2") == ["n", "p", "r2"]
    for text in (
        "__import__('os').system('true')",
        "p.real",
        "n ** 9 ** 9",
        "n << 99",
        "'a' * 9",
        "[p]",
        "(" * 500,
        "p if n else 1",
        "p >",
    ):
        with pytest.raises(InputError, match="holds="):
            columns(text)
    with pytest.raises(InputError, match="cannot be reckoned"):
        holds("n / 0 > 1", row)


def test_a_config_reads_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "hush-hush")
    cfg = run_config("sae=topk")
    from omegaconf import OmegaConf

    from saebench.config import recorded

    text = OmegaConf.to_yaml(OmegaConf.create(recorded(cfg))).replace("outputs: outputs", "outputs: ${oc.env:TOKEN}")
    (tmp_path / "config.yaml").write_text(text)
    assert from_dict(read_config(tmp_path / "config.yaml")).outputs == "${oc.env:TOKEN}"


def test_no_secret_of_the_environment_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hush-hush-4711")
    pipeline.run([run_config("sae=topk", *SMALL, f"outputs={tmp_path}")])
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [str(path) for path in files if b"hush-hush-4711" in path.read_bytes()] == []
    assert "hush-hush-4711" not in "".join(capfd.readouterr())
