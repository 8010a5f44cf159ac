"""A trained SAE on disk: sae.safetensors and sae.json hold all that is needed to use it on raw activations."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from saebench.checks import InputError
from saebench.sae_configs import SAE_VARIANTS, SAEConfig, with_neutral
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
    cfg, d_in = described_in(folder / "sae.json")
    check_shape(folder / "sae.safetensors", [cfg.d_sae, d_in])
    zeros = torch.zeros(d_in)
    sae = build(cfg, Stats(zeros, 1.0, zeros), seed=0)
    try:
        sae.load_state_dict(load_file(folder / "sae.safetensors"))
    except RuntimeError as error:  # names the keys that are missing, unknown or of another shape
        raise InputError(f"{folder / 'sae.safetensors'}: not the tensors of sae.json ({error})") from error
    return sae.to(device).requires_grad_(False)


def described_in(path: Path) -> tuple[SAEConfig, int]:
    """The config and d_in that sae.json gives. Raises InputError naming the file and the key that is wrong."""
    described: Any = read_json(path)
    config = described.get("config") if isinstance(described, dict) else None
    if not isinstance(config, dict) or not isinstance(described.get("d_in"), int):
        raise InputError(f"{path}: config or d_in: missing; it is no description of an SAE")
    variant = config.get("name")
    if variant not in SAE_VARIANTS:
        raise InputError(f"{path}: unknown variant {variant}; this saebench knows {', '.join(SAE_VARIANTS)}")
    known = {f.name for f in dataclasses.fields(SAE_VARIANTS[variant])}
    try:
        cfg = SAE_VARIANTS[variant](**{k: v for k, v in with_neutral(config).items() if k in known})
    except TypeError as error:
        raise InputError(f"{path}: config: written by another version of saebench ({error})") from error
    return cfg, described["d_in"]


def check_shape(path: Path, shape: list[int]) -> None:
    """Raise InputError unless W_dec has this shape, before anything as large is allocated."""
    try:
        with safe_open(path, framework="pt") as file:
            found = file.get_slice("W_dec").get_shape() if "W_dec" in file.keys() else None  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"{path}: not a valid safetensors file ({error})") from error
    if found != shape:
        raise InputError(f"{path}: W_dec: has shape {found}, and sae.json says {shape}")
