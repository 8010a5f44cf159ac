"""`saebench export`: an SAE in another library's format, whole or not at all, read back and compared before it is given."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from saebench.checks import InputError, one_of, require
from saebench.interop import dictionary_learning, saelens, sparsify
from saebench.interop.facts import Facts
from saebench.interop.plain import Plain, plain_of, sae_of, viewed
from saebench.interop.source import FORMATS, read_sae
from saebench.saes import SAE

TARGETS: dict[str, Callable[[Plain, Facts, Path], None]] = {
    "saelens": saelens.write,
    "sparsify": sparsify.write,
    "dictionary_learning": dictionary_learning.write,
}
TOKENS = 256  # made-up activations on which what was written is compared with what it is of
MOST = 1e-4  # of the activations' deviation: a reconstruction that differs by more is a fault


def export(source: str | Path, folder: Path, to: str, view: str = "full") -> float:
    """Write the SAE at `source` (a run, or anything `read_sae` reads) into a new folder, in the format `to`.

    Activation scale and centre are folded in, so it works on raw activations. Returns the largest difference between its
    reconstructions and ours, of TOKENS made-up activations, as a share of their deviation. Raises InputError for what the
    other library cannot express.
    """
    one_of("--to", to, tuple(TARGETS))
    require(not folder.exists() or not any(folder.iterdir()), f"{folder}: exists and is not empty; name a new folder")
    found = read_sae(source)
    plain = viewed(plain_of(found.sae), view)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(folder.name + ".partial")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        TARGETS[to](plain, found.facts, part)
        difference = compare(part, to, found.sae if view == "full" else sae_of(plain))
    except BaseException:
        shutil.rmtree(part)
        raise
    os.replace(part, folder)
    return difference


def compare(folder: Path, format: str, ours: SAE) -> float:
    """The largest difference of reconstructions, as a share of the activations' deviation. Raises InputError above MOST."""
    made, _ = FORMATS[format].read(folder)
    theirs = sae_of(made) if isinstance(made, Plain) else made
    scale = float(ours.scale) if ours.cfg.input == "dataset" else float(ours.b_dec.abs().max().clamp_min(1.0))
    noise = torch.randn(TOKENS, ours.d_in, generator=torch.Generator().manual_seed(0))  # [n, d_in]
    x = ours.centre + (ours.b_dec + noise) * scale if ours.cfg.input == "dataset" else ours.b_dec + noise * scale
    gap = (ours(x) - theirs(x)).abs().amax(1)  # [n]
    worst = float(gap.median()) / scale  # a latent at its threshold may fall on either side
    if worst > MOST:
        raise InputError(
            f"--to={format}: read back, reconstructions differ by {worst:.1e} of the activations' deviation"
        )
    return float(gap.max()) / scale
