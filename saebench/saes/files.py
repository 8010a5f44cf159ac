"""A trained SAE on disk: sae.safetensors and sae.json hold all that is needed to use it on raw activations."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from safetensors.torch import load_file

from saebench.checks import InputError
from saebench.sae_configs import SAE_VARIANTS, with_neutral
from saebench.saes import SAE, Stats, build
from saebench.store import read_json, write_json, write_tensors


def save_sae(sae: SAE, folder: Path) -> None:
    """Write sae.safetensors (W_enc [d_in, d_sae], W_dec [d_sae, d_in], b_enc, b_dec, centre, scale, ...) and sae.json."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in sae.state_dict().items()}
    write_tensors(folder / "sae.safetensors", tensors)
    write_json(folder / "sae.json", sae.describe())


def load_sae(folder: Path, device: torch.device | str = "cpu") -> SAE:
    """The SAE saved in `folder`, for inference. Raises InputError naming the file that is missing or does not fit."""
    for name in ("sae.json", "sae.safetensors"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: no {name} there; name the folder of a finished run")
    described = read_json(folder / "sae.json")
    variant = described["config"]["name"]
    if variant not in SAE_VARIANTS:
        raise InputError(
            f"{folder / 'sae.json'}: unknown variant {variant}; this saebench knows {', '.join(SAE_VARIANTS)}"
        )
    known = {f.name for f in dataclasses.fields(SAE_VARIANTS[variant])}
    stored = with_neutral(described["config"])
    cfg = SAE_VARIANTS[variant](**{k: v for k, v in stored.items() if k in known})
    zeros = torch.zeros(described["d_in"])
    sae = build(cfg, Stats(zeros, 1.0, zeros), seed=0)
    sae.load_state_dict(load_file(folder / "sae.safetensors"))
    return sae.to(device).requires_grad_(False)
