"""Other libraries' formats: read them as our SAEs, write ours for them."""

from __future__ import annotations

from pathlib import Path

import torch

from saebench.interop.plain import fold_
from saebench.interop.source import FORMATS, Found, read_sae
from saebench.interop.targets import TARGETS, export
from saebench.saes import SAE


def load(source: str | Path, device: torch.device | str = "cpu", raw: bool = True) -> SAE:
    """The SAE of a run, of any format of FORMATS, or of the hub, for inference.

    latents = sae.encode(x): SparseLatents of x [..., d_in], one row a token; x_hat = sae.decode(latents): [n, d_in];
    sae(x): x_hat in the shape of x. With `raw` the activation scale and centre are folded in: x_hat is in the model's own
    space, latents are in units of the activations and decoder rows keep their norm. raw=False leaves the SAE's own space:
    x_hat = sae.normalise(x).undo(sae.decode(latents)); an SAE that standardises each token (sae.input=token) has no other.
    Raises InputError naming file and key for anything that is not such an SAE.
    """
    sae = read_sae(source).sae
    if raw and sae.cfg.input != "none":
        fold_(sae)
    return sae.to(device)


__all__ = ["FORMATS", "TARGETS", "Found", "export", "load", "read_sae"]
