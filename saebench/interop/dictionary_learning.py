"""dictionary_learning (checked with 0.1.0): ae.pt, written by torch.save, and config.json.

ae.pt is read by torch.load(weights_only=True), which their own loader does not ask for. A threshold of -1 is one that training
never set; their BatchTopK then keeps every positive latent, which is no BatchTopK, so such a file is refused.
"""

from __future__ import annotations

import os
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saebench.checks import InputError, require
from saebench.interop.facts import Facts, mapping, number, text
from saebench.interop.plain import Plain, not_subtracting, subtracting
from saebench.interop.safe import Tensors, integer, read_config, read_pt
from saebench.store import write_json

CONFIG, WEIGHTS = "config.json", "ae.pt"
LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "b_dec"}
CLASSES: dict[
    str, dict[str, str]
] = {  # their names of our tensors; both matrices are transposed where they are `.weight`
    "AutoEncoder": LINEAR | {"b_dec": "bias"},
    "AutoEncoderNew": LINEAR | {"b_dec": "decoder.bias"},
    "GatedAutoEncoder": LINEAR | {"b_enc": "gate_bias", "b_dec": "decoder_bias", "r_mag": "r_mag", "b_mag": "mag_bias"},
    "AutoEncoderTopK": LINEAR,
    "BatchTopKSAE": LINEAR,
    "MatryoshkaBatchTopKSAE": {name: name for name in LINEAR},
    "JumpReluAutoEncoder": {name: name for name in (*LINEAR, "threshold")},
}
RULES = {
    "AutoEncoder": "relu",
    "AutoEncoderNew": "relu",
    "GatedAutoEncoder": "gated",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "batchtopk",
    "MatryoshkaBatchTopKSAE": "batchtopk",
    "JumpReluAutoEncoder": "jumprelu",
}
NOT_SUBTRACTING = ("AutoEncoderNew", "JumpReluAutoEncoder")  # their encoders see x, not x - b_dec


def read(folder: Path) -> tuple[Plain, Facts]:
    """The dictionary in a folder. Raises InputError, naming file and key."""
    path = folder / CONFIG
    trainer = read_config(path).get("trainer")
    require(isinstance(trainer, dict), f"{path}: trainer: missing; it says which class ae.pt is of")
    assert isinstance(trainer, dict)
    name = str(trainer.get("dict_class"))
    require(name in CLASSES, f"{path}: trainer.dict_class={name}: saebench reads {', '.join(CLASSES)}")
    loaded = read_pt(folder / WEIGHTS)
    tensors = Tensors(folder / WEIGHTS, {key: value for key, value in loaded.items() if isinstance(value, Tensor)})
    named: dict[str, Any] = matrices(tensors, CLASSES[name])
    if name in NOT_SUBTRACTING:
        named["b_enc"] = subtracting(named["b_enc"], named["W_enc"], named["b_dec"])
    plain = Plain(RULES[name], **named, **selection(tensors, name, len(named["W_dec"])))
    tensors.close("threshold", "k")  # AutoEncoderTopK has a threshold for a use that is not its default
    return plain, facts_of(path)


def matrices(tensors: Tensors, names: dict[str, str]) -> dict[str, Tensor]:
    """Our tensors, from theirs."""
    rows, columns = tensors.shape(names["W_enc"])
    linear = names["W_enc"] != "W_enc"
    d_in, d_sae = (columns, rows) if linear else (rows, columns)
    shapes = {"W_enc": (rows, columns), "W_dec": (columns, rows), "b_dec": (d_in,)}
    found = {ours: tensors.take(theirs, *shapes.get(ours, (d_sae,))) for ours, theirs in names.items()}
    return found | {"W_enc": found["W_enc"].T, "W_dec": found["W_dec"].T} if linear else found


