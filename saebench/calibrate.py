"""A new threshold for a trained BatchTopK or Matryoshka SAE: to its own k, or to any other mean L0, without training."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saebench.checks import one_of, require
from saebench.config import RunConfig, from_dict
from saebench.heldout import HeldOut
from saebench.progress import say
from saebench.runconfig import read_config
from saebench.saes import SAE
from saebench.saes.files import load_sae, save_sae
from saebench.store import checksum, is_done, stage, write_json
from saebench.stream import Stream, open_stream
from saebench.views import largest_acts, own_k, threshold_for

TOKENS = ("train", "heldout")


def calibrate(run: Path, l0: float | None = None, tokens: str = "train", into: Path | None = None) -> Path:
    """Save the SAE in the folder `run` with the threshold that gives a mean L0 of `l0` (its k if None); the new folder.

    Measured on evaluate.threshold_tokens training tokens or on all held-out tokens of the run. The folder is `into`, or
    run/calibrated/TOKENS-L0. Raises InputError for an SAE without a global threshold and for a folder that holds something else.
    """
    one_of("--tokens", tokens, TOKENS)
    sae = load_sae(run)
    require(
        hasattr(sae, "threshold"),
        f"{run}: a {sae.cfg.name} SAE has no global threshold; evaluate.budgets measures any SAE at one",
    )
    wanted = float(own_k(sae) or 0) if l0 is None else l0
    require(0 < wanted <= sae.d_sae, f"--l0={wanted:g}: must lie above 0 and not exceed the {sae.d_sae} latents")
    require((run / "config.yaml").is_file(), f"{run}: no config.yaml there; name the folder of a finished run")
    path = into or run / "calibrated" / f"{tokens}-{wanted:g}"
    origin = {"run": run.resolve().name, "sha256": checksum(run / "sae.safetensors"), "l0": wanted, "tokens": tokens}
    require(not path.exists() or is_done(path, origin), f"--into={path}: exists and holds something else; name another")
    stage(path, origin, partial(write, sae=sae, run=run, origin=origin))
    return path


def write(folder: Path, sae: SAE, run: Path, origin: dict[str, Any]) -> None:
    """Fill the folder of a calibrated SAE: sae.safetensors, sae.json, latents.csv."""
    cfg = from_dict(read_config(run / "config.yaml"))
    stream = open_stream(cfg)
    x = activations(cfg, stream, origin["tokens"])  # [n, d_in]
    threshold = sae.threshold
    assert isinstance(threshold, Tensor)
    before, old = mean_l0(sae, x, cfg.evaluate.batch), float(threshold)
    largest = largest_acts(sae, x, origin["l0"], cfg.evaluate.batch)
    threshold.fill_(threshold_for(largest, len(x) * origin["l0"]))
    after = mean_l0(sae, x, cfg.evaluate.batch)
    say(f"threshold {old:.4g} -> {float(threshold):.4g}, mean L0 {before:.2f} -> {after:.2f} on {len(x):,} tokens")
    save_sae(sae, folder)
    write_json(
        folder / "sae.json", sae.describe() | {"calibrated": origin | {"n_tokens": len(x), "measured_l0": after}}
    )
    shutil.copy(run / "latents.csv", folder / "latents.csv")


def activations(cfg: RunConfig, stream: Stream, tokens: str) -> Tensor:
    """The activations that a threshold is set on: [n, d_in]."""
    if tokens == "train":
        return stream.shards.read(0).rows()[: cfg.evaluate.threshold_tokens]
    heldout = HeldOut(stream.lm(), stream.store, stream.stats, cfg.evaluate, cfg.data.dtype)
    return torch.cat([batch.stored for batch in heldout.batches]).cpu()


def mean_l0(sae: SAE, x: Tensor, batch: int) -> float:
    """The mean number of active latents over x [n, d_in]."""
    return float(torch.cat([sae.encode(part).l0() for part in x.split(batch)]).double().mean())
