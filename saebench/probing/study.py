"""The story of probing: finished runs -> activations of a task's examples -> latents by view -> scores, a stage of each run.

RUN/probing/<task>-<view>-<key> holds summary.csv (a row for each score and class) and details.csv; the activations are
shared by all runs of one model, layer and site.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import torch

from saebench.checks import require
from saebench.config import RunConfig, from_dict
from saebench.devices import resolve_device, resolve_dtype
from saebench.finished import parse
from saebench.interpret.command import columns_of
from saebench.interpret.study import open_run as open_stream_too
from saebench.interpret.study import parse_view
from saebench.lm import LM, ModelInfo, describe, load_lm, load_tokenizer
from saebench.probing.activations import Ragged, open_activations
from saebench.probing.pool import Applied, pooled
from saebench.probing.prompts import Examples
from saebench.progress import say
from saebench.runconfig import read_config
from saebench.runs import describe_run, read_latents, write_csv
from saebench.saes import SAE
from saebench.saes.files import load_sae
from saebench.sparse import SparseLatents
from saebench.store import checked, checksum, key_of, stage
from saebench.views import View, kept_latents

NUMERICS = 1  # raised by hand when the scores of unchanged weights change
Rows = list[dict[str, Any]]


@dataclass
class Opened:
    """A finished run and its SAE; what needs the model is loaded when it is asked for."""

    run: Path
    cfg: RunConfig
    sae: SAE

    def apply(self, view: View) -> Applied:
        """A view with what it may use and its threshold, for which budgets of mode threshold read training activations."""
        keep = kept_latents(view, self.sae, read_latents(self.run / "latents.csv"), self.cfg.evaluate.seed)
        tuned = view.kind == "budget" and view.mode == "threshold"
        return Applied(view, keep, open_stream_too(self.run).threshold(view) if tuned else None)


def open_run(run: Path) -> Opened:
    """The SAE of a finished run; its outputs folder may have been moved. Raises InputError for any other folder."""
    file = run / "config.yaml"
    require(file.is_file(), f"{run}: no config.yaml there; name the folder of a finished run")
    cfg = replace(from_dict(read_config(file)), outputs=str(run.resolve().parent.parent))
    return Opened(run, cfg, load_sae(run, resolve_device(cfg.device)))


class Material:
    """What the SAEs of one site share: a task's examples and their activations."""

    def __init__(self, examples: Examples, ragged: Ragged) -> None:
        self.examples, self.ragged = examples, ragged
        self.made: dict[str, Any] = {}  # by the task, once for all runs and views

    @property
    def x(self) -> torch.Tensor:
        """The mean activation of each example: [n, d_in] float64."""
        return self.once("x", self.ragged.means)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, made the first time."""
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]


class Task(Protocol):
    """What is asked of latents."""

    cfg: Any  # all of which the scores depend on, with `batch`

    @property
    def name(self) -> str:
        """Of its rows, and of its folders' names."""
        ...

    def examples(self, tokenizer: Any) -> Examples:
        """What the model reads."""
        ...

    def measure(self, material: Material, sae: SAE, latents: SparseLatents) -> tuple[Rows, Rows]:
        """The rows of summary.csv and of details.csv."""
        ...


@dataclass
class Study:
    """One task for some runs; what they share is made once."""

    task: Task
    materials: dict[str, Material] = field(default_factory=dict)

    def material(self, cfg: RunConfig) -> Material:
        """The examples and their activations at a run's site."""
        info, device = describe(cfg.model), resolve_device(cfg.device)
        dtype = str(resolve_dtype(cfg.model.dtype, device)).removeprefix("torch.")
        named: list[Any] = [info.fingerprint(), cfg.model.layer, cfg.model.site, cfg.model.batch, dtype, cfg.data.dtype]
        key = key_of({"material": named, "outputs": cfg.outputs})
        if key not in self.materials:
            self.materials.clear()  # activations are kept in memory
            self.materials[key] = self.open(cfg, info, dtype, cache(lambda: load_lm(cfg.model, device)))
        return self.materials[key]

    def open(self, cfg: RunConfig, info: ModelInfo, dtype: str, lm: Callable[[], LM]) -> Material:
        """Make what is missing of it."""
        examples = self.task.examples(load_tokenizer(cfg.model))
        return Material(examples, open_activations(Path(cfg.outputs), cfg, info, dtype, lm, examples))

    def run(self, run: Path, views: Sequence[str]) -> Rows:
        """The rows of a run's views, measured if they are not yet: all views that are missing in one pass."""
        opened = open_run(run)
        material = self.material(opened.cfg)
        wanted = [parse_view(text, opened.sae) for text in dict.fromkeys(views)]
        inputs = [self.inputs(opened, material, view) for view in wanted]
        folders = [self.folder(run, *pair) for pair in zip(wanted, inputs, strict=True)]
        missing = [i for i, folder in enumerate(folders) if not (folder / "done.json").is_file()]
        applied = [opened.apply(wanted[i]) for i in missing]
        found = pooled(opened.sae, applied, material.ragged, self.task.cfg.batch) if missing else []
        for i, latents in zip(missing, found, strict=True):
            say(f"{self.task.name}: {run.name}, view {wanted[i].name()}")
            stage(
                folders[i],
                inputs[i],
                partial(self.write, opened=opened, view=wanted[i], material=material, latents=latents),
            )
        return [row for folder in folders for row in rows_of(folder)]

    def inputs(self, opened: Opened, material: Material, view: View) -> dict[str, Any]:
        """All that the scores of a view depend on."""
        weights = checksum(opened.run / "sae.safetensors")
        settings = vars(self.task.cfg) | {"task": self.task.name, "labels": material.examples.label.tolist()}
        split = material.examples.test.tolist()
        named = {"numerics": NUMERICS, "sae": weights, "activations": material.ragged.key, "view": asdict(view)}
        return named | {"settings": key_of(settings | {"test": split})}

    def folder(self, run: Path, view: View, inputs: dict[str, Any]) -> Path:
        """RUN/probing/<task>-<view>-<key>."""
        return run / "probing" / f"{self.task.name}-{view.name()}-{key_of(inputs)}"

    def write(self, folder: Path, opened: Opened, view: View, material: Material, latents: SparseLatents) -> None:
        """Measure a view and write its files."""
        summary, details = self.task.measure(material, opened.sae, latents)
        named = describe_run(opened.run.resolve().name, opened.cfg, opened.sae.d_in) | columns_of(view)
        write_csv(folder / "summary.csv", [named | row for row in summary])
        write_csv(folder / "details.csv", details)


def rows_of(folder: Path) -> Rows:
    """The rows of a finished summary; an empty cell is missing."""
    return parse(checked(folder, "summary.csv").read_text(encoding="utf-8")).to_dict("records")
