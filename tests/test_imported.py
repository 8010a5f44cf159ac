"""SAEs of other libraries as runs: measured as ours are, told apart in tables; runs pushed to the hub and pulled from it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

import saebench
from saebench.calibrate import calibrate
from saebench.checks import InputError
from saebench.cli.main import main
from saebench.config import from_dict
from saebench.imported import TRAIN_LOG, evaluate_sae, import_sae, inferred, model_named
from saebench.interop import hub
from saebench.interop.facts import Facts
from saebench.lm import EMBEDDED
from saebench.pipeline import run
from saebench.publish import fill, pull, push
from saebench.saes.files import load_sae
from saebench.store import read_json
from saebench.tables import write_tables
from saebench.verify import verify
from tests.test_interop import FIXTURES, WHERE
from tests.test_pipeline import SMALL, rows_of, small

HERE = [o for o in SMALL if not o.startswith("sae.")]
SAME = ("l0", "mse", "fvu", "fvu_std", "cosine", "ce_sae", "ce_clean", "kl", "cka", "cka_std", "dead_fraction")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """An outputs folder with a trained topk and a trained batchtopk."""
    folder = tmp_path_factory.mktemp("trained")
    at = ("model.layer=1", "model.site=resid_pre", "sae.k=8")
    return folder, run([small(folder, "sae=topk", *at), small(folder, "sae=batchtopk", *at)])


@pytest.mark.parametrize(("which", "to"), [(0, "saelens"), (0, "sparsify"), (1, "saelens"), (1, "dictionary_learning")])
def test_an_sae_that_went_round_by_another_library_measures_the_same(
    which: int, to: str, outputs: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    folder, runs = outputs
    out = tmp_path / "layers.1"
    saebench.export(runs[which], out, to)
    where = [] if to == "saelens" else ["model=tiny-gpt2", "model.layer=1", "model.site=resid_pre"]
    found = evaluate_sae(str(out), None, [*HERE, f"outputs={folder}", *where])
    mine, theirs = rows_of(runs[which]), rows_of(found)
    full = [(a, b) for a in mine for b in theirs if a["view"] == b["view"] == "full" and a["tokens"] == b["tokens"]]
    own_mode = [(a, b) for a, b in full if a["mode"] == b["mode"]]
    assert len(own_mode) >= 2
    for a, b in own_mode:
        assert (a["model"], a["layer"], a["site"], a["data"]) == (b["model"], b["layer"], b["site"], b["data"])
        for name in SAME:
            assert float(b[name]) == pytest.approx(float(a[name]), rel=2e-3, abs=1e-5), (
                name
            )  # a latent near the threshold may flip


def test_imported_saes_are_told_from_ours_in_tables(outputs: tuple[Path, list[Path]], tmp_path: Path) -> None:
    folder = tmp_path / "outputs"
    shutil.copytree(outputs[0] / "runs", folder / "runs", ignore=shutil.ignore_patterns("*.lock"))
    for found in (folder / "runs").iterdir():
        if found.name not in {p.name for p in outputs[1]}:
            shutil.rmtree(found)
    saebench.export(outputs[1][0], tmp_path / "a" / "sae", "saelens")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    at = [*HERE, f"outputs={folder}", "cache=stream"]
    first = evaluate_sae(str(tmp_path / "a" / "sae"), "saelens", at)
    assert evaluate_sae(str(first), None, at) == first  # a run, whose model and data are known
    again = evaluate_sae(str(outputs[1][0]), None, at)
    assert load_sae(again).cfg == load_sae(outputs[1][0]).cfg
    write_tables(folder)
    runs = pd.read_csv(folder / "tables" / "runs.csv").to_dict("records")
    topk = [row for row in runs if row["variant"] == "topk"]
    assert len({row["configuration"] for row in topk}) == len(topk) == 3
    assert sorted(row["origin"].split(":")[0] for row in topk) == ["saebench", "saelens", "trained"]
    assert not any(key.startswith("train.") for key in topk[0])
    assert verify(folder) == []


def test_an_imported_run_is_a_run(outputs: tuple[Path, list[Path]], tmp_path: Path) -> None:
    saebench.export(outputs[1][1], tmp_path / "sae", "dictionary_learning")
    at = [*HERE, f"outputs={outputs[0]}", "data.eval_tokens=640", "model=tiny-gpt2"]
    folder = import_sae(str(tmp_path / "sae"), None, at)
    assert not (folder / "metrics.csv").exists()
    made = (folder / "done.json").stat().st_mtime_ns
    assert import_sae(str(tmp_path / "sae"), None, at) == folder
    assert (folder / "done.json").stat().st_mtime_ns == made
    cfg = from_dict(yaml.safe_load((folder / "config.yaml").read_text()))
    assert (cfg.model.layer, cfg.model.site, cfg.data.eval_tokens, cfg.sae.k) == (1, "resid_pre", 640, 8)
    assert read_json(folder / "sae.json")["imported"]["format"] == "dictionary_learning"
    again = evaluate_sae(
        str(folder), None, [*HERE, f"outputs={outputs[0]}", "data.eval_tokens=640", "evaluate.ce_tokens=0"]
    )
    assert again == folder
    assert (calibrate(again, 4.0) / "sae.json").is_file()
    header = (outputs[1][0] / "train.csv").read_text().partition("\n")[0]
    assert header.split(",") == TRAIN_LOG


def test_the_command_line(
    outputs: tuple[Path, list[Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def call(*args: str) -> tuple[Any, list[str], str]:
        monkeypatch.setattr(sys, "argv", ["saebench", *args])
        with pytest.raises(SystemExit) as stopped:
            main()
        told = capsys.readouterr()
        return stopped.value.code, told.out.splitlines(), told.err

    run, out, at = str(outputs[1][0]), str(tmp_path / "out"), [*HERE, f"outputs={outputs[0]}"]
    code, lines, _ = call("export", "--to", "saelens", run, out)
    assert (code, lines[-1]) == (0, out)
    code, lines, _ = call("import", out, *at)
    assert code == 0
    assert Path(lines[-1]).parent == outputs[0] / "runs"
    code, lines, _ = call("evaluate", "--sae", out, *at, "evaluate.ce_tokens=0")
    assert code == 0
    assert Path(lines[-1]).name == "metrics.csv"
    code, _, error = call("export", "--to", "sparsify", str(outputs[1][1]), str(tmp_path / "no"))
    assert code == 2
    assert error.strip().splitlines()[-1].startswith("saebench: --to=sparsify: it has TopK alone")
    code, _, error = call("evaluate", "--sae", out, "sae.k=3")
    assert (code, error.strip()) == (2, "saebench: sae.k: the SAE brings its own; leave it out")
    code, lines, _ = call("push", run, "someone/some-sae", "--dry-run")
    assert code == 0
    assert "would upload to someone/some-sae:" in lines
    code, _, error = call("push", run, "someone", "--dry-run")
    assert code == 2
    assert "someone: is no hub id" in error


def test_what_is_known_of_the_site_is_taken_unless_it_is_given(tmp_path: Path) -> None:
    facts = WHERE["saelens"]
    assert inferred(facts, []) == ["model=gpt2-small", "model.layer=2", "model.site=resid_pre"]
    assert inferred(facts, ["model.layer"]) == ["model=gpt2-small", "model.site=resid_pre"]
    assert inferred(facts, ["model"]) == ["model.layer=2", "model.site=resid_pre"]
    assert inferred(Facts(), []) == []
    assert model_named("google/gemma-2-2b") == ["model=gemma2-2b"]
    assert model_named("some/model") == ["model=local", "model.path=some/model", "model.name=model"]
    with pytest.raises(InputError, match="model: the SAE is of gpt5, for which there is no YAML"):
        model_named("gpt5")
    with pytest.raises(InputError, match="gemma_scope: does not say which model it is of; add model=NAME"):
        import_sae(str(FIXTURES / "gemma_scope"), None, [f"outputs={tmp_path}"])
    with pytest.raises(InputError, match="model=tiny-gpt2: has width 128, and gemma_scope reads 6"):
        import_sae(str(FIXTURES / "gemma_scope"), None, ["model=tiny-gpt2", f"outputs={tmp_path}"])
    assert not (tmp_path / "runs").exists()


def test_a_card_says_what_was_measured_and_no_path_of_this_machine(
    outputs: tuple[Path, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = push(outputs[1][1], "someone/some-sae", dry_run=True, licence="mit")
    front = yaml.safe_load(text.split("---")[1])
    assert front == {
        "library_name": "saebench",
        "tags": ["sparse-autoencoder", "saebench", "batchtopk"],
        "license": "mit",
    }
    full = next(row for row in rows_of(outputs[1][1]) if row["tokens"] == "typical")
    line = next(line for line in text.splitlines() if line.startswith("| full"))
    assert f"{float(full['fvu']):.4f}".rstrip("0") in line
    assert str(outputs[0]) not in text
    assert 'saebench.load("someone/some-sae")' in text
    assert "not stated" in push(outputs[1][1], "someone/some-sae", dry_run=True)
    with pytest.raises(InputError, match="--licence=M I T"):
        push(outputs[1][1], "someone/some-sae", dry_run=True, licence="M I T")


def test_what_is_pushed_can_be_pulled_and_used(
    outputs: tuple[Path, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = tmp_path / "hub"

    def receive(folder: Path, repo: str, private: bool) -> str:
        shutil.copytree(folder, sent)
        return f"{repo} {private}"

    monkeypatch.setattr(hub, "push", receive)
    monkeypatch.setattr(hub, "fetch", lambda source, names: sent)
    assert push(outputs[1][0], "someone/some-sae", private=True) == "someone/some-sae True"
    assert str(outputs[0]) not in "".join(p.read_text() for p in sent.iterdir() if p.suffix != ".safetensors")
    new = tmp_path / "outputs"
    folder = pull("someone/some-sae", new)
    assert folder.name == outputs[1][0].name
    assert verify(new) == []
    assert pull("someone/some-sae", new) == folder
    at = ("model.layer=1", "model.site=resid_pre", "sae=topk", "sae.k=8")
    assert run([small(new, *at)], evaluate_only=True) == [folder]  # it counts as trained
    (sent / "latents.csv").write_text("latent\n")
    with pytest.raises(InputError, match=r"someone/some-sae: latents\.csv: has 7 bytes"):
        pull("someone/some-sae", tmp_path / "other")
    (sent / "latents.csv").unlink()
    with pytest.raises(InputError, match=r"no latents\.csv in it"):
        pull("someone/some-sae", tmp_path / "other")


def test_no_path_of_this_machine_is_sent(outputs: tuple[Path, list[Path]], tmp_path: Path) -> None:
    saebench.export(outputs[1][0], tmp_path / "sae", "sparsify")
    at = [
        *HERE,
        f"outputs={outputs[0]}",
        "model=local",
        f"model.path={EMBEDDED}",
        "model.layer=1",
        "evaluate.ce_tokens=0",
    ]
    folder, sent = evaluate_sae(str(tmp_path / "sae"), None, at), tmp_path / "sent"
    sent.mkdir()
    fill(
        sent,
        evaluate_sae(str(folder), None, [*HERE, f"outputs={outputs[0]}", "evaluate.ce_tokens=0"]),
        "someone/some-sae",
        None,
    )
    texts = {path.name: path.read_text() for path in sent.iterdir() if path.suffix != ".safetensors"}
    assert [name for name, text in texts.items() if str(EMBEDDED.parent) in text or str(outputs[0]) in text] == []
    assert "Imported from sparsify:sae:" in texts["README.md"]


def test_a_hostile_done_json_reaches_nothing_outside(
    outputs: tuple[Path, list[Path]], tmp_path: Path, monkeypatch: Any
) -> None:
    sent = tmp_path / "hub"
    sent.mkdir()
    fill(sent, outputs[1][0], "someone/some-sae", None)
    monkeypatch.setattr(hub, "fetch", lambda source, names: sent)
    done = read_json(sent / "done.json")
    done["files"]["../../outside"] = {"bytes": 0, "sha256": ""}
    (sent / "done.json").write_text(json.dumps(done))
    with pytest.raises(InputError, match="does not say what the run consists of"):
        pull("someone/some-sae", tmp_path / "outputs")


def test_a_run_that_is_not_evaluated_has_no_card(outputs: tuple[Path, list[Path]], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(outputs[1][0], folder)
    (folder / "metrics.csv").unlink()
    with pytest.raises(InputError, match="not evaluated, so its card would be empty"):
        push(folder, "someone/some-sae", dry_run=True)
    (folder / "train.csv").write_text("")
    (folder / "metrics.csv").touch()
    with pytest.raises(InputError, match=r"train\.csv: has 0 bytes"):
        push(folder, "someone/some-sae", dry_run=True)
