"""A pruned SAE as an SAE of its own: the tensors of the kept latents alone, smaller on disk and in compute.

The kept latents stay in dictionary order, so a Matryoshka SAE keeps its nesting; latents.csv says which latents of the
parent they are, and their importance there. Such an SAE selects among what it has: prune_then_select. Where a latent's
activity does not depend on the others (ReLU, JumpReLU, the threshold of BatchTopK and Matryoshka) select_then_prune is the
same; where each token ranks all latents (TopK, HierarchicalTopK) it is not an SAE of the kept latents, and is refused.
"""

from __future__ import annotations

import csv
import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saebench.checks import at_least, one_of, require
from saebench.config import ORDERS, RULES
from saebench.runs import read_latents, write_csv
from saebench.sae_configs import (
    BatchTopKConfig,
    GatedConfig,
    HierarchicalConfig,
    JumpReLUConfig,
    LatticeConfig,
    MatryoshkaConfig,
    MultiTopKConfig,
    ReLUConfig,
    SAEConfig,
    TopKConfig,
)
from saebench.saes import SAE, Stats, build
from saebench.saes.files import load_sae, save_sae
from saebench.store import checksum, is_done, stage, write_json
from saebench.views import View, kept_latents


def prune(run: Path, rule: str, keep: int, order: str, into: Path | None = None, seed: int = 0) -> Path:
    """Save the `keep` best latents of the SAE in the folder `run` by `rule` as an SAE; its folder, made unless it is there.

    The folder is `into`, or run/pruned/RULE-KEEP. `seed` is of the rule random. Raises InputError for what a pruned SAE cannot
    be, for a run without what the rule needs, and for a folder that holds something else.
    """
    one_of("--rule", rule, RULES)
    one_of("--order", order, ORDERS)
    sae = load_sae(run)
    at_least("--keep", keep, 1)
    require(keep <= sae.d_sae, f"--keep={keep}: the SAE in {run} has {sae.d_sae} latents")
    require(
        order == "prune_then_select" or "topk" not in sae.modes,
        f"--order={order}: each token of a {sae.cfg.name} SAE selects among all {sae.d_sae} latents, so what is left of the"
        " selection is no SAE of the kept ones; use prune_then_select",
    )
    require((run / "latents.csv").is_file(), f"{run}: no latents.csv there; name the folder of a finished run")
    named = f"{rule}-{seed}-{keep}" if rule == "random" else f"{rule}-{keep}"
    path = into or run / "pruned" / named
    origin = {"run": run.resolve().name, "sha256": checksum(run / "sae.safetensors"), "rule": rule, "keep": keep}
    origin |= {"order": order, "seed": seed if rule == "random" else None}
    require(not path.exists() or is_done(path, origin), f"--into={path}: exists and holds something else; name another")
    stage(path, origin, partial(write, sae=sae, run=run, origin=origin))
    return path


def write(folder: Path, sae: SAE, run: Path, origin: dict[str, Any]) -> None:
    """Fill the folder of a pruned SAE: sae.safetensors, sae.json, latents.csv."""
    view = View("pruned", origin["keep"], sae.modes[0], origin["rule"])
    keep = kept_latents(view, sae, read_latents(run / "latents.csv"), origin["seed"] or 0)
    smaller = pruned(sae, keep)
    save_sae(smaller, folder)
    write_json(folder / "sae.json", smaller.describe() | {"pruned": origin})
    with (run / "latents.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    write_csv(folder / "latents.csv", [rows[i] for i in keep.nonzero().squeeze(1).tolist()])


def pruned(sae: SAE, keep: Tensor) -> SAE:
    """The SAE made of the latents in `keep` [d_sae] (bool), in dictionary order."""
    zeros = torch.zeros(sae.d_in)
    smaller = build(pruned_config(sae.cfg, keep), Stats(zeros, 1.0, zeros), seed=0)
    shapes = {name: t.shape for name, t in smaller.state_dict().items()}
    kept = keep.nonzero().squeeze(1)  # [m]
    smaller.load_state_dict({name: cut(t, shapes[name], kept) for name, t in sae.state_dict().items()})
    return smaller.requires_grad_(False)


def cut(tensor: Tensor, shape: torch.Size, kept: Tensor) -> Tensor:
    """The entries of a parameter that belong to kept latents; latents run along the axis where `shape` is smaller."""
    for axis, (mine, wanted) in enumerate(zip(tensor.shape, shape, strict=True)):
        if mine != wanted:
            tensor = tensor.index_select(axis, kept)
    return tensor


def pruned_config(cfg: SAEConfig, keep: Tensor) -> SAEConfig:
    """The configuration for the kept latents: k at most their number, prefixes and budgets cut to them, no L0 to steer to."""
    m = int(keep.sum())
    changes: dict[str, Any] = {"d_sae": m}
    if isinstance(cfg, ReLUConfig | GatedConfig | JumpReLUConfig):
        changes["target_l0"] = None
    if isinstance(cfg, TopKConfig | MultiTopKConfig | BatchTopKConfig | MatryoshkaConfig | HierarchicalConfig):
        changes["k"] = min(cfg.k, m)
    if isinstance(cfg, MatryoshkaConfig | LatticeConfig):
        changes["prefixes"] = sorted({int(keep[:p].sum()) for p in cfg.prefixes or []} - {0})
    if isinstance(cfg, LatticeConfig):
        changes["per_step"] = min(cfg.per_step, len(changes["prefixes"]))
    if isinstance(cfg, HierarchicalConfig) and m < cfg.k:
        changes["budgets"] = ",".join(map(str, [*(j for j in cfg.budget_list() if j < m), m]))
    return dataclasses.replace(cfg, **changes)
