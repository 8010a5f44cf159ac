"""The embedded model: loads without a network, has the stated shape, and has learnt its text; its builder works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from saebench.assets import TINY_GPT2
from saebench.pythondocs import documents

BLOCK = 128


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return documents()[::8]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TINY_GPT2, local_files_only=True)


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(TINY_GPT2, local_files_only=True)


def unigram_cross_entropy(tokens: Tensor, vocab: int) -> float:
    """Nats per token of `tokens` under their own frequencies: less than under any other fixed frequencies."""
    shares = torch.bincount(tokens, minlength=vocab).double() / len(tokens)
    return -(shares[shares > 0] * shares[shares > 0].log()).sum().item()


def test_the_model_has_the_stated_shape_and_size(model: Any) -> None:
    assert model.config.n_embd == 128
    assert model.config.n_layer == 4
    assert model.num_parameters() == pytest.approx(1e6, rel=0.1)
    assert model.dtype == torch.float32
    assert sum(file.stat().st_size for file in TINY_GPT2.iterdir()) < 6_000_000


def test_the_tokenizer_fits_the_model_and_loses_nothing(model: Any, tokenizer: Any) -> None:
    text = "Return a list. \n\n    >>> naïve(x)\t# 日本\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == model.config.bos_token_id == 0
    assert tokenizer(tokenizer.bos_token)["input_ids"] == [tokenizer.bos_token_id]


@torch.no_grad()
@pytest.mark.parametrize("length", [BLOCK, 2 * BLOCK])
def test_the_model_predicts_its_text_far_better_than_frequencies_do(
    model: Any, tokenizer: Any, texts: list[str], length: int
) -> None:
    tokens = torch.tensor(tokenizer("\n\n".join(texts))["input_ids"])  # [n_tokens]
    pieces = tokens[: len(tokens) // (length - 1) * (length - 1)].view(-1, length - 1)[:: len(tokens) // 4096]
    blocks = F.pad(pieces, (1, 0), value=tokenizer.bos_token_id)  # [n, length]
    logits = model(blocks).logits[:, length // 2 - 1 : -1].transpose(1, 2)  # [n, vocab, length / 2]
    loss = F.cross_entropy(logits, blocks[:, length // 2 :]).item()
    assert loss < unigram_cross_entropy(tokens, model.config.vocab_size) - 1.5


def test_the_card_states_what_was_measured() -> None:
    card = (TINY_GPT2 / "README.md").read_text(encoding="utf-8")
    assert "Held-out cross-entropy" in card
    assert "{" not in card


def test_the_builder_fills_a_folder_that_loads(tmp_path: Path, texts: list[str]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from saebench.assets import build

    build.build(texts[:20], tmp_path, steps=2)
    assert {file.name for file in TINY_GPT2.iterdir()} == {file.name for file in tmp_path.iterdir()}
    assert AutoTokenizer.from_pretrained(tmp_path).bos_token_id == build.BOS_ID
    assert AutoModelForCausalLM.from_pretrained(tmp_path).num_parameters() == 1_088_256


def test_the_builder_keeps_documents_apart_and_begins_blocks_with_bos() -> None:
    from saebench.assets import build

    texts = [f"document {i} " * 40 for i in range(20)]
    train, heldout = build.split(texts)
    assert sorted(train + heldout) == sorted(texts)
    assert len(heldout) == 2
    tokens = build.encode(build.train_tokenizer(train), train)
    assert (tokens == build.BOS_ID).sum() == len(train) - 1
    shapes = []
    for blocks in build.batches(tokens, steps=4):
        shapes.append(tuple(blocks.shape))
        assert (blocks[:, 0] == build.BOS_ID).all()
    assert shapes == [(8, 128), (8, 128), (8, 128), (4, 256)]


def test_smoothed_unigram_by_hand() -> None:
    from saebench.assets import build

    train, heldout = torch.tensor([5, 5, 7]), torch.tensor([5, 9])
    n = 3 + build.VOCAB
    expected = -(torch.tensor(3 / n).log() + torch.tensor(1 / n).log()).item() / 2
    assert build.unigram_cross_entropy(train, heldout) == pytest.approx(expected, rel=1e-6)


def test_the_asset_is_found_from_any_folder(tmp_path: Path) -> None:
    code = "from saebench.assets import TINY_GPT2; print((TINY_GPT2 / 'config.json').is_file())"
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=True).stdout == "True\n"
