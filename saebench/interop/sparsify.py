"""sparsify (checked with 1.3.3): cfg.json and sae.safetensors, one folder for each hook point; TopK alone.

Its checkpoints taken while k was being annealed hold a k that was on its way (their configuration is changed in training).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from saebench.checks import require
from saebench.interop.facts import Facts, number, text
from saebench.interop.plain import Plain
from saebench.interop.safe import integer, read_config, read_safetensors
from saebench.store import write_json, write_tensors

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
SITES = {"": "resid_post", "mlp": "mlp_out", "attn": "attn_out", "self_attn": "attn_out", "attention": "attn_out"}
PLACE = re.compile(r"(?:layers|h)\.(\d+)(?:\.(\w+))?$")


def read(folder: Path) -> tuple[Plain, Facts]:
    """The SAE in the folder of a hook point. Raises InputError for groupmax, transcoders and what is wrong."""
    path = folder / CONFIG
    config = read_config(path)
    activation = config.get("activation", "topk")
    require(activation == "topk", f"{path}: activation={activation}: saebench reads topk")
    for key in ("transcode", "skip_connection", "signed"):
        require(not config.get(key), f"{path}: {key}={config.get(key)}: not an SAE that saebench has")
    tensors = read_safetensors(folder / WEIGHTS)
    d_sae, d_in = tensors.shape("encoder.weight")
    said = config.get("num_latents") or d_in * integer(path, "expansion_factor", config.get("expansion_factor", 32))
    require(said == d_sae, f"{path}: num_latents={said}: {WEIGHTS} has {d_sae}")
    k = integer(path, "k", config.get("k"))
    require(k <= d_sae, f"{path}: k={k}: cannot exceed the {d_sae} latents")
    plain = Plain(
        "topk",
        W_enc=tensors.take("encoder.weight", d_sae, d_in).T,
        b_enc=tensors.take("encoder.bias", d_sae),
        W_dec=tensors.take("W_dec", d_sae, d_in),
        b_dec=tensors.take("b_dec", d_in),
        k=k,
    )
    tensors.close()
    return plain, facts_of(folder)


def facts_of(folder: Path) -> Facts:
    """Layer and site as the folder's name says (layers.5, h.5, layers.5.mlp), the model as the run's config.json says."""
    found = PLACE.search(folder.resolve().name)
    if not found or (found[2] or "") not in SITES:
        return Facts()
    beside = folder.resolve().parent / "config.json"
    said: dict[str, Any] = read_config(beside) if beside.is_file() else {}
    data, seq_len = text(said.get("dataset")), number(said.get("ctx_len"))
    return Facts(text(said.get("model")), int(found[1]), SITES[found[2] or ""], data, seq_len)


def write(plain: Plain, facts: Facts, folder: Path) -> None:
    """Write the SAE for SparseCoder.load_from_disk. Raises InputError for all but TopK on raw activations."""
    require(
        plain.rule == "topk",
        f"--to=sparsify: it has TopK alone, and this selects by {plain.rule}"
        + ("; --view=budget:K keeps each token's K largest" if plain.rule in ("relu", "batchtopk") else ""),
    )
    require(not plain.token, "--to=sparsify: it cannot standardise each token (sae.input=token)")
    config = {"activation": "topk", "expansion_factor": max(1, plain.d_sae // plain.d_in), "normalize_decoder": True}
    config |= {
        "num_latents": plain.d_sae,
        "k": plain.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
    }
    tensors = {"encoder.weight": plain.W_enc.T, "encoder.bias": plain.b_enc, "W_dec": plain.W_dec, "b_dec": plain.b_dec}
    write_tensors(folder / WEIGHTS, {name: tensor.contiguous() for name, tensor in tensors.items()})
    write_json(folder / CONFIG, config | {"d_in": plain.d_in})
