"""The configuration of each SAE variant; conf/sae/ holds the numbers, saes/ the code.

It stands apart from the code because that imports torch, and a wrong key is to be reported before the heavy libraries load.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

from saebench.checks import InputError, at_least, one_of, positive, require, share


@dataclass
class SAEConfig:
    """What every variant has; one subclass per variant below, one file per variant in saes/."""

    name: str
    d_sae: int
    input: str  # dataset: centred and scaled by the training set's statistics; token: each token standardised; none
    aux_weight: float  # weight of AuxK (dead latents reconstruct the residual); 0 turns it off
    aux_k: int  # at most this many dead latents take part
    dead_tokens: int  # a latent is dead when it has not fired for so many tokens

    def __post_init__(self) -> None:
        at_least("sae.d_sae", self.d_sae, 1)
        one_of("sae.input", self.input, ("dataset", "token", "none"))
        at_least("sae.aux_weight", self.aux_weight, 0)
        at_least("sae.aux_k", self.aux_k, 1)
        at_least("sae.dead_tokens", self.dead_tokens, 1)


@dataclass
class ReLUConfig(SAEConfig):
    """saes/relu.py."""

    l1: float  # coefficient of sum_i z_i |W_dec_i|
    target_l0: float | None  # the coefficient is steered towards this mean L0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("sae.l1", self.l1, 0)
        check_target(self)


@dataclass
class GatedConfig(SAEConfig):
    """saes/gated.py."""

    l1: float  # coefficient of sum_i relu(gate_i)
    target_l0: float | None  # the coefficient is steered towards this mean L0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("sae.l1", self.l1, 0)
        check_target(self)


@dataclass
class JumpReLUConfig(SAEConfig):
    """saes/jumprelu.py."""

    l0: float  # coefficient of the L0 penalty
    target_l0: float | None  # penalise (L0 / target - 1)^2 in place of L0
    bandwidth: float  # of the straight-through rectangle, in units of pre-activations
    threshold: float  # initial, in units of pre-activations
    threshold_lr: float  # thresholds learn at this multiple of the learning rate

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("sae.l0", self.l0, 0)
        for key in ("bandwidth", "threshold", "threshold_lr"):
            positive(f"sae.{key}", getattr(self, key))
        check_target(self)


@dataclass
class TopKConfig(SAEConfig):
    """saes/topk.py."""

    k: int  # latents per token

    def __post_init__(self) -> None:
        super().__post_init__()
        check_k(self)


@dataclass
class MultiTopKConfig(SAEConfig):
    """saes/multitopk.py."""

    k: int  # latents per token at inference
    wide_multiple: int  # the second level keeps this multiple of k, at most d_sae
    wide_weight: float  # weight of the second level's loss

    def __post_init__(self) -> None:
        super().__post_init__()
        check_k(self)
        at_least("sae.wide_multiple", self.wide_multiple, 2)
        at_least("sae.wide_weight", self.wide_weight, 0)


@dataclass
class BatchTopKConfig(SAEConfig):
    """saes/batchtopk.py."""

    k: int  # latents per token, on average over the batch
    threshold_decay: float  # of the running mean of the batch's smallest kept activation

    def __post_init__(self) -> None:
        super().__post_init__()
        check_k(self)
        share("sae.threshold_decay", self.threshold_decay)


@dataclass
class MatryoshkaConfig(SAEConfig):
    """saes/matryoshka.py."""

    k: int  # latents per token, on average over the batch
    threshold_decay: float  # of the running mean of the batch's smallest kept activation
    prefixes: list[int] | None  # dictionary sizes, rising, the last d_sae; None: prefix_shares of d_sae
    prefix_shares: list[float]
    prefix_sampling: str  # fixed; or random: each step draws as many prefixes anew, the last always d_sae

    def __post_init__(self) -> None:
        super().__post_init__()
        check_k(self)
        share("sae.threshold_decay", self.threshold_decay)
        check_prefixes(self)


@dataclass
class HierarchicalConfig(SAEConfig):
    """saes/hierarchical.py."""

    k: int  # the largest budget K
    budgets: str  # all: 1..K; powers: 1, 2, 4, ... K; or numbers parted by commas, ending at K
    weights: str  # of the budgets: equal; relative: 1 / the view's running error; or numbers parted by commas

    def __post_init__(self) -> None:
        super().__post_init__()
        check_k(self)
        self.budget_list()
        self.weight_list()

    def weight_list(self) -> list[float]:
        """The weights of the budgets, of mean 1; for `relative` those it starts from. Raises InputError for anything else."""
        n = len(self.budget_list())
        if self.weights in ("equal", "relative"):
            return [1.0] * n
        given = f"sae.weights={self.weights}"
        try:
            numbers = [float(p) for p in self.weights.split(",")]
        except ValueError:
            raise InputError(f"{given}: give equal, relative or numbers parted by commas") from None
        require(len(numbers) == n, f"{given}: {len(numbers)} weights for {n} budgets; give one for each")
        usable = all(math.isfinite(w) and w >= 0 for w in numbers) and sum(numbers) > 0
        require(usable, f"{given}: weights must be finite and not negative, and one of them positive")
        return [w * n / sum(numbers) for w in numbers]

    def budget_list(self) -> list[int]:
        """The set J of budgets, rising, ending at k. Raises InputError for anything else."""
        if self.budgets == "all":
            return list(range(1, self.k + 1))
        if self.budgets == "powers":
            return [2**i for i in range(self.k.bit_length()) if 2**i < self.k] + [self.k]
        parts = [p.strip() for p in self.budgets.split(",")]
        require(all(p.isdecimal() for p in parts), f"sae.budgets={self.budgets}: give all, powers or numbers")
        numbers = [int(p) for p in parts]
        rising = numbers[0] >= 1 and all(a < b for a, b in pairwise(numbers))
        require(rising and numbers[-1] == self.k, f"sae.budgets={self.budgets}: must rise and end at sae.k={self.k}")
        return numbers


@dataclass
class LatticeConfig(HierarchicalConfig):
    """saes/lattice.py."""

    prefixes: list[int] | None  # dictionary sizes, rising, the last d_sae; None: prefix_shares of d_sae
    prefix_shares: list[float]
    prefix_sampling: str  # fixed: each step draws among the prefixes; random: it draws their lengths anew
    per_step: int  # prefixes of a step, d_sae among them
    selection: str  # token: j latents for each token; batch: n * j for the n tokens of a batch
    threshold_decay: float  # of the running mean of the batch's smallest kept activation, for selection batch
    sort_every: int  # steps between sorting latents by energy E[z^2], so that prefixes hold the largest; 0: never

    def __post_init__(self) -> None:
        super().__post_init__()
        check_prefixes(self)
        at_least("sae.sort_every", self.sort_every, 0)
        require(
            self.weights != "relative" or self.prefix_sampling == "fixed",
            f"sae.weights=relative: needs views that come again; use sae.prefix_sampling=fixed, not {self.prefix_sampling}",
        )
        one_of("sae.selection", self.selection, ("token", "batch"))
        share("sae.threshold_decay", self.threshold_decay)
        at_least("sae.per_step", self.per_step, 1)
        most = len(self.prefixes or [])
        require(
            self.prefix_sampling == "random" or self.per_step <= most,
            f"sae.per_step={self.per_step}: there are {most} prefixes; lower it, or name more in sae.prefixes",
        )


SAE_VARIANTS: dict[str, type[SAEConfig]] = {
    "relu": ReLUConfig,
    "gated": GatedConfig,
    "jumprelu": JumpReLUConfig,
    "topk": TopKConfig,
    "multitopk": MultiTopKConfig,
    "batchtopk": BatchTopKConfig,
    "matryoshka": MatryoshkaConfig,
    "hierarchical": HierarchicalConfig,
    "lattice": LatticeConfig,
}


NEUTRAL = {"weights": "equal", "sort_every": 0}  # keys added later, at the values that leave all as it was before


def keyed(sae: dict[str, Any]) -> dict[str, Any]:
    """What of an SAE's config the key of its run holds: all but neutral values, so that runs made before stay done."""
    return {name: value for name, value in sae.items() if name not in NEUTRAL or value != NEUTRAL[name]}


