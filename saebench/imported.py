"""SAEs from elsewhere as runs: converted into outputs/runs, and evaluated there beside ours.

The run of such an SAE is the SAE with a model, a site and a data set; config.yaml has them, and `origin`, which tells imported
SAEs from ours and from each other in tables. Training keys in it are those of conf/, as nothing is known of its training.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from saebench.checks import InputError, require
from saebench.compose import conf_folder, load, load_over
from saebench.config import RunConfig, as_dict, recorded
from saebench.interop.facts import Facts
from saebench.interop.source import Found, origin_of, read_sae
from saebench.lm import describe
from saebench.pipeline import check_outputs, evaluate_gang
from saebench.runs import write_csv
from saebench.saes.files import save_sae
from saebench.store import key_of, lock, stage, versions, write_json, write_text
from saebench.stream import Stream, open_batches, open_stream
from saebench.train import importance

NUMERICS = 1  # raised by hand when an unchanged source becomes another SAE
TRAIN_LOG = ["step", "tokens", "loss", "fvu", "l0", "dead", "lr", "tokens_per_s", "seconds"]


def import_sae(source: str, format: str | None, overrides: Sequence[str], config_dir: str | None = None) -> Path:
    """The folder of the run that the SAE at `source` is with the model and the data of `overrides`, made if missing.

    Where the source says which model, layer and site it is of, and no override does, these are taken. Raises InputError.
    """
    found = read_sae(source, format)
    return make_run(found, config_for(found, overrides, config_dir))


def evaluate_sae(source: str, format: str | None, overrides: Sequence[str], config_dir: str | None = None) -> Path:
    """Import the SAE at `source` unless it is, and evaluate it as `saebench evaluate` does its own; the run's folder.

    `source` may be a run: its model and data hold unless `overrides` choose others. Raises InputError.
    """
    found = read_sae(source, format)
    cfg = config_for(found, overrides, config_dir)
    folder = make_run(found, cfg)
    stream = open_stream(cfg)
    measure_latents(folder, found, cfg, stream)
    evaluate_gang([cfg], [folder], stream)
    return folder


def config_for(found: Found, overrides: Sequence[str], config_dir: str | None) -> RunConfig:
    """The config of an imported SAE's run. Raises InputError for an SAE that cannot read the site's activations."""
    keys = [override.partition("=")[0].lstrip("+~") for override in overrides]
    own = [key for key in keys if key.split(".")[0] in ("sae", "experiment")]
    require(not own, f"{', '.join(own)}: the SAE brings its own; leave it out")
    path = found.path / "config.yaml"
    if found.format == "saebench" and path.is_file():
        cfg = load_over(yaml.safe_load(path.read_text(encoding="utf-8")), overrides, config_dir)
    else:
        cfg = load([*inferred(found.facts, keys), *overrides], config_dir)
        named = {"model", "model.path"} & {*keys} or found.facts.model
        require(bool(named), f"{found.name}: does not say which model it is of; add model=NAME model.layer=N")
    cfg = replace(cfg, sae=found.sae.cfg)
    width = describe(cfg.model).d_model
    require(
        width == found.sae.d_in, f"model={cfg.model.name}: has width {width}, and {found.name} reads {found.sae.d_in}"
    )
    return cfg


def inferred(facts: Facts, keys: Sequence[str]) -> list[str]:
    """Overrides that say what is known of the model and the site, without those that the user gave."""
    known = {"model.layer": facts.layer, "model.site": facts.site}
    groups = {key.split(".")[0] for key in keys}
    model = [] if facts.model is None or {"model", "model.path"} & {*keys} else model_named(facts.model)
    given = [f"{key}={value}" for key, value in known.items() if value is not None and key not in keys]
    return [*model, *given] if model or "model" in groups else []


def model_named(name: str) -> list[str]:
    """Overrides for a model by the name of its YAML, by its hub id, or by its folder. Raises InputError."""
    for path in sorted((conf_folder() / "model").glob("*.yaml")):
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
        if name.lower() in (path.stem, str(said.get("path")).lower()):
            return [f"model={path.stem}"]
    if "/" not in name:
        raise InputError(
            f"model: the SAE is of {name}, for which there is no YAML; add model=NAME or model.path=FOLDER"
        )
    return ["model=local", f"model.path={name}", f"model.name={name.rstrip('/').rpartition('/')[2]}"]


def make_run(found: Found, cfg: RunConfig) -> Path:
    """The run's folder: outputs/runs/<variant>-<key>."""
    check_outputs([cfg])
    origin = origin_of(found)
    place = {"model": as_dict(cfg.model), "data": as_dict(cfg.data)}
    inputs = {
        "numerics": NUMERICS,
        "sae": found.sae.describe(),
        "sha256": origin["sha256"],
        "format": origin["format"],
        **place,
    }
    folder = Path(cfg.outputs) / "runs" / f"{found.sae.cfg.name}-{key_of(inputs)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    stage(folder, inputs, partial(write, found=found, cfg=cfg, origin=origin))
    return folder


def write(folder: Path, found: Found, cfg: RunConfig, origin: dict[str, Any]) -> None:
    """Fill the folder of an imported run: all that a trained one has, but for latents.csv, which needs activations."""
    from omegaconf import OmegaConf

    save_sae(found.sae, folder)
    write_json(folder / "sae.json", found.sae.describe() | {"imported": origin})
    write_csv(folder / "train.csv", [], TRAIN_LOG)
    label = f"{origin['format']}:{origin['name']}:{origin['sha256'][:6]}"
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(recorded(cfg) | {"origin": label})))
    write_json(folder / "env.json", {"versions": versions()})


def measure_latents(folder: Path, found: Found, cfg: RunConfig, stream: Stream) -> None:
    """Write latents.csv, from train.importance_tokens training tokens, unless it is there."""
    with lock(folder):
        if (folder / "latents.csv").is_file():
            return
        sae = found.sae.to(stream.device)
        rows = importance(
            [lambda: nullcontext(sae)], open_batches(cfg, stream), cfg.train.importance_tokens, stream.device
        )[0]
        write_csv(folder / "latents.csv", rows)
