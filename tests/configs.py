"""Small SAE configs, statistics and synthetic activations for tests, for every variant that conf/sae has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saebench.compose import load
from saebench.config import RunConfig
from saebench.sae_configs import SAEConfig
from saebench.saes import Stats


def run_config(*overrides: str) -> RunConfig:
    """The config that these overrides compose."""
    return load(list(overrides))


def sae_config(variant: str, **changes: Any) -> SAEConfig:
    """conf/sae/<variant>.yaml with small sizes and with changes."""
    small = {"d_sae": 96} | ({"k": 4} if hasattr(load([f"sae={variant}"]).sae, "k") else {}) | changes
    return load([f"sae={variant}", *(f"sae.{key}={value}" for key, value in small.items())]).sae


def synthetic(n: int, d_in: int = 24, seed: int = 0) -> Tensor:
    """Activations [n, d_in] that are sparse sums of fixed directions plus noise and a large mean."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.randn(64, d_in, generator=torch.Generator().manual_seed(1234))
    codes = torch.relu(torch.randn(n, 64, generator=g) - 1.5)
    return codes @ directions + 0.05 * torch.randn(n, d_in, generator=g) + 5.0


def stats_of(x: Tensor) -> Stats:
    """Statistics of activations [n, d_in]."""
    mean = x.double().mean(0)
    variance = (x.double() - mean).square().mean(0)
    return Stats(mean, float(variance.mean().sqrt()), variance)
