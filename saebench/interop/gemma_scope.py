"""Gemma Scope: params.npz; Gemma Scope 2: params.safetensors with lower-case names and config.json. JumpReLU, b_dec not
subtracted from the input.

Embedding SAEs and transcoders are refused: their input is no site of ours. A `scaling_factor` multiplies latents.
"""

from __future__ import annotations

import re
from pathlib import Path

from saebench.checks import require
from saebench.interop.facts import Facts, text
from saebench.interop.plain import Plain, subtracting
from saebench.interop.safe import Tensors, read_config, read_npz, read_safetensors

NPZ, SAFETENSORS = "params.npz", "params.safetensors"
SUITE = re.compile(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att)\b")
LAYER = re.compile(r"layer_(\d+)")
OTHERS = ("transcoder", "clt", "crosscoder", "embedding")


def read(folder: Path) -> tuple[Plain, Facts]:
    """The SAE of Gemma Scope in a folder. Raises InputError, naming file and key."""
    path = folder / NPZ
    tensors = read_npz(path)
    check_kind(folder)
    tensors.tensors = {re.sub("^w_", "W_", name): tensor for name, tensor in tensors.tensors.items()}
    return jumprelu(tensors), facts_of(folder)


def read2(folder: Path) -> tuple[Plain, Facts]:
    """The SAE of Gemma Scope 2 in a folder. Raises InputError, naming file and key."""
    path = folder / "config.json"
    config = read_config(path) if path.is_file() else {}
    name = config.get("architecture", "jump_relu")
    require(name == "jump_relu", f"{path}: architecture={name}: saebench reads jump_relu")
    kind = config.get("type", "sae")
    require(kind == "sae", f"{path}: type={kind}: saebench reads sae")
    require(not config.get("affine_connection"), f"{path}: affine_connection: not an SAE that saebench has")
    check_kind(folder)
    tensors = read_safetensors(folder / SAFETENSORS)
    tensors.tensors = {re.sub("^w_", "W_", key): tensor for key, tensor in tensors.tensors.items()}
    found = facts_of(folder)
    model = text(config.get("model_name"))
    return jumprelu(tensors), Facts(hub_id(model) if model else found.model, found.layer, found.site)


def check_kind(folder: Path) -> None:
    """Raise InputError for the folder of something else."""
    wrong = [kind for kind in OTHERS if kind in str(folder)]
    require(not wrong, f"{folder}: {', '.join(wrong)}: not an SAE of one site of the model")


def jumprelu(tensors: Tensors) -> Plain:
    """The SAE that the tensors make."""
    d_in, d_sae = tensors.shape("W_enc")
    W_enc, W_dec = tensors.take("W_enc", d_in, d_sae), tensors.take("W_dec", d_sae, d_in)
    b_enc, b_dec = tensors.take("b_enc", d_sae), tensors.take("b_dec", d_in)
    threshold = tensors.take("threshold", d_sae)
    if "scaling_factor" in tensors:
        W_dec = W_dec * tensors.take("scaling_factor", d_sae).unsqueeze(1)
    tensors.close()
    return Plain("jumprelu", W_enc, subtracting(b_enc, W_enc, b_dec), W_dec, b_dec, threshold=threshold)


def facts_of(folder: Path) -> Facts:
    """What the names of the folders say."""
    where = str(folder.resolve())
    suite, layer = SUITE.search(where), LAYER.search(where)
    site = {"res": "resid_post", "mlp": "mlp_out"}.get(suite[3] if suite else "")
    site = site or next((s for s in ("resid_post", "mlp_out") if s in where), None)
    model = f"google/gemma-2-{suite[1]}{'-it' if suite[2] == 'it' else ''}" if suite else None
    return Facts(model, int(layer[1]) if layer else None, site)


def hub_id(model: str) -> str:
    """The model's id on the hub: the 270M base model has no -pt there, and some configurations say v3."""
    name = model.removeprefix("google/").replace("-v3", "-3")
    return "google/" + (name.removesuffix("-pt") if "270m" in name else name)
