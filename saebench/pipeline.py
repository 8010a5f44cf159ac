"""The story from top to bottom: text -> tokens -> activations -> trained SAEs -> metrics.

Runs that read the same batches of the same activations form a gang: the language model runs once, every batch is read
once, and all members train on it. A run that is done is left as it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from saebench.checkpoint import Saver, clear, why_failed
from saebench.checks import InputError
from saebench.config import RunConfig, as_dict, recorded
from saebench.evaluate import document_rows, evaluate, l0_rows
from saebench.gangs import check_outputs, gangs
from saebench.heldout import HeldOut, Subject
from saebench.member import Member
from saebench.memory import keep_freed_memory
from saebench.room import waves
from saebench.running import Running, sweep
from saebench.runs import METRICS, describe_run, environment, read_latents, write_csv
from saebench.sae_configs import keyed
from saebench.saes import SAE
from saebench.saes.files import load_sae, save_sae
from saebench.similarity import save_gram
from saebench.store import (
    begin,
    finish,
    is_done,
    key_of,
    open_partial,
    partial_of,
    stage,
    write_json,
    write_text,
)
from saebench.stream import Stream, cache_sites, open_batches, open_stream
from saebench.track import Following, tell_metrics
from saebench.train import importance, train
from saebench.views import tune_thresholds

TRAIN_NUMERICS = 3  # raised by hand when the weights of an unchanged config change
VIEW_KEYS = ("sizes", "rules", "orders", "scale_k", "budgets", "cross", "ce_views")  # of evaluate: each SAE's own
PUBLISHED = ("l0.csv", "metrics.csv")  # of the latest evaluation, in the run's folder, with its evaluation.json
EVALUATE_NUMERICS = 5  # raised by hand when the metrics of unchanged weights change


def run_inputs(cfg: RunConfig, stream: Stream) -> dict[str, Any]:
    """All that a run's weights depend on."""
    config = as_dict(cfg)
    own = {name: config[name] for name in ("sparsity", "train", "seed")} | {"sae": keyed(config["sae"])}
    del own["train"]["lm_device"]
    own["train"]["n_tokens"] = cfg.train_tokens
    own["train"]["precision"] = cfg.train.resolve_precision(stream.device.type)
    return {"numerics": TRAIN_NUMERICS, "activations": stream.inputs, **own}


def run_folder(cfg: RunConfig, stream: Stream) -> Path:
    """outputs/runs/<variant>-<key>."""
    return Path(cfg.outputs) / "runs" / f"{cfg.sae.name}-{key_of(run_inputs(cfg, stream))}"


def run(configs: Sequence[RunConfig], evaluate_only: bool = False) -> list[Path]:
    """Train (unless evaluate_only) and evaluate every run that is not done; returns the run folders in the given order.

    Raises InputError, after the others are done, if the loss of a run stopped being finite or its memory ran out.
    """
    check_outputs(configs)
    for outputs in {cfg.outputs for cfg in configs}:
        sweep(Path(outputs))
    folders: dict[int, Path] = {}
    failed: list[str] = []
    cache_sites(configs)
    for gang in gangs(configs):
        stream = open_stream(configs[gang[0]])
        mine = {i: run_folder(configs[i], stream) for i in gang}
        folders |= mine
        if not evaluate_only:
            train_gang([configs[i] for i in gang], list(mine.values()), stream)
        trained = [i for i in gang if is_done(mine[i], run_inputs(configs[i], stream))]
        if evaluate_only and len(trained) < len(gang):
            raise InputError(f"{len(gang) - len(trained)} of these runs are not trained yet; `saebench train` them")
        evaluate_gang([configs[i] for i in trained], [mine[i] for i in trained], stream)
        failed += [f"{mine[i].name}: {why_failed(partial_of(mine[i]))}" for i in gang if i not in trained]
    if failed:
        whole = (
            f"{len(failed)} of {len(configs)} runs failed; their last good checkpoints stay, and the others are done"
        )
        raise InputError(f"{whole}: {'; '.join(failed)}")
    return [folders[i] for i in range(len(configs))]


