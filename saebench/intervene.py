"""Put an SAE into a transformers model: splice its reconstruction in, steer or ablate its latents, read them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from saebench.checks import InputError, one_of, require
from saebench.config import SITES
from saebench.lm import FAMILIES
from saebench.saes import SAE
from saebench.sparse import SparseLatents
from saebench.splice import put


@dataclass
class Attached:
    """What the SAE saw in the latest forward pass: `x` [..., d_in] at the site, its `latents` (one row a token, before any edit),

    `kept` [...] (bool), the positions that were left as they are (special tokens).
    """

    x: Tensor | None = None
    latents: SparseLatents | None = None
    kept: Tensor | None = None
    tokens: Tensor | None = field(default=None, repr=False)  # [b, t] of the pass that is running


@dataclass(frozen=True)
class Edit:
    """What is done to latents: those `off` [d_sae] (bool) become 0, then `push` [d_in], in the SAE's space, is added."""

    off: Tensor | None
    push: Tensor | None

    @torch.no_grad()
    def replacement(self, sae: SAE, x: Tensor, latents: SparseLatents, keep_error: bool) -> Tensor:
        """What takes the place of x [n, d_in]."""
        seen = sae.normalise(x)
        edited = latents if self.off is None else latents.kept(~self.off)
        x_hat = sae.decode(edited) + (0.0 if self.push is None else self.push)  # [n, d_in]
        if not keep_error:
            return seen.undo(x_hat)
        return x + (x_hat - sae.decode(latents)) * seen.scale  # the shift cancels


@contextmanager
def attach(
    model: Any,
    sae: SAE,
    layer: int | None = None,
    site: str = "resid_post",
    *,
    module: str | None = None,
    ablate: Collection[int] = (),
    steer: Mapping[int, float] | None = None,
    clamp: Mapping[int, float] | None = None,
    keep_error: bool = False,
    skip: Collection[int] | None = None,
) -> Iterator[Attached]:
    """Within the context every forward pass of `model`, and so `generate`, goes through the SAE at one site.

    x becomes x_hat, decoded from the latents after edits; keep_error=True adds what the SAE does not reconstruct, so that
    edits alone change the model. `ablate` sets latents to 0; `clamp` sets them to a value and `steer` adds one, at every token,
    in units of the SAE's latents. The site is `site` of layer `layer` (from 0), of a model family that saebench knows; or the
    output of the submodule named `module`, of any model. Positions whose token id is in `skip` are left as they are: by default
    BOS, EOS and padding, whose activations SAEs are not trained on; an empty `skip` splices everywhere.

    Yields `Attached`, which holds x and latents of the latest pass. The model is as it was afterwards, also after an exception.
    Raises InputError for a site that is not there, latents that the SAE lacks, and an SAE of another width or device.
    """
    edit = edit_of(sae, ablate, steer or {}, clamp or {})
    target, entering = target_of(model, layer, site, module)
    seen, skipped = Attached(), special_of(model) if skip is None else sorted(skip)

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = kwargs.get("input_ids", args[0] if args else None)
        seen.tokens = tokens if isinstance(tokens, Tensor) else None

    def before(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (replaced(args[0]), *args[1:])

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        return put(replaced(output[0] if isinstance(output, tuple) else output), output)

    def replaced(x: Tensor) -> Tensor:
        check_fit(sae, x)
        flat = x.detach().reshape(-1, sae.d_in)  # [n, d_in]
        seen.x, seen.latents, seen.kept = x.detach(), sae.encode(flat), kept_of(seen.tokens, x, skipped)
        new = edit.replacement(sae, flat.float(), seen.latents, keep_error).to(x.dtype).view_as(x)
        return torch.where(seen.kept.unsqueeze(-1), x, new)

    with ExitStack() as stack:
        if skipped:
            base = getattr(model, "base_model", model)
            stack.callback(base.register_forward_pre_hook(enter, with_kwargs=True).remove)
        handle = target.register_forward_pre_hook(before) if entering else target.register_forward_hook(after)
        stack.callback(handle.remove)
        yield seen


def edit_of(sae: SAE, ablate: Collection[int], steer: Mapping[int, float], clamp: Mapping[int, float]) -> Edit:
    """The edit of latents by their numbers."""
    for name, numbers in (("ablate", ablate), ("steer", steer), ("clamp", clamp)):
        wrong = [i for i in numbers if not 0 <= i < sae.d_sae]
        require(not wrong, f"{name}={wrong[:3]}: the SAE has latents 0 to {sae.d_sae - 1}")
    both = sorted({*ablate} & {*clamp})
    require(not both, f"clamp={both[:3]}: ablated, too; name a latent in one of them")
    off = push = None
    if ablate or clamp:
        off = torch.zeros(sae.d_sae, dtype=torch.bool, device=sae.W_dec.device)
        off[sorted({*ablate, *clamp})] = True
    if steer or clamp:
        added = {i: steer.get(i, 0.0) + clamp.get(i, 0.0) for i in (*steer, *clamp)}
        values = sae.W_dec.new_tensor(list(added.values()))
        push = values @ sae.W_dec.detach()[list(added)]  # [d_in]
    return Edit(off, push)


def target_of(model: Any, layer: int | None, site: str, module: str | None) -> tuple[nn.Module, bool]:
    """The submodule at which the site is, and whether it is its input. Raises InputError."""
    if module is not None:
        names = dict(model.named_modules())
        require(
            module in names, f"module={module}: the model has no such submodule; `dict(model.named_modules())` has them"
        )
        return names[module], False
    one_of("site", site, SITES)
    kind = str(getattr(getattr(model, "config", None), "model_type", None))
    require(kind in FAMILIES, f"model: its model_type is {kind}; name the submodule whose output is meant, module=...")
    family = FAMILIES[kind]
    layers = getattr(model, "base_model", model).get_submodule(family.layers)
    require(
        layer is not None and 0 <= layer < len(layers), f"layer={layer}: the model has layers 0 to {len(layers) - 1}"
    )
    chosen = layers[layer]
    inner = {"attn_out": family.attn_out, "mlp_out": family.mlp_out}.get(site)
    return (chosen.get_submodule(inner) if inner else chosen), site == "resid_pre"


def special_of(model: Any) -> list[int]:
    """The ids of BOS, EOS and padding that a model's configuration names."""
    found: set[int] = set()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = getattr(getattr(model, "config", None), name, None)
        found |= {ids} if isinstance(ids, int) else set(ids or ())
    return sorted(found)


def kept_of(tokens: Tensor | None, x: Tensor, skipped: list[int]) -> Tensor:
    """The positions [...] (bool) of x [..., d_in] whose token is to be skipped. Raises InputError if tokens are not known."""
    if not skipped:
        return torch.zeros(x.shape[:-1], dtype=torch.bool, device=x.device)
    if tokens is None or tokens.shape != x.shape[:-1]:
        raise InputError("skip: the pass has no token ids to find special tokens by; give skip=() to splice everywhere")
    return torch.isin(tokens, tokens.new_tensor(skipped)).to(x.device)


def check_fit(sae: SAE, x: Tensor) -> None:
    """Raise InputError unless the SAE reads activations of x's width, where x is."""
    require(
        x.shape[-1] == sae.d_in,
        f"sae: it reads {sae.d_in} dimensions, and the site has {x.shape[-1]}; is it the layer's?",
    )
    device = sae.W_dec.device
    require(x.device == device, f"sae: it is on {device}, and the site on {x.device}; move it there with sae.to(...)")
