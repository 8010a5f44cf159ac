"""SAEs attached to transformers models: the numbers of our own splicing, edits that do what they say."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import saebench
from saebench.checks import InputError
from saebench.lm import FAMILIES
from saebench.saes import SAE, Stats, build
from saebench.splice import logits, lower, upper
from tests.configs import sae_config
from tests.tiny_models import LAYERS, WIDTH, make_lm, model, tokens


def sae_for(variant: str = "topk", **changes: Any) -> SAE:
    """An SAE of a tiny model's width; its reconstruction is far from exact."""
    mean = torch.linspace(-1, 1, WIDTH)
    sae = build(sae_config(variant, d_sae=48, **changes), Stats(mean, 1.7, torch.ones(WIDTH)), seed=0)
    return sae.requires_grad_(False)


@torch.no_grad()
def run(family: str, ids: Tensor | None = None) -> Tensor:
    return model(family)(tokens() if ids is None else ids).logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", ["resid_pre", "resid_post", "mlp_out", "attn_out"])
def test_splicing_is_that_of_the_evaluation(family: str, site: str) -> None:
    lm, sae = make_lm(family, 1, site), sae_for()
    clean, low = run(family), lower(lm, tokens())
    wanted = logits(lm, upper(lm, low, sae(low.x)).flatten(0, 1)).view_as(clean)
    with saebench.attach(model(family), sae, 1, site, skip=()) as seen:
        spliced = run(family)
    torch.testing.assert_close(spliced, wanted, atol=2e-5, rtol=1e-4)
    assert seen.x is not None and seen.latents is not None  # noqa: PT018
    torch.testing.assert_close(seen.x, low.x)
    assert seen.latents.rows == tokens().numel()
    assert not torch.allclose(spliced, clean, atol=1e-2)
    assert torch.equal(run(family), clean)


def at_layer(sae: SAE, **edits: Any) -> tuple[Tensor, Tensor, Any]:
    """Activations at layer 1 before and behind the SAE, [n, WIDTH] each, and what it saw."""
    behind: list[Tensor] = []
    layer = model("llama").get_submodule("model.layers.2")
    with saebench.attach(model("llama"), sae, 1, **edits) as seen:
        handle = layer.register_forward_pre_hook(lambda _m, args: behind.append(args[0]))
        run("llama")
        handle.remove()
    assert seen.x is not None
    return seen.x.flatten(0, 1), behind[0].flatten(0, 1), seen


@pytest.mark.parametrize("input", ["dataset", "token", "none"])
def test_edits_move_x_along_the_decoder(input: str) -> None:
    sae = sae_for(input=input)
    x, same, seen = at_layer(sae, skip=(), keep_error=True)
    torch.testing.assert_close(same, x)
    z, scale = seen.latents.dense(), sae.normalise(x).scale
    busy = int(z.sum(0).argmax())
    quiet = int(z.sum(0).argmin())
    assert float(z[:, busy].max()) > 0.1
    parts = {i: (z[:, i, None], sae.W_dec[i]) for i in (busy, quiet)}
    clamped = (2 - parts[busy][0]) * parts[busy][1] + (1 - parts[quiet][0]) * parts[quiet][1]
    cases: list[tuple[dict[str, Any], Tensor]] = [
        ({"ablate": [busy]}, -parts[busy][0] * parts[busy][1]),
        ({"clamp": {busy: 2.0, quiet: 1.0}}, clamped),
        ({"steer": {quiet: -3.0}}, -3 * sae.W_dec[quiet].expand_as(x)),
    ]
    for edit, moved in cases:
        _, behind, _ = at_layer(sae, skip=(), keep_error=True, **edit)
        torch.testing.assert_close(behind - x, moved * scale, atol=2e-5, rtol=1e-4)
        _, bare, _ = at_layer(sae, skip=(), **edit)
        torch.testing.assert_close(bare - sae(x), moved * scale, atol=2e-5, rtol=1e-4)


def test_special_tokens_are_left_alone() -> None:
    lm, sae = model("llama"), sae_for()
    special = [i for i in (lm.config.bos_token_id, lm.config.eos_token_id) if i is not None]
    ids = tokens().clone()
    ids[:, 0] = special[0]
    behind: list[Tensor] = []
    with saebench.attach(lm, sae, 1) as seen:
        handle = lm.get_submodule("model.layers.2").register_forward_pre_hook(lambda _m, args: behind.append(args[0]))
        run("llama", ids)
        handle.remove()
    assert seen.x is not None and seen.kept is not None  # noqa: PT018
    assert torch.equal(seen.kept, torch.isin(ids, torch.tensor(special)))
    assert torch.equal(behind[0][seen.kept], seen.x[seen.kept])
    torch.testing.assert_close(behind[0][~seen.kept], sae(seen.x)[~seen.kept])
    with saebench.attach(lm, sae, 1), pytest.raises(InputError, match="the pass has no token ids"):
        lm(inputs_embeds=torch.zeros(1, 3, WIDTH))


def test_generation_goes_through_the_sae() -> None:
    lm, sae = model("gpt2"), sae_for()
    direction = lm.get_output_embeddings().weight[7].detach()
    with torch.no_grad():
        sae.W_dec[5] = direction / direction.norm()
    ids = tokens()[:1, :4]
    mask = torch.ones_like(ids)
    with saebench.attach(lm, sae, LAYERS - 1, steer={5: 500.0}, keep_error=True, skip=()):
        made = lm.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
    assert made[0, 4:].tolist() == [7] * 5
    plain = lm.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
    assert plain[0, 4:].tolist() != [7] * 5


def test_any_submodule_of_any_model() -> None:
    body = torch.nn.Sequential(torch.nn.Linear(4, WIDTH), torch.nn.Linear(WIDTH, 2))
    sae, x = sae_for(), torch.randn(3, 4)
    with saebench.attach(body, sae, module="0", skip=()):
        spliced = body(x)
    torch.testing.assert_close(spliced, body[1](sae(body[0](x))))
    torch.testing.assert_close(body(x), body[1](body[0](x)))


def test_the_model_is_as_it_was_after_an_exception() -> None:
    clean, wide = run("llama"), build(sae_config("topk"), Stats(torch.zeros(24), 1.0, torch.ones(24)), 0)
    with (
        pytest.raises(InputError, match="sae: it reads 24 dimensions, and the site has 16"),
        saebench.attach(model("llama"), wide, 1),
    ):
        run("llama")
    assert torch.equal(run("llama"), clean)


WRONG: dict[str, dict[str, Any]] = {
    "layer=9: the model has layers 0 to 3": {"layer": 9},
    "layer=None: the model has layers": {},
    "site=resid_mid: did you mean resid_pre": {"layer": 1, "site": "resid_mid"},
    "module=nowhere: the model has no such": {"module": "nowhere"},
    "ablate=[48]: the SAE has latents 0 to 47": {"layer": 1, "ablate": [48]},
    "clamp=[-1]: the SAE has": {"layer": 1, "clamp": {-1: 1.0}},
    "clamp=[3]: ablated, too": {"layer": 1, "clamp": {3: 1.0}, "ablate": [3]},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_cannot_be_attached_is_said_in_one_line(message: str) -> None:
    with pytest.raises(InputError) as error, saebench.attach(model("llama"), sae_for(), **WRONG[message]):
        pass
    assert message in str(error.value)


def test_importing_saebench_imports_nothing_heavy() -> None:
    code = "import sys, saebench; print('torch' in sys.modules, saebench.load.__name__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "load", "True"]
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = saebench.lode  # pyright: ignore[reportAttributeAccessIssue]