def selection(tensors: Tensors, name: str, d_sae: int) -> dict[str, Any]:
    """k, threshold and prefixes of the classes that have them."""
    if RULES[name] not in ("topk", "batchtopk"):
        return {}
    k = integer(tensors.path, "k", tensors.take("k").item())
    require(k <= d_sae, f"{tensors.path}: k={k}: cannot exceed the {d_sae} latents")
    if RULES[name] == "topk":
        return {"k": k}
    threshold = tensors.take("threshold")
    require(bool(threshold >= 0), f"{tensors.path}: threshold={float(threshold):g}: never set in training; train it on")
    if name == "BatchTopKSAE":
        return {"k": k, "threshold": threshold}
    sizes = tensors.tensors.get("group_sizes")
    require(sizes is not None and sizes.ndim == 1, f"{tensors.path}: group_sizes: missing, or no list of sizes")
    assert sizes is not None
    prefixes = tuple(
        accumulate(integer(tensors.path, "group_sizes", s) for s in tensors.take("group_sizes", len(sizes)).tolist())
    )
    require(
        prefixes[-1:] == (d_sae,), f"{tensors.path}: group_sizes: sum to {prefixes[-1:]}, not to the {d_sae} latents"
    )
    return {"k": k, "threshold": threshold, "prefixes": prefixes}


def facts_of(path: Path) -> Facts:
    """What the trainer's and the buffer's settings say."""
    config = read_config(path)
    trainer, buffer = config["trainer"], mapping(config.get("buffer"))
    site = next(
        (s for s in ("resid_pre", "resid_post", "mlp_out", "attn_out") if s in str(trainer.get("submodule_name"))), None
    )
    return Facts(text(trainer.get("lm_name")), number(trainer.get("layer")), site, None, number(buffer.get("ctx_len")))


def write(plain: Plain, facts: Facts, folder: Path) -> None:
    """Write the SAE for load_dictionary. Raises InputError for one that standardises each token."""
    require(not plain.token, "--to=dictionary_learning: it cannot standardise each token (sae.input=token)")
    name = class_of(plain)
    b_enc = not_subtracting(plain) if name in NOT_SUBTRACTING else plain.b_enc
    ours = vars(plain) | {"b_enc": b_enc}
    transposed = name not in ("MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder")
    tensors = {
        theirs: (ours[key].T if transposed and key.startswith("W_") else ours[key]).contiguous().clone()
        for key, theirs in CLASSES[name].items()
    }
    if plain.k is not None:
        threshold = torch.tensor(-1.0) if plain.threshold is None else plain.threshold
        tensors |= {"k": torch.tensor(plain.k, dtype=torch.int), "threshold": threshold.reshape(()).clone()}
    if name == "MatryoshkaBatchTopKSAE":
        tensors["group_sizes"] = torch.tensor([b - a for a, b in pairwise((0, *plain.prefixes))])
    part = folder / f"{WEIGHTS}.part"
    torch.save(tensors, part)
    os.replace(part, folder / WEIGHTS)
    trainer = {"dict_class": name, "activation_dim": plain.d_in, "dict_size": plain.d_sae, "k": plain.k}
    place = None if facts.layer is None else f"{facts.site}_layer_{facts.layer}"
    trainer |= {"lm_name": facts.model, "layer": facts.layer, "submodule_name": place}
    known = {key: value for key, value in trainer.items() if value is not None}
    write_json(folder / CONFIG, {"trainer": known, "buffer": {"d_submodule": plain.d_in, "ctx_len": facts.seq_len}})


def class_of(plain: Plain) -> str:
    """Their class of an SAE."""
    if plain.rule == "batchtopk":
        return "MatryoshkaBatchTopKSAE" if len(plain.prefixes) > 1 else "BatchTopKSAE"
    found = {
        "relu": "AutoEncoder",
        "gated": "GatedAutoEncoder",
        "topk": "AutoEncoderTopK",
        "jumprelu": "JumpReluAutoEncoder",
    }
    if plain.rule not in found:
        raise InputError(f"--to=dictionary_learning: it has no {plain.rule} SAE")
    return found[plain.rule]