Members = dict[Path, Member]  # by run folder


def train_gang(
    configs: list[RunConfig], folders: list[Path], stream: Stream, keep: Callable[[Members], Members] = dict
) -> None:
    """Train every run of a gang that is not done, in one pass over the batches or in waves of those that fit into memory.

    Those that `keep` returns are saved, of each wave. Ranks train together; the first locks, saves and writes.
    """
    world = stream.world
    with ExitStack() as locks:
        todo: dict[Path, RunConfig] = {}
        for cfg, folder in sorted(zip(configs, folders, strict=True), key=lambda pair: pair[1]):
            begins = partial(begin, folder, run_inputs(cfg, stream), locks)
            if folder not in todo and world.decided(begins):
                todo[folder] = cfg
        if not todo:
            return
        keep_freed_memory()
        jobs = list(todo.items())
        for wave in waves(list(todo.values()), stream.stats, stream.device, world):
            train_wave(dict(jobs[i] for i in wave), stream, keep)


def train_wave(todo: dict[Path, RunConfig], stream: Stream, keep: Callable[[Members], Members]) -> None:
    """Train some runs in one pass over the batches, and save those that `keep` returns.

    Each goes on from its newest checkpoint, in the folder of the unfinished run. That of a run that failed stays there.
    """
    world, first = stream.world, next(iter(todo.values()))
    members = {folder: Member(cfg, stream.stats, stream.device, world) for folder, cfg in todo.items()}
    batches = open_batches(first, stream)
    saver = Saver({partial_of(folder): member for folder, member in members.items()}, first.checkpoint, world)
    followed = {folder.name: member for folder, member in members.items() if world.leads}
    running = Running(Path(first.outputs), "training", followed)
    with saver.watching(), Following(followed) as trackers, running:
        train(list(members.values()), batches, running.before(trackers.before(saver.after_step)))
    saver.mark_failed()
    finished = {folder: member for folder, member in members.items() if member.failure is None}
    whole = keep(finished)
    for dropped in finished.keys() - whole.keys() if world.leads else ():
        shutil.rmtree(partial_of(dropped))
    tokens = first.train.importance_tokens
    columns = importance([m.opened for m in whole.values()], batches, tokens, stream.device) if whole else []
    for (folder, member), latents in zip(whole.items(), columns, strict=True):
        with member.opened() as sae:
            if world.leads:
                save_run(folder, member, sae, latents, stream)
    world.wait()


def save_run(folder: Path, member: Member, sae: SAE, latents: list[dict[str, Any]], stream: Stream) -> None:
    """Write a trained member, its SAE with all weights, and what is known of its latents, as a finished run."""
    cfg, inputs = member.cfg, run_inputs(member.cfg, stream)
    unfinished = open_partial(folder, inputs)
    clear(unfinished)
    save_sae(sae, unfinished)
    write_csv(unfinished / "train.csv", member.log)
    write_csv(unfinished / "latents.csv", latents)
    from omegaconf import OmegaConf

    write_text(unfinished / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(recorded(cfg))))
    ranks = {"ranks": stream.world.size, "activations": stream.stats.summary}
    write_json(unfinished / "env.json", environment(stream.device) | ranks)
    finish(unfinished, folder, inputs)


def evaluate_gang(
    configs: list[RunConfig], folders: list[Path], stream: Stream, opened: dict[str, HeldOut] | None = None
) -> None:
    """Evaluate, in one pass over the held-out tokens, the runs whose evaluation is missing; then publish all metrics.csv.

    `opened` keeps the held-out activations for a later call. Each of several ranks evaluates some of the runs.
    """
    world = stream.world
    groups: dict[str, list[int]] = {}
    for i, cfg in enumerate(configs):
        groups.setdefault(key_of(evaluation_inputs(cfg)), []).append(i)
    keep_freed_memory()
    opened = {} if opened is None else opened
    for group in groups.values():
        stages = {i: evaluation_stage(folders[i], configs[i]) for i in group}
        todo = {folders[i]: configs[i] for i in group if not world.decided(partial(is_done, *stages[i]))}
        own = dict(list(todo.items())[world.rank :: world.size])
        if own:
            with Running(Path(configs[group[0]].outputs), "evaluating", dict.fromkeys(folder.name for folder in own)):
                measure(own, stream, open_heldout(configs[group[0]], stream, opened))
        world.wait()
        for i in group if world.leads else ():
            publish(folders[i], configs[i])
    world.wait()


