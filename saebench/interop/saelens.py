"""SAELens (checked with 6.54.12): cfg.json and sae_weights.safetensors.

Worked around here: a configuration older than 6.0 says architecture and activation apart; normalize_activations=
expected_average_only_in is ignored by their loader, which then runs the SAE on activations of the wrong scale, so such a file
is read only with the activation_scaler.json of its checkpoint; finetuning factors are read away from `scaling_factor`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from saebench.checks import require
from saebench.interop.facts import Facts, hook_of, mapping, number, of_hook, text
from saebench.interop.plain import Plain, subtracting
from saebench.interop.safe import Tensors, integer, read_config, read_safetensors
from saebench.store import write_json, write_tensors

CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
FORMAT = "6.0.0"  # the first version of SAELens whose configuration looks like this
RULES = {  # their architecture, and ours
    "standard": "relu",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "topk": "topk",
    "batchtopk": "batchtopk",  # saved in training; for inference they save jumprelu
    "matryoshka_batchtopk": "batchtopk",
}
FACTOR = "scaling_factor"


def read(folder: Path) -> tuple[Plain, Facts]:
    """The SAE in a folder. Raises InputError, naming file and key, for what is wrong or not to be had here."""
    path = folder / CONFIG
    config = current(path, read_config(path))
    name = config["architecture"]
    require(name in RULES, f"{path}: architecture={name}: not an SAE that saebench has; it reads {', '.join(RULES)}")
    check(path, config)
    tensors = read_safetensors(folder / WEIGHTS)
    plain = Plain(RULES[name], **shared(tensors, config), **own(path, tensors, config))
    tensors.close("mask")
    plain = replace(plain, token=config.get("normalize_activations") == "layer_norm")
    if config.get("rescale_acts_by_decoder_norm"):
        plain = rescaled(plain)
    if config.get("normalize_activations") == "expected_average_only_in":
        scaler = folder / SCALER
        factor = read_config(scaler).get(FACTOR)
        require(isinstance(factor, float) and factor > 0, f"{scaler}: {FACTOR}={factor}: must be a positive number")
        plain = unscaled(plain, factor)
    return plain, facts_of(config)


def current(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the keys of today."""
    config = {"architecture": "standard", "apply_b_dec_to_input": True} | config
    if str(config.get("activation_fn", config.get("activation_fn_str"))) == "topk":
        config |= {"architecture": "topk", "k": mapping(config.get("activation_fn_kwargs")).get("k")}
    if isinstance(config.get("normalize_activations"), bool):
        config["normalize_activations"] = "expected_average_only_in" if config["normalize_activations"] else "none"
    require(isinstance(config["architecture"], str), f"{path}: architecture={config['architecture']}: must be a name")
    return config


def check(path: Path, config: dict[str, Any]) -> None:
    """Raise InputError for settings under which no SAE of ours works alike."""
    norm = config.get("normalize_activations") or "none"
    known = ("none", "layer_norm", "expected_average_only_in")
    require(norm in known, f"{path}: normalize_activations={norm}: saebench reads {', '.join(known)}")
    scaler = path.with_name(SCALER)
    require(
        norm != "expected_average_only_in" or scaler.is_file(),
        f"{path}: normalize_activations={norm}: the factor is not in the file; put {scaler.name} of the checkpoint beside it",
    )
    shape = config.get("reshape_activations") or "none"
    require(shape == "none", f"{path}: reshape_activations={shape}: heads' outputs are no site of saebench")


def shared(tensors: Tensors, config: dict[str, Any]) -> dict[str, Tensor]:
    """What all architectures have."""
    d_in, d_sae = tensors.shape("W_enc")
    W_enc, W_dec = tensors.take("W_enc", d_in, d_sae), tensors.take("W_dec", d_sae, d_in)
    bias = "b_gate" if config["architecture"] == "gated" else "b_enc"
    b_enc, b_dec = tensors.take(bias, d_sae), tensors.take("b_dec", d_in)
    if not config["apply_b_dec_to_input"]:
        b_enc = subtracting(b_enc, W_enc, b_dec)
    if FACTOR in tensors:  # what their decoder multiplies latents by
        W_dec = W_dec * tensors.take(FACTOR, d_sae).unsqueeze(1)
    return {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}


