"""The files of a run folder that are plain tables."""

from __future__ import annotations

import csv
import io
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saebench.config import RunConfig
from saebench.store import versions, write_text

METRICS = [
    "run",
    "variant",
    "model",
    "layer",
    "site",
    "data",
    "seed",
    "order_seed",
    "d_in",
    "d_sae",
    "k",
    "coefficient",
    "view",
    "rule",
    "order",
    "m",
    "budget",
    "mode",
    "tokens",
    "n_tokens",
    "ce_tokens",
    "l0",
    "l0_p05",
    "l0_p95",
    "mse",
    "nmse",
    "fvu",
    "fvu_std",
    "cosine",
    "ce_clean",
    "ce_sae",
    "ce_zero",
    "ce_mean",
    "recovered_zero",
    "recovered_mean",
    "kl",
    "cka",
    "cka_std",
    "rsa_pearson",
    "rsa_spearman",
    "dead_fraction",
    "cka_latents",
    "rsa_latents_pearson",
    "rsa_latents_spearman",
]


def write_csv(path: Path, rows: list[dict[str, Any]], columns: list[str] | None = None) -> None:
    """Write rows as CSV; numbers in full precision, what is missing or None empty. Columns default to those of the first row."""
    text = io.StringIO()
    names = columns if columns is not None else list(rows[0])
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_latents(path: Path) -> dict[str, Tensor]:
    """Frequency, energy and decoder norm of each latent: [d_sae] float64 each."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = ("frequency", "energy", "decoder_norm")
    return {name: torch.tensor([float(row[name]) for row in rows], dtype=torch.float64) for name in names}


def describe_run(name: str, cfg: RunConfig, d_in: int) -> dict[str, Any]:
    """The columns of metrics.csv that name the run."""
    coefficient = getattr(cfg.sae, "l1", getattr(cfg.sae, "l0", None))
    return {
        "run": name,
        "variant": cfg.sae.name,
        "model": cfg.model.name,
        "layer": cfg.model.layer,
        "site": cfg.model.site,
        "data": cfg.data.name,
        "seed": cfg.seed,
        "order_seed": cfg.train.order_seed,
        "d_in": d_in,
        "d_sae": cfg.sae.d_sae,
        "k": getattr(cfg.sae, "k", None),
        "coefficient": coefficient,
    }


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, device and threads, for env.json."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"versions": versions(), "device": str(device), "device_name": name, "threads": torch.get_num_threads()}
