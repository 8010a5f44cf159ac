"""The story of interpretability: a finished run -> contexts of its latents, by view -> explanations and scores -> summaries.

Contexts are a stage of RUN/interpretability/<view>-<key>; scores, explanations and the summary are added beside them, and
asking for others adds to what is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saebench.checks import InputError, require
from saebench.config import RunConfig, from_dict
from saebench.interpret.collect import Collected, collect, tokens_to_read
from saebench.interpret.files import vocabulary_of, write
from saebench.interpret.logits import LatentLogits, latent_logits
from saebench.interpret.settings import CollectConfig
from saebench.lm import load_tokenizer
from saebench.progress import Progress
from saebench.runconfig import read_config
from saebench.runs import describe_run, read_latents
from saebench.saes import SAE
from saebench.saes.files import load_sae
from saebench.store import checksum, key_of, stage
from saebench.stream import Stream, open_stream
from saebench.views import View, kept_latents, own_k, tune_thresholds

NUMERICS = 1  # raised by hand when the contexts of unchanged weights change
FORMS = "full, prefix:M, prefix:M:J, budget:J, budget:J:threshold or pruned:RULE:M"


@dataclass
class Opened:
    """A finished run with what its views need."""

    run: Path
    cfg: RunConfig
    sae: SAE
    stream: Stream
    made: dict[str, Any] = field(default_factory=dict)  # what all views share, made once

    def logits(self) -> LatentLogits:
        """Promoted and suppressed tokens of every latent."""
        if "logits" not in self.made:
            with Progress(self.sae.d_sae, "latents", "logits") as progress:
                self.made["logits"] = latent_logits(self.sae, self.stream.lm(), progress=progress)
        return self.made["logits"]

    def threshold(self, view: View) -> float | None:
        """The threshold that gives a view its mean L0, of the budgets that need one."""
        if view.kind != "budget" or view.mode != "threshold":
            return None
        assert view.budget is not None
        x = self.stream.shards.read(0).rows()[: self.cfg.evaluate.threshold_tokens].to(self.stream.device)
        return tune_thresholds(self.sae, x, [view.budget], self.cfg.evaluate.batch)[view.budget]

    def keep(self, view: View) -> Tensor:
        """[d_sae] (bool): the latents that a view may use."""
        return kept_latents(view, self.sae, read_latents(self.run / "latents.csv"), self.cfg.evaluate.seed)


def open_run(run: Path) -> Opened:
    """The SAE and the activations of a finished run; its outputs folder may have been moved. Raises InputError for others."""
    file = run / "config.yaml"
    require(file.is_file(), f"{run}: no config.yaml there; name the folder of a finished run")
    cfg = from_dict(read_config(file))
    cfg = replace(cfg, outputs=str(run.resolve().parent.parent))
    stream = open_stream(cfg)
    return Opened(run, cfg, load_sae(run, stream.device), stream)


def parse_view(text: str, sae: SAE) -> View:
    """The view that a short name stands for, one of FORMS. Raises InputError for anything else."""
    kind, *rest = text.split(":")
    given = f"--views={text}"
    k = own_k(sae)
    if kind == "full" and not rest:
        return View("full", sae.d_sae, sae.modes[0], budget=k)
    if kind == "prefix" and len(rest) in (1, 2):
        m = size(given, rest[0], sae.d_sae)
        if len(rest) == 1:
            return View("prefix", m, sae.modes[0], "", "select_then_prune", k)
        mode = "batch" if "batch" in sae.modes else "topk"
        return View("prefix", m, mode, "", "prune_then_select", size(given, rest[1], m))
    if kind == "budget" and len(rest) in (1, 2) and rest[1:] in ([], ["threshold"]):
        return View("budget", sae.d_sae, rest[1] if rest[1:] else "topk", budget=size(given, rest[0], sae.d_sae))
    rules = ("energy", "frequency", "norm_energy", "decoder_norm", "random")
    if kind == "pruned" and len(rest) == 2 and rest[0] in rules:
        return View("pruned", size(given, rest[1], sae.d_sae), sae.modes[0], rest[0], "select_then_prune", k)
    raise InputError(f"{given}: give {FORMS} (RULE: {', '.join(rules)})")


def size(given: str, text: str, most: int) -> int:
    """A number of latents, at least 1 and at most `most`."""
    require(text.isdecimal() and 1 <= int(text) <= most, f"{given}: {text} must be a number from 1 to {most}")
    return int(text)


def inputs_of(opened: Opened, view: View, cfg: CollectConfig) -> dict[str, Any]:
    """All that the contexts of a view depend on."""
    limits = {name: value for name, value in vars(cfg).items() if name not in ("memory_gb", "batch")}
    weights = checksum(opened.run / "sae.safetensors")
    return {"numerics": NUMERICS, "sae": weights, "activations": opened.stream.inputs, "view": asdict(view), **limits}


def folder_of(run: Path, view: View, inputs: dict[str, Any]) -> Path:
    """RUN/interpretability/<view>-<key>."""
    return run / "interpretability" / f"{view.name()}-{key_of(inputs)}"


def collect_views(opened: Opened, views: Sequence[View], cfg: CollectConfig) -> list[Path]:
    """The folder of each view, with its contexts collected if they are not yet: all views in one pass."""
    inputs = [inputs_of(opened, view, cfg) for view in views]
    folders = [folder_of(opened.run, view, given) for view, given in zip(views, inputs, strict=True)]
    missing = [i for i, folder in enumerate(folders) if not (folder / "done.json").is_file()]
    if missing:
        found = one_pass(opened, [views[i] for i in missing], cfg)
        vocabulary = vocabulary_of(load_tokenizer(opened.cfg.model), vocabulary_size(opened))
        for i, one in zip(missing, found, strict=True):
            stage(folders[i], inputs[i], partial(write, collected=one, logits=opened.logits(), vocabulary=vocabulary))
    return folders


def one_pass(opened: Opened, views: Sequence[View], cfg: CollectConfig) -> list[Collected]:
    """Collect some views."""
    shards = opened.stream.shards
    keeps, thresholds = [opened.keep(view) for view in views], [opened.threshold(view) for view in views]
    with (
        torch.no_grad(),
        Progress(tokens_to_read(shards, cfg), "tokens", f"contexts of {len(views)} views") as progress,
    ):
        return collect(opened.sae, views, keeps, thresholds, shards, cfg, progress)


def vocabulary_size(opened: Opened) -> int:
    """The number of token ids that the model can promote."""
    return len(opened.stream.lm().model.get_output_embeddings().weight)


def levels_of(sae: SAE, view: View) -> dict[str, tuple[int, int]]:
    """The levels of a nested dictionary that a view has, as ranges of latents (low, high) by name; none for others."""
    prefixes: list[int] = getattr(sae, "prefixes", [])
    inside = [*(p for p in prefixes if p < view.m), view.m] if view.kind != "pruned" and len(prefixes) > 1 else []
    ranges = list(pairwise([0, *inside]))
    return {f"{low}-{high - 1}": (low, high) for low, high in ranges} if len(ranges) > 1 else {}


def described(opened: Opened) -> dict[str, Any]:
    """The columns that name the run in tables."""
    return describe_run(opened.run.resolve().name, opened.cfg, opened.sae.d_in)
