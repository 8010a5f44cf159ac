"""splice.py: the spliced forward pass against the model's own, at every site of every family."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from saebench import splice
from saebench.lm import LM
from tests.tiny_models import (
    LAYERS,
    VOCAB,
    WIDTH,
    each_family,
    each_layer,
    each_site,
    make_lm,
    tokens,
)


@contextmanager
def count_calls(lm: LM) -> Iterator[dict[str, int]]:
    """Forward calls of the first norm of layers 0, 1, ... and of what comes after the layers, by name."""
    first = "ln_1" if lm.model.config.model_type == "gpt2" else "input_layernorm"
    parts = {str(i): layer.get_submodule(first) for i, layer in enumerate(lm.layers)}
    parts |= {"norm": lm.norm, "head": lm.model.get_output_embeddings()}
    calls = dict.fromkeys(parts, 0)

    def count(name: str) -> None:
        calls[name] += 1

    hooks = [part.register_forward_pre_hook(lambda *_, n=name: count(n)) for name, part in parts.items()]
    yield calls
    for hook in hooks:
        hook.remove()


def called(calls: dict[str, int]) -> list[str]:
    assert max(calls.values()) <= 1
    return [name for name, n in calls.items() if n]


def parts_and_hooks(lm: LM) -> list[tuple[nn.Module, list[int]]]:
    """Every module with the ids of its hooks (transformers keeps some of its own)."""
    return [(m, [*m._forward_hooks, *m._forward_pre_hooks]) for m in lm.model.modules()]


@each_family
@each_site
@each_layer
def test_nothing_above_the_site_runs_and_then_nothing_below(family: str, site: str, layer: int) -> None:
    lm = make_lm(family, layer, site)
    before = parts_and_hooks(lm)
    with count_calls(lm) as calls:
        low = splice.lower(lm, tokens())
    assert called(calls) == [str(i) for i in range(layer + (site != "resid_pre"))]
    assert low.x.shape == (2, 12, lm.d_model)
    start = layer + (site == "resid_post")
    with count_calls(lm) as calls:
        splice.upper(lm, low, None)
    assert called(calls) == [*(str(i) for i in range(start, LAYERS)), "norm"]
    assert parts_and_hooks(lm) == before


@each_family
@each_site
@each_layer
def test_splicing_x_back_changes_nothing_and_zeros_do(family: str, site: str, layer: int) -> None:
    lm = make_lm(family, layer, site)
    with torch.no_grad():
        own = lm.model(tokens(), use_cache=False).logits.flatten(0, 1)  # [n, vocab_size]
    low = splice.lower(lm, tokens())
    assert torch.equal(splice.logits(lm, splice.upper(lm, low, low.x).flatten(0, 1)), own)
    clean = splice.upper(lm, low, None).flatten(0, 1)  # [n, d_model]
    chunks = torch.cat([splice.logits(lm, chunk) for chunk in clean.split(5)])  # [n, vocab_size]
    torch.testing.assert_close(chunks, own, rtol=0, atol=1e-5)
    zeros = splice.logits(lm, splice.upper(lm, low, torch.zeros_like(low.x)).flatten(0, 1))
    assert (zeros - own).abs().amax() > 1e-2


@each_family
@each_site
def test_a_spliced_position_changes_itself_and_what_follows(family: str, site: str) -> None:
    lm = make_lm(family, 1, site)
    low = splice.lower(lm, tokens())
    x_hat = low.x.clone()
    x_hat[:, 5] *= torch.linspace(-1, 1, lm.d_model)
    changed = (splice.upper(lm, low, x_hat) - splice.upper(lm, low, None)).abs().amax(-1) > 1e-6  # [b, t]
    assert not changed[:, :5].any()
    assert changed[:, 5:7].all()


@each_family
def test_splicing_at_an_inner_site_shifts_the_residual_stream(family: str) -> None:
    """At the last layer nothing follows mlp_out but the norm, so the spliced result is known in closed form."""
    lm = make_lm(family, LAYERS - 1, "mlp_out")
    low = splice.lower(lm, tokens())
    post = make_lm(family, LAYERS - 1, "resid_post").activations(tokens())  # [b, t, d_model]
    with torch.no_grad():
        expected = lm.norm(post + low.x)
    torch.testing.assert_close(splice.upper(lm, low, 2 * low.x), expected, rtol=1e-5, atol=1e-5)


@each_site
def test_the_model_is_restored_after_an_exception(site: str) -> None:
    lm = make_lm("gemma2", 1, site)
    before = parts_and_hooks(lm)
    low = splice.lower(lm, tokens())
    clean = splice.upper(lm, low, None)
    with pytest.raises(RuntimeError):
        splice.upper(lm, low, torch.zeros(2, 12, WIDTH + 1))
    with pytest.raises(IndexError):
        lm.activations(tokens() + VOCAB)
    assert parts_and_hooks(lm) == before
    assert torch.equal(splice.upper(lm, splice.lower(lm, tokens()), None), clean)


def test_layers_that_return_tuples() -> None:
    """Older versions of transformers: a layer returns a tuple, and the loop takes its first item."""
    lm = make_lm("llama", 1, "resid_post")
    before = splice.lower(lm, tokens())
    own = splice.upper(lm, before, None)

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.rope = lm.layers, lm.base.rotary_emb

        def forward(self, input_ids: Any = None, inputs_embeds: Any = None, use_cache: bool = True) -> Any:
            assert not use_cache
            hidden = lm.base.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
            where = self.rope(hidden, torch.arange(hidden.shape[1])[None])
            for layer in self.layers:
                hidden = layer(hidden, position_embeddings=where)[0]
            from transformers.modeling_outputs import BaseModelOutput

            return BaseModelOutput(last_hidden_state=lm.norm(hidden))

    def as_tuple(_layer: nn.Module, _args: Any, out: Any) -> Any:
        return out if isinstance(out, tuple) else (out, "weights")

    hooks = [layer.register_forward_hook(as_tuple) for layer in lm.layers]
    old: Any = make_lm("llama", 1, "resid_post")
    old.base = Loop()
    low = splice.lower(old, tokens())
    assert torch.equal(low.x, before.x)
    assert torch.equal(splice.upper(old, low, None), own)
    for hook in hooks:
        hook.remove()


def test_cross_entropy_and_kl_by_hand() -> None:
    clean = splice.Clean(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
    torch.testing.assert_close(clean.losses, torch.tensor([0.6931472, 1.3132617]))
    losses, kl = clean.score(torch.log(torch.tensor([[0.25, 0.75], [0.5, 0.5]])) + 3)
    torch.testing.assert_close(losses, torch.log(torch.tensor([4.0, 2.0])))
    p = torch.tensor([0.7310586, 0.2689414])
    by_hand = torch.stack([0.5 * torch.log(torch.tensor(4 / 3)), (p * torch.log(2 * p)).sum()])
    torch.testing.assert_close(kl, by_hand, rtol=1e-5, atol=1e-6)


def test_scores_against_torch() -> None:
    torch.manual_seed(0)
    one, other, targets = torch.randn(50, 1000) * 5, torch.randn(50, 1000) * 5, torch.randint(1000, (50,))
    losses, kl = splice.Clean(one, targets).score(other)
    torch.testing.assert_close(losses, torch.nn.functional.cross_entropy(other, targets, reduction="none"))
    expected = torch.nn.functional.kl_div(other.log_softmax(1), one.log_softmax(1), log_target=True, reduction="none")
    torch.testing.assert_close(kl, expected.sum(1), rtol=1e-4, atol=1e-5)
