"""A trained SAE on disk: sae.safetensors and sae.json hold all that is needed to use it on raw activations."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from saebench.checks import InputError, made_of, require
from saebench.sae_configs import SAE_VARIANTS, SAEConfig, with_neutral
from saebench.saes import SAE, Stats, build
from saebench.store import checked, read_mapping, write_json, write_tensors


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
    if (folder / "done.json").is_file():
        checked(folder, "sae.json")
        checked(folder, "sae.safetensors")
    d_in, cfg = read_description(folder / "sae.json")
    check_shapes(folder, d_in, cfg.d_sae)
    zeros = torch.zeros(d_in)
    sae = build(cfg, Stats(zeros, 1.0, zeros), seed=0)
    try:
        sae.load_state_dict(load_file(folder / "sae.safetensors"))
    except (RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder}: sae.safetensors does not fit sae.json ({error}); make the run again") from error
    return sae.to(device).requires_grad_(False)


def read_description(path: Path) -> tuple[int, SAEConfig]:
    """d_in and the config in a sae.json. Raises InputError for anything that this saebench would not write."""
    described = read_mapping(path)
    stored = described.get("config")
    if not isinstance(stored, dict):
        raise InputError(f"{path}: without the SAE's config; make the run again")
    variant = str(stored.get("name"))
    require(
        variant in SAE_VARIANTS, f"{path}: unknown variant {variant}; this saebench knows {', '.join(SAE_VARIANTS)}"
    )
    known = {f.name for f in dataclasses.fields(SAE_VARIANTS[variant])}
    cfg = made_of(SAE_VARIANTS[variant], {k: v for k, v in with_neutral(stored).items() if k in known}, str(path))
    d_in = described.get("d_in")
    if type(d_in) is not int or d_in < 1:
        raise InputError(f"{path}: d_in={d_in}: must be a whole number, at least 1; make the run again")
    return d_in, cfg


def check_shapes(folder: Path, d_in: int, d_sae: int) -> None:
    """Raise InputError unless sae.safetensors, by its header, holds what sae.json says: memory is taken for no more."""
    wanted = {"W_enc": [d_in, d_sae], "W_dec": [d_sae, d_in], "b_enc": [d_sae], "b_dec": [d_in]}
    try:
        with safe_open(folder / "sae.safetensors", framework="pt") as file:
            names = set(file.keys())
            found = {name: file.get_slice(name).get_shape() for name in wanted if name in names}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{folder / 'sae.safetensors'}: cannot be read ({error}); make the run again") from error
    for name, shape in wanted.items():
        text = f"{folder / 'sae.json'}: {name} would be {shape}, and sae.safetensors holds {found.get(name, 'none')}"
        require(found.get(name) == shape, f"{text}; they do not belong together, make the run again")
