"""Commands of the documentation run in this process on the embedded model and little data, in the current folder."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from saebench import compose, sae_configs, saes
from saebench.cli.main import main
from saebench.sae_configs import SAE_VARIANTS
from saebench.saes import REGISTRY
from saebench.textfiles import python_docs
from tests.doc_checks import GROUP
from tests.doc_commands import ROOT, edits

SMALL = (
    "data.n_tokens=6400", "data.eval_tokens=1280", "data.seq_len=32", "data.stats_tokens=2048", "data.shard_tokens=1024",
    "sae.d_sae=256", "train.batch_size=256", "train.n_tokens=6400", "train.window_tokens=2048", "train.importance_tokens=1024",
    "evaluate.sizes=[0.25]", "evaluate.rules=[energy]", "evaluate.budgets=[2]", "evaluate.ce_tokens=256",
    "evaluate.ce_views=2", "evaluate.rsa_tokens=64", "evaluate.threshold_tokens=512",
)  # fmt: skip
CUT = ("data.n_tokens", "train.n_tokens")  # small whatever the page says; the page's own values of the others stand
MADE = "outputs/runs/topk-0123456789ab"  # what commands that do not run here print
SHOWN = ("show", "config")  # what is said of jobs holds of the page's own, not of smaller ones
EASY = "0.9"  # FVU that an SAE has after a few steps
NAMED_RUN = re.compile(r"outputs/runs/(\w+)-(?:0123456789ab|\*)")  # how pages name a run of a variant


@contextlib.contextmanager
def edited(page: Path, folder: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within it the project is as the page says: code is run where its file has it, YAMLs are in a copy of conf/."""
    registries: list[dict[str, Any]] = [SAE_VARIANTS, REGISTRY]
    kept = [dict(registry) for registry in registries]
    conf, names = folder / "conf", vars(saes).copy()
    for path, text in edits(page):
        if path.startswith("conf/"):
            shutil.copytree(compose.conf_folder(), conf)
            (folder / path).write_text(text, encoding="utf-8")
            patch.setattr(compose, "conf_folder", lambda: conf)
        elif path == "saebench/sae_configs.py":
            made = dict(vars(sae_configs))
            exec(compile(text, path, "exec"), made)
            for name in made.keys() - vars(sae_configs).keys():
                patch.setattr(sae_configs, name, made[name], raising=False)
        else:
            exec(compile(text, path, "exec"), names)
    try:
        yield
    finally:
        for registry, before in zip(registries, kept, strict=True):
            registry.clear()
            registry.update(before)


def write_made(folder: Path) -> None:
    """What pages look at with other commands than saebench's, of the run that is said to be made."""
    (folder / MADE).mkdir(parents=True)
    (folder / MADE / "train.csv").touch()


def write_inputs(folder: Path) -> None:
    """What pages call the reader's own: a text in several forms, and a model."""
    texts = sorted(python_docs(), key=len)[-80:]
    whole = ["\n".join(line for line in text.splitlines() if line.strip()) for text in texts]
    (folder / "corpus").mkdir()
    for name, part in (("corpus/a.txt", whole), ("train.txt", whole[:60]), ("heldout.txt", whole[60:])):
        (folder / name).write_text("\n\n".join(part), encoding="utf-8")
    notes = [json.dumps({"body": text}) for text in whole]
    (folder / "notes.jsonl").write_text("\n".join(notes), encoding="utf-8")
    halves = [(part, label) for text in whole for label, part in (("begins", text[:200]), ("ends", text[-200:]))]
    labelled = [json.dumps({"text": part, "label": label}) for part, label in halves]
    (folder / "news.jsonl").write_text("\n".join(labelled), encoding="utf-8")
    (folder / "my-model").symlink_to(ROOT / "saebench" / "assets" / "tiny-gpt2")


def run_small(argv: Sequence[str]) -> str:
    """Run a command of saebench in this process, on little data; what it printed. Raises SystemExit if it fails."""
    words = [NAMED_RUN.sub(newest, word) for word in argv]
    words = [EASY if before == "--fvu" else word for before, word in itertools.pairwise(["", *words])]
    if words[0] not in SHOWN and "overrides" in {param.name for param in GROUP.commands[words[0]].params}:
        given = {word.partition("=")[0] for word in words}
        given |= {"sae.d_sae"} if words[0] == "import" or "--sae" in words else set()  # which have an SAE
        words += [word for word in SMALL if (key := word.partition("=")[0]) not in given or key in CUT]
    printed, told, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["saebench", *words]
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
            main()
    except SystemExit as stopped:
        if stopped.code:
            raise SystemExit(f"exit code {stopped.code}: {told.getvalue()}") from None
    finally:
        sys.argv = before
    return printed.getvalue()


def newest(match: re.Match[str]) -> str:
    """The newest run of a variant, trained if there is none."""
    runs = sorted(Path("outputs/runs").glob(f"{match[1]}-*/done.json"), key=lambda path: path.stat().st_mtime)
    return str(runs[-1].parent) if runs else run_small(["train", f"sae={match[1]}"]).splitlines()[-1]
