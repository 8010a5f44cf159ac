"""A file imports only from lower floors; heavy libraries are not imported by the command line's own files."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "saebench"
FLOORS = [
    {"checks"},
    {"sae_configs", "engine_configs"},
    {"config", "catalogue"},
    {"progress", "pythondocs", "assets"},
    {"store", "kernels", "memory", "metrics", "schedules", "textfiles", "modelfiles", "devices"},
    {"parallel", "sparse", "finished", "runconfig", "verify"},
    {"optim", "interpreted", "nested", "select", "similarity", "data", "running", "probed"},
    {"runs", "lm", "tables", "tails", "levels"},
    {"saes", "splice", "figures", "laws", "claims", "seeds", "choose", "frontier", "shelf"},
    {"sharded"},
    {"activations", "views", "member", "compose", "interop", "intervene", "difference", "removal", "watch"},
    {"space", "caching", "train", "heldout", "prune", "checkpoint", "track", "room", "report", "origins", "completion"},
    {"recapture", "gangs"},
    {"evaluate", "stream"},
    {"pipeline"},
    {"calibrate", "search", "interpret", "imported", "publish"},
    {"reach", "tune", "probing"},
    {"plan"},
    {"engines"},
    {"cli", "assets.build"},
    {"__main__", "__init__"},
]
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}


def unit(path: Path) -> str:
    """The file or the subpackage that a path belongs to."""
    parts = path.relative_to(PACKAGE).parts
    return "assets.build" if parts[0] == "assets" and parts[1] != "__init__.py" else parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The units of saebench that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "saebench":
            parts = node.module.split(".")
            if parts[1:2] == ["assets"] and len(parts) > 2:
                found.add("assets.build")
                continue
            found |= (
                {parts[1]} if len(parts) > 1 else {a.name for a in node.names if (PACKAGE / f"{a.name}.py").exists()}
            )
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("saebench.")}
    return found


def test_imports_point_downwards() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        mine = unit(path)
        wrong += [f"{path.name} imports {u}" for u in imported(path) if u != mine and FLOOR[u] >= FLOOR[mine]]
    assert wrong == []


def test_files_are_short() -> None:
    lengths = {
        str(p.relative_to(PACKAGE)): len(p.read_text(encoding="utf-8").splitlines()) for p in PACKAGE.rglob("*.py")
    }
    assert {name: n for name, n in lengths.items() if n > 300} == {}


def test_composing_a_config_imports_nothing_heavy() -> None:
    code = (
        "import sys; from saebench.compose import load; import saebench.cli.main; load(['sae=matryoshka']); "
        "print([m for m in ('torch', 'transformers', 'datasets', 'pandas', 'matplotlib', 'triton') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