def with_neutral(sae: dict[str, Any]) -> dict[str, Any]:
    """A stored SAE config with the keys that its variant got later."""
    names = {field.name for field in fields(SAE_VARIANTS.get(str(sae.get("name")), SAEConfig))}
    return {name: value for name, value in NEUTRAL.items() if name in names} | sae


def check_prefixes(cfg: MatryoshkaConfig | LatticeConfig) -> None:
    """Fill in prefixes that are left out; raise InputError unless they rise to d_sae."""
    for share_of in cfg.prefix_shares:
        require(0 < share_of <= 1, f"sae.prefix_shares={cfg.prefix_shares}: each must lie above 0 and not exceed 1")
    if cfg.prefixes is None:
        cfg.prefixes = [max(1, round(s * cfg.d_sae)) for s in cfg.prefix_shares]
    one_of("sae.prefix_sampling", cfg.prefix_sampling, ("fixed", "random"))
    p = cfg.prefixes
    rising = all(a < b for a, b in pairwise(p)) and p[:1] > [0]
    require(rising, f"sae.prefixes={p}: must rise, beginning at 1 or more")
    require(p[-1] == cfg.d_sae, f"sae.prefixes={p}: must end at sae.d_sae={cfg.d_sae}")


def check_k(cfg: TopKConfig | MultiTopKConfig | BatchTopKConfig | MatryoshkaConfig | HierarchicalConfig) -> None:
    """Raise InputError unless k lies in [1, d_sae]."""
    at_least("sae.k", cfg.k, 1)
    require(cfg.k <= cfg.d_sae, f"sae.k={cfg.k}: cannot exceed sae.d_sae={cfg.d_sae}")


def check_target(cfg: ReLUConfig | GatedConfig | JumpReLUConfig) -> None:
    """Raise InputError unless target_l0 is None or lies in (0, d_sae]."""
    ok = cfg.target_l0 is None or 0 < cfg.target_l0 <= cfg.d_sae
    require(ok, f"sae.target_l0={cfg.target_l0}: must lie above 0 and not exceed sae.d_sae={cfg.d_sae}")
