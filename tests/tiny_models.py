"""Tiny random models of every family, for the tests."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from saebench.config import SITES, ModelConfig
from saebench.lm import FAMILIES, LM

VOCAB, WIDTH, LAYERS, POSITIONS = 48, 16, 4, 32
WINDOW = ["sliding_attention", "full_attention"] * 2

each_family = pytest.mark.parametrize("family", FAMILIES)
each_layer = pytest.mark.parametrize("layer", [0, 2, LAYERS - 1])
each_site = pytest.mark.parametrize("site", SITES)


@cache
def tokenizer() -> Any:
    """A tokenizer of whole words with three special tokens and, added later, one special and one plain token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AddedToken, PreTrainedTokenizerFast

    words = {w: i for i, w in enumerate(["<s>", "</s>", "<unk>", *(f"w{i}" for i in range(VOCAB - 6))])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    made = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    made.add_tokens([AddedToken("<turn>", special=True), AddedToken("plain", special=False)])
    return made


@cache
def model(family: str) -> Any:
    """A small model with weights large enough for every part to matter, and sliding windows shorter than the blocks."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "max_position_embeddings": POSITIONS,
        "initializer_range": 0.3,
        "pad_token_id": None,
    }
    if family != "gpt2":
        settings["intermediate_size"] = 24
    if family not in ("gpt2", "gpt_neox"):
        settings |= {"num_key_value_heads": 1, "head_dim": 8}
    if family == "mistral":
        settings |= {"sliding_window": 4}
    if family in ("qwen2", "qwen3", "gemma2", "gemma3_text"):
        settings |= {"layer_types": WINDOW, "sliding_window": 4, "use_sliding_window": True}
    if family in ("gemma2", "gemma3_text"):
        settings |= {"final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8}
    torch.manual_seed(0)
    attention = "eager" if family == "gemma2" else None  # SDPA cannot cap its scores
    full = AutoConfig.for_model(family, **settings)
    made = AutoModelForCausalLM.from_config(full, attn_implementation=attention).eval()
    for name, weight in made.named_parameters():  # norms begin at 0 or 1, whichever stands for "no change"
        if "norm" in name or "ln_" in name:
            weight.data += 0.3 * torch.randn_like(weight)
    return made


def config(path: str = "unused", layer: int = 1, site: str = "resid_post", dtype: str = "float32") -> ModelConfig:
    return ModelConfig(name="tiny", path=path, layer=layer, site=site, dtype=dtype, revision=None, batch=2)


def make_lm(family: str, layer: int, site: str) -> LM:
    return LM(model(family), tokenizer(), config(layer=layer, site=site))


def tokens() -> Tensor:
    return torch.randint(VOCAB, (2, 12), generator=torch.Generator().manual_seed(1))  # [b, t]
