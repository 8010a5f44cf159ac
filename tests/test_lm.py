"""lm.py: loading, its errors, and the activations at every site of every family."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from saebench import splice
from saebench.checks import InputError
from saebench.config import SITES
from saebench.devices import resolve_device, resolve_dtype
from saebench.lm import LM, Site, describe, load_lm, load_tokenizer, special_ids
from tests.tiny_models import (
    LAYERS,
    POSITIONS,
    VOCAB,
    WIDTH,
    WINDOW,
    config,
    each_family,
    each_layer,
    make_lm,
    model,
    tokenizer,
    tokens,
)

CPU = torch.device("cpu")


@each_family
@each_layer
def test_residual_sites_are_the_hidden_states(family: str, layer: int) -> None:
    with torch.no_grad():
        states = model(family)(tokens(), output_hidden_states=True, use_cache=False).hidden_states
    torch.testing.assert_close(make_lm(family, layer, "resid_pre").activations(tokens()), states[layer])
    post = make_lm(family, layer, "resid_post")
    x = post.activations(tokens())  # [b, t, d_model]
    last = layer == LAYERS - 1  # whose hidden state is given after the final norm
    torch.testing.assert_close(post.norm(x) if last else x, states[layer + 1])


@each_family
@each_layer
def test_inner_sites_are_what_joins_the_residual_stream(family: str, layer: int) -> None:
    pre, post, mlp_out, attn_out = (make_lm(family, layer, site).activations(tokens()) for site in SITES)
    torch.testing.assert_close(pre + attn_out + mlp_out, post, rtol=1e-5, atol=1e-5)
    block: Any = make_lm(family, layer, "resid_pre").entry
    mid = pre if family == "gpt_neox" else pre + attn_out  # gpt_neox computes both in parallel
    with torch.no_grad():
        expected = {
            "gpt2": lambda: block.mlp(block.ln_2(mid)),
            "gemma2": lambda: block.post_feedforward_layernorm(block.mlp(block.pre_feedforward_layernorm(mid))),
        }
        expected["gemma3_text"] = expected["gemma2"]
        own = expected.get(family, lambda: block.mlp(block.post_attention_layernorm(mid)))()
    torch.testing.assert_close(mlp_out, own, rtol=1e-5, atol=1e-5)


def hooks_of(lm: LM) -> int:
    """How many hooks its modules have; transformers leaves some of its own."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in lm.model.modules())


@each_family
def test_several_sites_in_one_pass_are_what_each_alone_is(family: str) -> None:
    sites = [Site(layer, site) for layer in range(LAYERS) for site in SITES]
    lm = make_lm(family, 0, "resid_pre")
    before = hooks_of(lm)
    together = lm.activations_at(tokens(), sites)
    for (layer, site), x in zip(sites, together, strict=True):
        assert torch.equal(x, make_lm(family, layer, site).activations(tokens())), (layer, site)
    ran: list[object] = []
    hook = lm.layers[1].register_forward_pre_hook(lambda *_: ran.append(1))
    lm.activations_at(tokens(), [Site(0, "attn_out"), Site(0, "resid_post"), Site(0, "resid_pre")])
    assert ran == []  # nothing above the last site
    lm.activations_at(tokens(), [Site(0, "resid_pre"), Site(1, "resid_pre")])
    hook.remove()
    assert ran == [1]
    assert hooks_of(lm) == before


def test_activations_are_ordinary_tensors() -> None:
    x = make_lm("gpt2", 1, "resid_post").activations(tokens())
    assert not x.requires_grad
    assert not x.is_inference()  # so an SAE can be trained on them
    assert x.dtype == torch.float32


def test_blocks_longer_than_the_model() -> None:
    with fails("data.seq_len=40: tiny has 32 positions"):
        make_lm("gpt2", 1, "resid_pre").activations(torch.zeros(1, 40, dtype=torch.long))


def test_special_ids() -> None:
    t = tokenizer()
    assert special_ids(t) == {0, 1, 2, t.convert_tokens_to_ids("<turn>")}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "gemma2"
    model("gemma2").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit(file: Path, key: str, value: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))


def test_load_from_a_folder(saved: Path) -> None:
    info = describe(config(str(saved)))
    assert (info.d_model, info.n_layers, info.vocab_size, info.max_positions) == (WIDTH, LAYERS, VOCAB, POSITIONS)
    lm = load_lm(config(str(saved), layer=2), CPU)
    assert not lm.model.training
    assert (lm.d_model, lm.n_layers, lm.vocab_size, lm.max_positions) == (WIDTH, LAYERS, VOCAB, POSITIONS)
    assert torch.equal(lm.activations(tokens()), make_lm("gemma2", 2, "resid_post").activations(tokens()))
    assert lm.special_ids == special_ids(tokenizer())
    assert lm.model.config._attn_implementation == "eager"