def own(path: Path, tensors: Tensors, config: dict[str, Any]) -> dict[str, Any]:
    """What the architecture has beside."""
    d_in, d_sae = tensors.shape("W_enc")
    name = config["architecture"]
    if name == "jumprelu":
        return {"threshold": tensors.take("threshold", d_sae)}
    if name == "gated":
        r_mag, b_mag = tensors.take("r_mag", d_sae), tensors.take("b_mag", d_sae)
        if not config["apply_b_dec_to_input"]:
            W_mag = tensors.take("W_enc", d_in, d_sae) * r_mag.exp()
            b_mag = subtracting(b_mag, W_mag, tensors.take("b_dec", d_in))
        return {"r_mag": r_mag, "b_mag": b_mag}
    if name == "standard":
        return {}
    k = config.get("k")
    if name == "topk":
        k = integer(path, "k", k)
        require(k <= d_sae, f"{path}: k={k}: cannot exceed the {d_sae} latents")
        return {"k": k}
    require(isinstance(k, int | float) and k > 0, f"{path}: k={k}: must be a positive number")
    assert isinstance(k, int | float)
    widths = config.get("matryoshka_widths") or []
    prefixes = tuple(integer(path, "matryoshka_widths", width) for width in widths)
    if prefixes:
        prefixes = tuple(sorted({*prefixes, d_sae}))
    return {"k": max(1, round(k)), "threshold": tensors.take("topk_threshold"), "prefixes": prefixes}


def rescaled(plain: Plain) -> Plain:
    """The SAE whose latents count with their decoder's norm: the norms move into the encoder."""
    norm = plain.W_dec.double().norm(dim=1).clamp_min(1e-8)  # [d_sae]
    return replace(
        plain,
        W_enc=(plain.W_enc.double() * norm).float(),
        b_enc=(plain.b_enc.double() * norm).float(),
        W_dec=(plain.W_dec.double() / norm.unsqueeze(1)).float(),
    )


def unscaled(plain: Plain, factor: Any) -> Plain:
    """The SAE on raw activations of one that sees them times `factor`; latents keep its units."""
    return replace(plain, W_enc=plain.W_enc * factor, W_dec=plain.W_dec / factor, b_dec=plain.b_dec / factor)


def facts_of(config: dict[str, Any]) -> Facts:
    """What the metadata say; before 6.0 they stood among the rest."""
    said = config | mapping(config.get("metadata"))
    hook = of_hook(said.get("hook_name", said.get("hook_point")))
    return Facts(
        text(said.get("model_name")),
        **hook,
        data=text(said.get("dataset_path")),
        seq_len=number(said.get("context_size")),
    )


def write(plain: Plain, facts: Facts, folder: Path) -> None:
    """Write the SAE so that SAELens' own loader reads it: the thresholds of BatchTopK as jumprelu, as they do themselves."""
    threshold, d_sae = plain.threshold, plain.d_sae
    tensors = {"W_enc": plain.W_enc, "b_enc": plain.b_enc, "W_dec": plain.W_dec, "b_dec": plain.b_dec}
    name, extra = {"relu": "standard", "batchtopk": "jumprelu"}.get(plain.rule, plain.rule), {}
    if plain.rule == "gated":
        assert plain.r_mag is not None and plain.b_mag is not None, "gated has both"  # noqa: PT018
        tensors |= {"b_gate": tensors.pop("b_enc"), "r_mag": plain.r_mag, "b_mag": plain.b_mag}
    if threshold is not None:
        tensors["threshold"] = threshold.expand(d_sae)
    if plain.rule == "topk":
        extra = {"k": plain.k, "rescale_acts_by_decoder_norm": False}
    config = {
        "architecture": name,
        "d_in": plain.d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "layer_norm" if plain.token else "none",
        "reshape_activations": "none",
        "metadata": metadata(facts, plain),
    }
    write_tensors(folder / WEIGHTS, {key: tensor.contiguous() for key, tensor in tensors.items()})
    write_json(folder / CONFIG, config | extra)


def metadata(facts: Facts, plain: Plain) -> dict[str, Any]:
    """What SAELens and its users look for."""
    said = {"model_name": facts.model, "hook_name": hook_of(facts), "hook_layer": facts.layer}
    said |= {"dataset_path": facts.data, "context_size": facts.seq_len, "sae_lens_version": FORMAT}
    if plain.prefixes:
        said["matryoshka_widths"] = list(plain.prefixes)
    return {key: value for key, value in said.items() if value is not None}