def publish(folder: Path, cfg: RunConfig) -> None:
    """Copy a finished evaluation to where the latest one is looked for."""
    evaluation, inputs = evaluation_stage(folder, cfg)
    for name in PUBLISHED:
        write_text(folder / name, (evaluation / name).read_text(encoding="utf-8"))
    write_json(folder / "evaluation.json", inputs)


def evaluation_inputs(cfg: RunConfig) -> dict[str, Any]:
    """All that metrics depend on beside the run."""
    return {"numerics": EVALUATE_NUMERICS, "evaluate": as_dict(cfg.evaluate)}


def evaluation_stage(folder: Path, cfg: RunConfig) -> tuple[Path, dict[str, Any]]:
    """The folder and the inputs of a run's evaluation."""
    inputs = evaluation_inputs(cfg)
    return folder / "evaluations" / key_of(inputs), inputs


def heldout_key(cfg: RunConfig) -> str:
    """The key of what evaluations must agree in to share the held-out tokens."""
    return key_of({name: value for name, value in as_dict(cfg.evaluate).items() if name not in VIEW_KEYS})


def open_heldout(cfg: RunConfig, stream: Stream, opened: dict[str, HeldOut]) -> HeldOut:
    """The held-out tokens with their activations, kept in `opened` for all evaluations of a stream that differ only in views."""
    key = key_of({"stream": stream.inputs, "evaluate": heldout_key(cfg)})
    if key not in opened:
        opened.clear()  # their activations are kept in memory
        opened[key] = HeldOut(stream.lm(), stream.store, stream.stats, cfg.evaluate, cfg.data.dtype)
    return opened[key]


def measure(todo: dict[Path, RunConfig], stream: Stream, heldout: HeldOut) -> None:
    """Evaluate trained runs and write each evaluation as a stage of its own."""
    cfg = next(iter(todo.values()))
    device = heldout.lm.device
    tuning = stream.shards.read(0).rows()[: cfg.evaluate.threshold_tokens].to(device)
    subjects = []
    for folder, one in todo.items():
        sae = load_sae(folder, device)
        budgets = [j for j in one.evaluate.budgets if j <= sae.d_sae]
        thresholds = tune_thresholds(sae, tuning, budgets, one.evaluate.batch)
        subjects.append(Subject(folder.name, sae, read_latents(folder / "latents.csv"), thresholds, one.evaluate))
    rows = evaluate(heldout, subjects)
    named = {folder: describe_run(folder.name, one, len(stream.stats.mean)) for folder, one in todo.items()}
    metrics = {folder: [names | row for row in rows[folder.name]] for folder, names in named.items()}
    for (folder, one), subject in zip(todo.items(), subjects, strict=True):
        path, inputs = evaluation_stage(folder, one)
        stage(path, inputs, partial(save_evaluation, metrics=metrics[folder], heldout=heldout, subject=subject))
    tell_metrics(todo, metrics)


def save_evaluation(folder: Path, metrics: list[dict[str, Any]], heldout: HeldOut, subject: Subject) -> None:
    """Write what was measured of one run: its rows, its sums by document, its latents on the sampled tokens."""
    write_csv(folder / "metrics.csv", metrics, METRICS)
    write_csv(folder / "documents.csv", list(document_rows(heldout, subject)))
    write_csv(folder / "l0.csv", list(l0_rows(subject)))
    assert subject.gram is not None
    save_gram(folder / "latents.safetensors", subject.gram, heldout.sampled["typical"])
