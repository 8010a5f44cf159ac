"""An SAE as every library can state it, on raw activations, and the way there and back from ours.

    pre = (x - b_dec) W_enc + b_enc;  z = rule(pre);  x_hat = z W_dec + b_dec
Ours sees (x - centre) / scale. Folding that in keeps W_enc and W_dec as they are, so decoder rows of unit norm stay so, and
gives latents in units of the activations: b_enc, thresholds and b_mag times scale, b_dec * scale + centre.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from saebench.checks import InputError, require
from saebench.sae_configs import (
    BatchTopKConfig,
    GatedConfig,
    JumpReLUConfig,
    MatryoshkaConfig,
    ReLUConfig,
    SAEConfig,
    TopKConfig,
)
from saebench.saes import SAE, Stats, build
from saebench.saes.gated import Gated
from saebench.saes.jumprelu import JumpReLU
from saebench.saes.relu import ReLU

IN_ACTIVATIONS = ("b_enc", "theta", "threshold", "b_mag")  # tensors in units of pre-activations
COLUMNS = 8192  # latents whose encoder is held in float64 at once


@dataclass(frozen=True)
class Plain:
    """One SAE. With `token` each x first has its mean removed and is divided by its standard deviation, undone in x_hat.

    rule  relu       z = relu(pre)
          jumprelu   z = relu(pre) where pre > threshold [d_sae]
          topk       relu of each token's k largest pre
          batchtopk  z = relu(pre) where pre > threshold []; k is what it had in training
          gated      relu(exp(r_mag) (x - b_dec) W_enc + b_mag) where pre > 0
    """

    rule: str
    W_enc: Tensor  # [d_in, d_sae]
    b_enc: Tensor  # [d_sae]
    W_dec: Tensor  # [d_sae, d_in]
    b_dec: Tensor  # [d_in]
    k: int | None = None
    threshold: Tensor | None = None
    r_mag: Tensor | None = None  # [d_sae]
    b_mag: Tensor | None = None  # [d_sae]
    prefixes: tuple[int, ...] = ()  # of a nested dictionary, rising, the last d_sae
    token: bool = False

    @property
    def d_in(self) -> int:
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        return self.W_dec.shape[0]


def times(b: Tensor, W_enc: Tensor) -> Tensor:
    """b W_enc [d_sae] in float64, for b [d_in]: what a bias of the input adds to pre."""
    return torch.cat([b.double() @ part.double() for part in W_enc.split(COLUMNS, 1)])


def subtracting(b_enc: Tensor, W_enc: Tensor, b_dec: Tensor) -> Tensor:
    """The b_enc [d_sae] of an encoder x W_enc + b_enc, once b_dec is subtracted from its input."""
    return (b_enc.double() + times(b_dec, W_enc)).float()


def not_subtracting(plain: Plain) -> Tensor:
    """The b_enc [d_sae] of the same encoder where b_dec is not subtracted from the input."""
    return (plain.b_enc.double() - times(plain.b_dec, plain.W_enc)).float()


def raw_tensors(sae: SAE) -> dict[str, Tensor]:
    """The tensors of the same SAE with scale 1 and centre 0. Raises InputError for sae.input=token."""
    require(
        sae.cfg.input != "token",
        "sae.input=token: this SAE standardises every token by itself, which no fixed tensors can hold",
    )
    scale, centre = sae.scale.double(), sae.centre.double()
    tensors = {name: t.detach() for name, t in sae.state_dict().items()}
    for name in IN_ACTIVATIONS:
        if name in tensors:
            tensors[name] = (tensors[name].double() * scale).float()
    b_dec = (tensors["b_dec"].double() * scale + centre).float()
    return tensors | {"b_dec": b_dec, "scale": torch.ones_like(sae.scale), "centre": torch.zeros_like(sae.centre)}


def fold_(sae: SAE) -> SAE:
    """Make `sae`, in place, the same SAE on raw activations (sae.input=none): its own space is then the model's."""
    tensors = {name: tensor.clone() for name, tensor in raw_tensors(sae).items()}
    sae.load_state_dict(tensors)
    sae.cfg = replace(sae.cfg, input="none")
    return sae


