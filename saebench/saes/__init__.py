"""The SAE variants: one file each, found by name; their config dataclasses stand in saebench/config.py."""

from __future__ import annotations

from saebench.sae_configs import SAEConfig
from saebench.saes.base import SAE, Stats, Step
from saebench.saes.batchtopk import BatchTopK
from saebench.saes.gated import Gated
from saebench.saes.hierarchical import Hierarchical
from saebench.saes.jumprelu import JumpReLU
from saebench.saes.lattice import Lattice
from saebench.saes.matryoshka import Matryoshka
from saebench.saes.multitopk import MultiTopK
from saebench.saes.relu import ReLU
from saebench.saes.topk import TopK

REGISTRY: dict[str, type[SAE]] = {
    "relu": ReLU,
    "gated": Gated,
    "jumprelu": JumpReLU,
    "topk": TopK,
    "multitopk": MultiTopK,
    "batchtopk": BatchTopK,
    "matryoshka": Matryoshka,
    "hierarchical": Hierarchical,
    "lattice": Lattice,
}


def build(cfg: SAEConfig, stats: Stats, seed: int) -> SAE:
    """A freshly initialised SAE of the variant that `cfg` names, for activations with these statistics."""
    return REGISTRY[cfg.name](cfg, stats, seed)


__all__ = ["REGISTRY", "SAE", "Stats", "Step", "build"]
