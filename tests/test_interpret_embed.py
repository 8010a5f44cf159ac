"""The sentence encoder: against the transformer text by text, what folders it understands, and a real one."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saebench.checks import InputError
from saebench.interpret import embed
from saebench.interpret.embed import PACKAGE, PACKAGED, SentenceEncoder, find_encoder, fingerprint, read_recipe

CPU = torch.device("cpu")
TEXTS = ["a b", "A", "d e f a b c d e f a b c", "", "a b"]


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def module(name: str, path: str = "") -> dict[str, Any]:
    return {"idx": 0, "name": name, "path": path, "type": f"sentence_transformers.models.{name}"}


MODULES = [module("Transformer"), module("Pooling", "1_Pooling"), module("Normalize", "2_Normalize")]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of width 8 in a folder as sentence-transformers writes it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdef"])}
    inner: Any = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = normalizers.NFC(), pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    inner.enable_padding(length=128)  # as the packaged encoder's file says, and must not be obeyed
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=10, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=16, initializer_range=0.5,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    write(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False})
    write(folder / "modules.json", MODULES)
    write(folder / "sentence_bert_config.json", {"max_seq_length": 9, "do_lower_case": False})
    return folder


@pytest.fixture
def changed(encoder: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return shutil.copytree(encoder, tmp_path / "encoder")


def plainly(folder: Path, text: str, pooling: str = "mean") -> np.ndarray:
    """A text alone, without padding, cut after 9 tokens."""
    from transformers import AutoModel, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(text, padding=False)["input_ids"]
    ids = ids if len(ids) <= 9 else [*ids[:8], ids[-1]]
    with torch.no_grad():
        x = AutoModel.from_pretrained(folder).eval()(input_ids=torch.tensor([ids])).last_hidden_state[0]  # [t, 8]
    pooled = {"mean": x.mean(0), "cls": x[0], "max": x.amax(0)}[pooling]
    return (pooled / pooled.norm()).numpy()


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_embeddings_are_the_transformers_pooled(changed: Path, pooling: str) -> None:
    write(changed / "1_Pooling" / "config.json", {"pooling_mode": pooling, "embedding_dimension": 8})
    found = SentenceEncoder(str(changed), CPU).embed(TEXTS)
    np.testing.assert_allclose(found, [plainly(changed, text, pooling) for text in TEXTS], atol=2e-6)


def test_each_distinct_text_is_run_once(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    forward = SentenceEncoder.forward
    monkeypatch.setattr(SentenceEncoder, "forward", lambda self, texts: ran.extend(texts) or forward(self, texts))
    monkeypatch.setattr(embed, "REMEMBERED", 2)
    made = SentenceEncoder(str(encoder), CPU)
    first = made.embed(TEXTS)
    assert sorted(ran) == sorted(set(TEXTS))
    assert len(made.known) == 2
    assert np.array_equal(made.embed(list(made.known)), [first[TEXTS.index(text)] for text in made.known])
    assert len(ran) == 4
    assert made.embed([]).shape == (0, 8)


def test_batches_do_not_matter(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = SentenceEncoder(str(encoder), CPU).embed(TEXTS)
    monkeypatch.setattr(embed, "BATCH", 1)
    np.testing.assert_allclose(SentenceEncoder(str(encoder), CPU).embed(TEXTS), whole, atol=1e-6)


def test_prompt_and_lower_case_are_obeyed(changed: Path) -> None:
    plain = SentenceEncoder(str(changed), CPU).embed(["a b c", "a B"])
    write(changed / "config_sentence_transformers.json", {"prompts": {"q": "A b "}, "default_prompt_name": "q"})
    write(changed / "sentence_bert_config.json", {"max_seq_length": 9, "do_lower_case": True})
    np.testing.assert_allclose(SentenceEncoder(str(changed), CPU).embed(["C"])[0], plain[0], atol=1e-6)
    assert not np.allclose(plain[0], plain[1])


def test_newer_folders_are_understood(changed: Path) -> None:
    old = read_recipe(changed)
    names = ("base.modules.transformer.Transformer", "sentence_transformer.modules.pooling.Pooling")
    new = [module("x", path) | {"type": name} for name, path in zip(names, ("", "1_Pooling"), strict=True)]
    write(changed / "modules.json", new)
    write(changed / "1_Pooling" / "config.json", {"pooling_mode": ["mean"], "include_prompt": True})
    write(changed / "sentence_bert_config.json", {"transformer_task": "feature-extraction", "max_seq_length": 9})
    assert read_recipe(changed) == old


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("modules.json", [*MODULES[:2], module("Dense", "2_Dense")], "lists Transformer, Pooling, Dense, not"),
        ("modules.json", {"a": 1}, "is not a list of modules"),
        ("1_Pooling/config.json", {"pooling_mode": "lasttoken"}, "the pooling is lasttoken, not one of mean, cls"),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "max"]}, r"the pooling is mean \+ max"),
        ("1_Pooling/config.json", {"pooling_mode_weightedmean_tokens": True}, "pooling_mode_weightedmean_tokens"),
        ("1_Pooling/config.json", {}, "the pooling is missing"),
        ("sentence_bert_config.json", {"query_expansion": 1}, "sets query_expansion"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task is fill-mask"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_in_a_line(changed: Path, file: str, content: Any, said: str) -> None:
    write(changed / file, content)
    with pytest.raises(InputError, match=said) as caught:
        read_recipe(changed)
    assert str(caught.value).startswith(f"encoder={changed}")
    assert "\n" not in str(caught.value)


def test_a_prompt_that_is_not_pooled_is_refused(changed: Path) -> None:
    write(changed / "config_sentence_transformers.json", {"prompts": {"q": "a "}, "default_prompt_name": "q"})
    write(changed / "1_Pooling" / "config.json", {"pooling_mode": "mean", "include_prompt": False})
    with pytest.raises(InputError, match="prompt is left out"):
        read_recipe(changed)


def test_broken_folders_are_refused_in_a_line(changed: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(changed / "model.safetensors")
    save_file(dict(list(weights.items())[1:]), changed / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="1 weights are missing"):
        SentenceEncoder(str(changed), CPU)
    (changed / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match="cannot be loaded"):
        SentenceEncoder(str(changed), CPU)
    (changed / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be loaded"):
        SentenceEncoder(str(changed), CPU)
    (changed / "modules.json").write_text("[")
    with pytest.raises(InputError, match="not valid JSON"):
        read_recipe(changed)
    (changed / "modules.json").unlink()
    with pytest.raises(InputError, match=r"no modules\.json there"):
        read_recipe(changed)


def test_no_encoder_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no such folder"):
        find_encoder(str(tmp_path / "none"))
    monkeypatch.setattr(embed, "PACKAGE", "no_such_package")
    with pytest.raises(InputError, match=r"pip install 'saebench\[interpret\]'"):
        find_encoder(PACKAGED)


def test_the_fingerprint_is_of_contents(encoder: Path, changed: Path) -> None:
    before = fingerprint(str(changed))
    assert before == fingerprint(str(encoder))
    assert {"model.safetensors", "1_Pooling/config.json", "tokenizer.json"} <= before.keys()
    write(changed / "1_Pooling" / "config.json", {"pooling_mode": "max"})
    assert fingerprint(str(changed)) != before


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason="needs saebench[interpret]")
def test_the_packaged_encoder_gives_what_sentence_transformers_gives() -> None:
    """First components and cosines computed by sentence-transformers 6.2.0 on the same folder."""
    texts = ["The cat sat on the mat.", "A dog lay on the rug.", " of the quarterly interest rate", "word " * 400]
    found = SentenceEncoder(PACKAGED, CPU).embed(texts)
    first = [0.1302372, 0.03612212, 0.04381301, -0.00812368]
    np.testing.assert_allclose(found[:, 0], first, atol=1e-6)
    np.testing.assert_allclose(found[0] @ found.T, [1.0, 0.47928149, -0.00632645, 0.10791045], atol=1e-6)