def plain_of(sae: SAE) -> Plain:
    """What other libraries are told of our SAE. Raises InputError for one without a threshold yet."""
    token = sae.cfg.input == "token"
    tensors = {n: t.detach() for n, t in sae.state_dict().items()} if token else raw_tensors(sae)
    shared: dict[str, Any] = {name: tensors[name].cpu() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    prefixes = tuple(getattr(sae, "prefixes", ()))
    if isinstance(sae, Gated):
        return Plain("gated", **shared, r_mag=tensors["r_mag"].cpu(), b_mag=tensors["b_mag"].cpu(), token=token)
    if isinstance(sae, JumpReLU):
        return Plain("jumprelu", **shared, threshold=tensors["theta"].cpu().relu(), token=token)
    if isinstance(sae, ReLU):
        return Plain("relu", **shared, token=token)
    k = getattr(sae.cfg, "k", None)
    require(isinstance(k, int), f"sae={sae.cfg.name}: no other library is known to have such an SAE")
    if sae.modes[0] == "topk":
        return Plain("topk", **shared, k=k, prefixes=prefixes, token=token)
    require(
        bool(tensors["threshold"] >= 0), "sae.threshold: this SAE has seen no training batch, so it has none; train it"
    )
    return Plain("batchtopk", **shared, k=k, threshold=tensors["threshold"].cpu(), prefixes=prefixes, token=token)


def config_of(plain: Plain) -> SAEConfig:
    """The configuration of our variant that works alike; what only training reads is 0 or 1."""
    of: dict[str, Any] = {"d_sae": plain.d_sae, "input": "token" if plain.token else "none"}
    unused: dict[str, Any] = {"aux_weight": 0.0, "aux_k": 1, "dead_tokens": 1}
    own: dict[str, Any]
    if plain.rule == "relu":
        return ReLUConfig("relu", **of, **unused, l1=0.0, target_l0=None)
    if plain.rule == "gated":
        return GatedConfig("gated", **of, **unused, l1=0.0, target_l0=None)
    if plain.rule == "jumprelu":
        own = {"l0": 0.0, "target_l0": None, "bandwidth": 1.0, "threshold": 1.0, "threshold_lr": 1.0}
        return JumpReLUConfig("jumprelu", **of, **unused, **own)
    assert plain.k is not None, "the top-k family has a k"
    if plain.rule == "topk":
        return TopKConfig("topk", **of, **unused, k=plain.k)
    assert plain.rule == "batchtopk", plain.rule
    own = {"k": plain.k, "threshold_decay": 1.0}
    if len(plain.prefixes) < 2:
        return BatchTopKConfig("batchtopk", **of, **unused, **own)
    own |= {"prefixes": list(plain.prefixes), "prefix_shares": [], "prefix_sampling": "fixed"}
    return MatryoshkaConfig("matryoshka", **of, **unused, **own)


def sae_of(plain: Plain) -> SAE:
    """Our SAE that gives the same latents and reconstructions, for inference."""
    zeros = torch.zeros(plain.d_in)
    sae = build(config_of(plain), Stats(zeros, 1.0, zeros), seed=0)
    named = {name: getattr(plain, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec", "r_mag", "b_mag")}
    named["theta" if plain.rule == "jumprelu" else "threshold"] = plain.threshold
    sae.load_state_dict(sae.state_dict() | {name: tensor for name, tensor in named.items() if tensor is not None})
    return sae.requires_grad_(False)


def viewed(plain: Plain, view: str) -> Plain:
    """A view of an SAE as an SAE: full; prefix:M, the first M latents; budget:J, each token's J largest; prefix:M:J, both.

    Raises InputError for a view that is not an SAE, and for anything else.
    """
    kind, *numbers = view.split(":")
    if view == "full":
        return plain
    given = f"--view={view}"
    bound = {"prefix": (1, 2), "budget": (1,)}.get(kind, ())
    require(len(numbers) in bound, f"{given}: give full, prefix:M, prefix:M:J or budget:J")
    counts = [count(given, text, plain.d_sae) for text in numbers]
    m = counts[0] if kind == "prefix" else plain.d_sae
    if kind == "prefix" and len(counts) == 1:
        require(
            plain.rule != "topk",
            f"{given}: each token selects among all {plain.d_sae} latents, so what is left below {m} is no SAE; "
            f"--view=prefix:{m}:{min(m, plain.k or m)} selects among the first {m}",
        )
        return first_latents(plain, m)
    require(
        plain.rule in ("relu", "topk", "batchtopk"),
        f"{given}: latents of a {plain.rule} SAE have thresholds of their own, so its largest {counts[-1]} are no SAE",
    )
    cut = first_latents(plain, m)
    j = count(given, str(counts[-1]), m)
    return replace(cut, rule="topk", k=j, threshold=None)


def count(given: str, text: str, most: int) -> int:
    """A number of latents from 1 to `most`."""
    if not (text.isdigit() and 1 <= int(text) <= most):
        raise InputError(f"{given}: {text} must be a number from 1 to {most}")
    return int(text)


def first_latents(plain: Plain, m: int) -> Plain:
    """The SAE of the first m latents."""
    per_latent = {name: getattr(plain, name) for name in ("b_enc", "W_dec", "threshold", "r_mag", "b_mag")}
    cut = {name: t[:m] for name, t in per_latent.items() if t is not None and t.ndim > 0}
    prefixes = tuple(sorted({min(p, m) for p in plain.prefixes}))
    k = None if plain.k is None else min(plain.k, m)
    return replace(plain, W_enc=plain.W_enc[:, :m], prefixes=prefixes, k=k, **cut)
