"""openai/sparse_autoencoder: one .pt file with encoder.weight, decoder.weight, pre_bias, latent_bias and the activation's name.

Their TopK models standardise each token (and add 1e-5 to its deviation, which ours does not); their ReLU models do not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from saebench.checks import require
from saebench.interop.facts import Facts
from saebench.interop.plain import Plain
from saebench.interop.safe import Tensors, integer, read_pt

COUNTED = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")


def read(path: Path) -> tuple[Plain, Facts]:
    """The SAE in a file. Raises InputError, naming file and key."""
    loaded = read_pt(path)
    name = loaded.get("activation", "ReLU")
    require(name in ("ReLU", "TopK"), f"{path}: activation={name}: saebench reads ReLU and TopK")
    tensors = Tensors(path, {key: value for key, value in loaded.items() if isinstance(value, Tensor)})
    d_sae, d_in = tensors.shape("encoder.weight")
    W_enc = tensors.take("encoder.weight", d_sae, d_in)
    tied = "decoder.linear.weight" in tensors
    W_dec = (
        tensors.take("decoder.linear.weight", d_sae, d_in) if tied else tensors.take("decoder.weight", d_in, d_sae).T
    )
    b_enc, b_dec = tensors.take("latent_bias", d_sae), tensors.take("pre_bias", d_in)
    tensors.close(*COUNTED)
    shared: dict[str, Any] = {"W_enc": W_enc.T, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    if name == "ReLU":
        return Plain("relu", **shared), Facts()
    state = loaded.get("activation_state_dict")
    require(isinstance(state, dict), f"{path}: activation_state_dict: missing; it holds k")
    assert isinstance(state, dict)
    after = state.get("postact_fn", "ReLU")
    require(after == "ReLU", f"{path}: activation_state_dict.postact_fn={after}: saebench reads ReLU")
    k = integer(path, "activation_state_dict.k", state.get("k"))
    require(k <= d_sae, f"{path}: activation_state_dict.k={k}: cannot exceed the {d_sae} latents")
    return Plain("topk", **shared, k=k, token=True), Facts()
