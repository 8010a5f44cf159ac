"""`saebench absorption` and `saebench probe` from end to end on a small run: views, files, tables, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from saebench.checks import InputError
from saebench.config import ModelConfig
from saebench.lm import load_lm, load_tokenizer
from saebench.pipeline import run
from saebench.probing.activations import SHARD_PROMPTS, Ragged, fill, groups, shards
from saebench.probing.command import absorption, probe, table_of
from saebench.probing.letters import letter_examples, words_of
from saebench.probing.pool import Applied, columns, pooled
from saebench.probing.prompts import Prompt, text_examples
from saebench.probing.scores import Measured
from saebench.probing.settings import section
from saebench.probing.study import Study, open_run
from saebench.probing.tasks import Texts, decoder_of
from saebench.tables import read_table, write_tables
from saebench.views import View
from tests.configs import run_config

WORDS = [
    "absorption.words=240",
    "absorption.icl=1",
    "absorption.min_letters=1",
    "absorption.min_f1=0.05",
    "absorption.replicates=50",
]
TEXTS = ["probe.train=60", "probe.test=24", "probe.tokens=16", "probe.k=[1,2]", "probe.replicates=50"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Matryoshka SAE of the embedded model."""
    cfg = run_config(
        "sae=matryoshka", "sae.d_sae=64", "sae.k=4", "data.n_tokens=10_000", "data.eval_tokens=1000", "evaluate.ce_tokens=0",
        "evaluate.sizes=[0.5]", "evaluate.rules=[]", "evaluate.orders=[select_then_prune]", "compile=off",
        f"outputs={tmp_path_factory.mktemp('outputs')}",
    )  # fmt: skip
    return run([cfg])[0]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of two kinds that differ in every word."""
    path = tmp_path_factory.mktemp("texts") / "kinds.jsonl"
    texts = [("code", f"def f{i}(x): return x + {i}") for i in range(50)]
    texts += [
        ("prose", f"The {word} of the module is described in the chapter {i}.") for i, word in enumerate(["name"] * 50)
    ]
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for label, text in texts))
    return path


def model_of(run: Path) -> ModelConfig:
    """The model of a run."""
    return open_run(run).cfg.model


def test_absorption_is_measured_by_view_and_kept(trained: Path) -> None:
    rows = absorption([trained], ["full", "prefix:32"], WORDS)
    every = {(row["view"], row["score"]): row for row in rows if row["class"] == "all"}
    assert len(every) == 14
    for view in ("full", "prefix"):
        assert 0 <= every[view, "absorption_fraction"]["value"] <= 1
        assert every[view, "split_latents"]["value"] >= 1
        assert every[view, "letter_f1"]["value"] == every["full", "letter_f1"]["value"]  # the probe of x is one
    letters = {row["class"] for row in rows} - {"all"}
    assert letters <= set("abcdefghijklmnopqrstuvwxyz")
    folders = {path.name.split("-")[1]: path for path in (trained / "probing").iterdir() if "first_letter" in path.name}
    details = pd.read_csv(folders["prefix"] / "details.csv", keep_default_na=False)
    assert len(details) == every["prefix", "absorption_fraction"]["n"]
    assert {
        word.strip()[0].lower() == letter for word, letter in zip(details["word"], details["letter"], strict=True)
    } == {True}
    assert all(int(latent) < 32 for latents in details["own_latents"] for latent in str(latents).split())
    stamp = (folders["full"] / "done.json").stat().st_mtime_ns
    again = absorption([trained], ["full", "prefix:32"], WORDS)
    assert pd.DataFrame(again).equals(pd.DataFrame(rows))
    assert (folders["full"] / "done.json").stat().st_mtime_ns == stamp
    assert "full_absorption_centred" in table_of(rows)


def test_probes_tell_kinds_of_text_apart(trained: Path, labelled: Path) -> None:
    rows = probe([trained], [labelled], ["full"], TEXTS)
    every = {row["score"]: row for row in rows if row["class"] == "all"}
    assert every["probing_x"]["value"] == 1
    assert every["probing_latents"]["value"] == 1
    assert every["sparse_probing_2"]["value"] >= every["sparse_probing_1"]["value"] >= 0.75
    assert {row["chance"] for row in rows} == {0.5}
    assert {row["class"] for row in rows} == {"all", "code", "prose"}
    assert {row["task"] for row in rows} == {"kinds"}


def test_tables_have_a_column_for_each_score(trained: Path, labelled: Path) -> None:
    rows = probe([trained], [labelled], ["full"], TEXTS) + absorption([trained], ["full", "prefix:32"], WORDS)
    outputs = trained.parent.parent
    assert outputs / "tables" / "probing.csv" in write_tables(outputs)
    views = read_table(outputs, "views")
    full = views.loc[(views["view"] == "full") & (views["mode"] == "threshold")]
    for score in ("absorption_fraction", "sparse_probing_1", "probing_x"):
        (wanted,) = (
            row["value"] for row in rows if (row["view"], row["score"], row["class"]) == ("full", score, "all")
        )
        assert full[score].tolist() == pytest.approx([wanted] * len(full))
    prefix = views.loc[(views["view"] == "prefix") & (views["order"] == "select_then_prune") & (views["m"] == 32)]
    assert len(prefix) > 0
    assert prefix["absorption_fraction"].notna().all()
    assert prefix["sparse_probing_1"].isna().all()
    assert "full absorption" in (outputs / "tables" / "views.md").read_text()


def test_words_are_single_tokens_behind_examples_of_their_split(trained: Path) -> None:
    tokenizer = load_tokenizer(model_of(trained))
    words = words_of(tokenizer)
    examples = letter_examples(tokenizer, section("absorption", ["absorption.words=100", "absorption.icl=2"]))
    sides = [
        {p.tokens[-1] for p, t in zip(examples.prompts, examples.test, strict=True) if bool(t) == side}
        for side in (False, True)
    ]
    assert [len(side) for side in sides] == [80, 20]
    for prompt, name, test in zip(examples.prompts, examples.names, examples.test.tolist(), strict=True):
        assert prompt.kept == [len(prompt.tokens) - 1]
        assert words[prompt.tokens[-1]] == name == tokenizer.decode(prompt.tokens[-1:])
        shown = [token for token in prompt.tokens[:-1] if token in sides[test]]
        assert prompt.tokens[-1] not in shown
        assert tokenizer.decode(prompt.tokens).count(" has the first letter:") == 2
    first = examples.prompts[0]
    text = tokenizer.decode(first.tokens)
    line = next(line for line in text.split("\n") if "first letter:" in line)
    assert line.strip()[0].upper() == line.strip()[-1]


def test_activations_are_those_of_each_prompt_alone(trained: Path, tmp_path: Path) -> None:
    cfg = model_of(trained)
    lm = load_lm(cfg, torch.device("cpu"))
    prompts = [Prompt([5, 6, 7], [2]), Prompt([9], [0]), Prompt([1, 2, 3, 4, 5], [0, 2, 4])]
    fill(tmp_path, lambda: lm, prompts, 2, torch.float32)
    ragged = Ragged(tmp_path, 3, 5)
    means = ragged.means()
    for i, prompt in enumerate(prompts):
        alone = lm.activations(torch.tensor([prompt.tokens]))[0, prompt.kept].double().mean(0)
        assert means[i] == pytest.approx(alone, abs=1e-4)
    stamp = (tmp_path / "x-00000.safetensors").stat().st_mtime_ns
    fill(tmp_path, lambda: lm, prompts, 2, torch.float32)  # an interrupted pass reads no shard twice
    assert (tmp_path / "x-00000.safetensors").stat().st_mtime_ns == stamp
    assert [len(part.x) for part in ragged.parts(1)] == [3, 1, 1]


def test_shards_and_groups_hold_every_example_once() -> None:
    prompts = [Prompt([1], [0])] * (2 * SHARD_PROMPTS + 3)
    found = list(shards(range(len(prompts)), prompts, 16))
    assert [len(shard) for shard in found] == [SHARD_PROMPTS, SHARD_PROMPTS, 3]
    assert list(groups([0, 2, 3, 9, 10, 11], 3)) == [(0, 2), (2, 3), (3, 5)]


def test_pooled_latents_are_means_over_tokens(trained: Path, labelled: Path) -> None:
    opened = open_run(trained)
    material = Study(Texts(labelled, section("probe", TEXTS))).material(opened.cfg)
    views = [View("full", 64, "threshold", budget=4), View("prefix", 32, "threshold", "", "select_then_prune", 4)]
    keeps = [torch.ones(64, dtype=torch.bool), torch.arange(64) < 32]
    whole, first = pooled(
        opened.sae, [Applied(v, k, None) for v, k in zip(views, keeps, strict=True)], material.ragged, 40
    )
    part = next(iter(material.ragged.parts(1)))
    dense = opened.sae.encode(part.x).dense().double().mean(0)  # [d_sae]
    example = int(part.examples[0])
    assert whole.dense()[example] == pytest.approx(dense, abs=1e-6)
    assert first.dense()[example] == pytest.approx(torch.where(keeps[1], dense, 0.0), abs=1e-6)
    assert columns(whole, torch.tensor([7, 3]))[example].tolist() == pytest.approx(dense[[7, 3]].tolist(), abs=1e-6)


def test_projections_add_up_to_the_reconstruction(trained: Path) -> None:
    opened = open_run(trained)
    x = torch.randn(5, opened.sae.d_in, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    decoder, latents = decoder_of(opened.sae, x), opened.sae.encode(x)
    x_hat = decoder.origin + decoder.scale * (latents.dense().double() @ decoder.rows)
    assert x_hat == pytest.approx(opened.sae(x).double(), abs=1e-5)


def test_intervals_hold_the_value_and_do_not_move() -> None:
    values = {"a": torch.tensor([1.0, 0.0, 1.0, 1.0]), "b": torch.tensor([0.0, 0.0])}
    measured = Measured("any", values, {"a": 0.5, "b": 0.3}, 400, 0)
    every, a, b = measured.rows("task")
    assert (every["value"], a["value"], b["value"]) == (0.375, 0.75, 0.0)
    assert (every["chance"], every["n"]) == (0.4, 6)
    assert a["low"] <= 0.5 < 1.0 <= a["high"]
    assert (b["low"], b["high"]) == (0.0, 0.0)
    assert every["low"] == pytest.approx(a["low"] / 2)
    assert measured.rows("task")[0] == every


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "line 1: not JSON"),
        ('{"text": "a"}', "line 1: give an object with text and label"),
        ('{"text": "a", "label": 1.5}', "label=1.5"),
        ('{"text": "a", "label": "b", "split": "dev"}', "split=dev"),
        ('{"text": "some words", "label": "b"}', "holds 1 class"),
        ('{"text": "words", "label": 0}\n{"text": "words", "label": 1}', "has too few texts"),
    ],
)
def test_wrong_texts_are_one_line(trained: Path, tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "wrong.jsonl"
    path.write_text(text + "\n")
    with pytest.raises(InputError, match=said) as error:
        text_examples(path, load_tokenizer(model_of(trained)), section("probe", []))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["absorption.words=3"], "absorption.words=3"),
        (["absorption.template=word"], "must hold {word} once"),
        (["absorption.colour=1"], "the keys are absorption.words"),
        (["probe.k=[1]"], "give KEY=VALUE with a key of absorption.words"),
        (["absorption.words=20", "absorption.icl=10"], "take more words"),
        (["absorption.words=60", "absorption.icl=0"], "absorption.min_letters=20"),
    ],
)
def test_wrong_options_are_one_line(trained: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        absorption([trained], ["full"], overrides)


def test_a_text_may_say_its_own_split(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "split.jsonl"
    rows = [{"text": f"word {i}", "label": i % 2 == 0, "split": "test" if i < 12 else "train"} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = text_examples(path, load_tokenizer(model_of(trained)), section("probe", ["probe.pool=last"]))
    assert examples.classes == ["False", "True"]
    assert int(examples.test.sum()) == 12
    assert {int(name.split()[1]) < 12 for name, test in zip(examples.names, examples.test, strict=True) if test} == {
        True
    }
    assert all(len(prompt.kept) == 1 for prompt in examples.prompts)
