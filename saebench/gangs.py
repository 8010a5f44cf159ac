"""Which runs of a sweep are trained together, and whether they can begin at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from saebench.checks import InputError
from saebench.config import RunConfig, as_dict
from saebench.store import key_of
from saebench.track import check_trackers


def check_outputs(configs: Sequence[RunConfig]) -> None:
    """Raise InputError unless every outputs folder can be written to, and every tracker asked for is installed."""
    for outputs in {cfg.outputs for cfg in configs}:
        folder = Path(outputs)
        existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise InputError(f"outputs={outputs}: {existing} cannot be written to; choose another folder")
    check_trackers({cfg.tracker.name for cfg in configs})


def gangs(configs: Sequence[RunConfig]) -> list[list[int]]:
    """Indices of the runs that share model, data and batches, in order of appearance."""
    groups: dict[str, list[int]] = {}
    for i, cfg in enumerate(configs):
        train = cfg.train
        shared = [as_dict(cfg.model), as_dict(cfg.data), cfg.cache, cfg.device, train.lm_device, cfg.outputs]
        order = [train.batch_size, train.order_seed, train.window_tokens, train.importance_tokens]
        groups.setdefault(key_of({"shared": shared, "order": order}), []).append(i)
    return list(groups.values())


def passes(configs: Sequence[RunConfig]) -> list[list[RunConfig]]:
    """Groups of runs whose caches one pass of a model over its text can fill: of each a config for every one of several sites."""
    groups: dict[str, dict[tuple[int, str], RunConfig]] = {}
    for cfg in configs:
        if cfg.cache == "disk":
            model = {name: value for name, value in as_dict(cfg.model).items() if name not in ("layer", "site")}
            shared = [model, as_dict(cfg.data), cfg.device, cfg.train.lm_device, cfg.outputs]
            groups.setdefault(key_of({"shared": shared}), {}).setdefault((cfg.model.layer, cfg.model.site), cfg)
    return [list(sites.values()) for sites in groups.values() if len(sites) > 1]