def test_dtype_is_obeyed(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lm = load_lm(config(str(saved), dtype="bfloat16"), CPU)
    assert lm.dtype == lm.activations(tokens()).dtype == torch.bfloat16
    assert "model.dtype=bfloat16" in capsys.readouterr().err
    low = splice.lower(lm, tokens())
    assert splice.upper(lm, low, low.x.float()).dtype == torch.bfloat16
    assert splice.logits(lm, splice.upper(lm, low, None)[0]).dtype == torch.float32
    assert resolve_dtype("auto", CPU) == torch.float32
    assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16


def test_fingerprint_follows_weights_config_and_tokenizer(saved: Path, copied: Path) -> None:
    first = describe(config(str(saved))).fingerprint()
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= set(first)
    assert describe(config(str(copied))).fingerprint() == first == json.loads(json.dumps(first))
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        with (copied / name).open("ab") as file:
            file.write(b" ")
        now = describe(config(str(copied))).fingerprint()
        assert {key for key in first if first[key] != now[key]} == {name}
        shutil.copy(saved / name, copied / name)


def fails(match: str) -> Any:
    return pytest.raises(InputError, match=f"^{match}[^\n]*$")


def test_device_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == CPU
    for name in ("cuda", "cuda:1"):
        with fails(f"device={name}: no CUDA device is visible; use device=cpu"):
            resolve_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda")
    with fails("device=cuda:1: there are 1 CUDA devices"):
        resolve_device("cuda:1")


def test_config_errors(saved: Path, copied: Path, tmp_path: Path) -> None:
    with fails("model.layer=99: tiny has layers 0 to 3"):
        describe(config(str(saved), layer=99))
    with fails("model.site=resid_psot: did you mean resid_post"):
        config(site="resid_psot")
    with fails(f"model.path={tmp_path}: no config.json there; give a folder"):
        describe(config(str(tmp_path)))
    with fails("model.path=/no/such: there is no folder /no/such"):
        describe(config("/no/such"))
    pinned = config(str(saved))
    pinned.revision = "main"
    with fails("model.revision=main: .* is a folder"):
        describe(pinned)
    edit(copied / "config.json", "model_type", "bert")
    with fails(f"model.path={copied}: its model_type is bert; choose a model of gpt2, "):
        describe(config(str(copied)))
    (copied / "config.json").write_text("{")
    with fails(".*config.json: not valid JSON"):
        describe(config(str(copied)))


def test_file_errors(saved: Path, copied: Path) -> None:
    edit(copied / "config.json", "num_hidden_layers", LAYERS + 1)
    edit(copied / "config.json", "layer_types", [*WINDOW, "full_attention"])
    with fails(f"model.path={copied}: 11 weights are missing, .*give a folder"):
        load_lm(config(str(copied)), CPU)
    shutil.copy(saved / "config.json", copied)
    (copied / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes()[:999])
    with fails(f"model.path={copied}: cannot be loaded"):
        load_lm(config(str(copied)), CPU)
    (copied / "model.safetensors").unlink()
    with fails(f"model.path={copied}: no [*].safetensors there; convert"):
        describe(config(str(copied)))
    shutil.copy(saved / "model.safetensors", copied)
    (copied / "tokenizer.json").unlink()
    with fails(f"model.path={copied}: no tokenizer.json there"):
        load_tokenizer(config(str(copied)))


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_a_hub_model_out_of_reach(offline: Path) -> None:
    with fails(r"model.path=org/tiny: cannot be loaded \(.*model.path=FOLDER"):
        describe(config("org/tiny"))
    with fails("model.path=a/b/c: cannot be loaded"):
        describe(config("a/b/c"))


def test_a_hub_model_in_the_cache(saved: Path, offline: Path) -> None:
    commit = "a" * 40
    shutil.copytree(saved, offline / "models--org--tiny" / "snapshots" / commit)
    (offline / "models--org--tiny" / "refs").mkdir()
    (offline / "models--org--tiny" / "refs" / "main").write_text(commit)
    assert describe(config("org/tiny")).fingerprint() == {"hub": "org/tiny", "revision": commit}
    with fails("model.layer=99: tiny has layers 0 to 3"):
        describe(config("org/tiny", layer=99))
    assert load_lm(config("org/tiny"), CPU).activations(tokens()).shape == (2, 12, WIDTH)
