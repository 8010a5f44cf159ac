"""The commands that make runs, and those that look after them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saebench.checks import InputError
from saebench.cli.app import ConfigDir, Outputs, Overrides, app
from saebench.cli.complete import run_folders


@app.command()
def train(overrides: Overrides = None, config_dir: ConfigDir = None) -> None:
    """Cache activations if missing, train one SAE, evaluate it; the last line printed is the run folder."""
    from saebench.compose import load

    cfg = load(overrides or [], config_dir)
    from saebench.engines import require_local
    from saebench.pipeline import run

    require_local(cfg, "train")
    print(run([cfg])[0])


@app.command()
def sweep(overrides: Overrides = None, config_dir: ConfigDir = None) -> None:
    """Train and evaluate a grid: comma lists (sae.k=16,32) or experiment=NAME; runs that are done are skipped."""
    from saebench.compose import load_sweep

    configs = load_sweep(overrides or [], config_dir)
    from saebench.engines import sweep

    for folder in dict.fromkeys(sweep(configs)):
        print(folder)


@app.command()
def search(
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    trials: Annotated[int, typer.Option(help="Trials in all; those of an earlier command count")] = 16,
    at_once: Annotated[int, typer.Option(help="Trials trained in one pass, before the next are chosen")] = 4,
    by: Annotated[str, typer.Option(help="What is lowered, over the last tenth of training: loss, or fvu")] = "loss",
    seed: Annotated[int, typer.Option(help="Of the sampler")] = 0,
) -> None:
    """Search keys with Optuna: 'train.lr=interval(1e-4,1e-2)'; the best run's folder is the last line printed."""
    from saebench.space import split_space

    fixed, axes = split_space(overrides or [])
    from saebench.tune import open_search, trial_table, tune

    asked = open_search(fixed, axes, by, seed, config_dir)
    rows = tune(asked, trials, at_once)
    print(trial_table(asked, rows))
    print(f"{len(rows)} trials in {asked.path / 'trials.csv'}")
    print(Path(asked.base.outputs) / "runs" / next(row["run"] for row in rows if row["run"]))


@app.command()
def plan(overrides: Overrides = None, config_dir: ConfigDir = None) -> None:
    """State how long a sweep would take, and the disk and memory, from short measurements here; writes nothing."""
    from saebench.compose import load_sweep

    configs = load_sweep(overrides or [], config_dir)
    from saebench.plan import plan

    print(plan(configs))


@app.command()
def cache(overrides: Overrides = None, config_dir: ConfigDir = None) -> None:
    """Tokenise the text and cache the activations of runs; several sites (model.layer=6,12) in one pass of the model."""
    from saebench.compose import load_sweep

    configs = load_sweep(overrides or [], config_dir)
    if any(cfg.cache == "stream" for cfg in configs):
        raise InputError("cache=stream: this command writes the cache; use cache=disk")
    from saebench.engines import require_local
    from saebench.gangs import check_outputs, gangs
    from saebench.stream import cache_sites, open_stream

    for cfg in configs:
        require_local(cfg, "cache")
    check_outputs(configs)
    cache_sites(configs)
    folders = [
        str(getattr(open_stream(cfg).shards, "path", cfg.outputs))
        for cfg in (configs[gang[0]] for gang in gangs(configs))
    ]
    print(*dict.fromkeys(folders), sep="\n")


@app.command()
def evaluate(
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    sae: Annotated[
        str | None,
        typer.Option(
            help="An SAE of any library in place of trained runs: folder or hub id", autocompletion=run_folders
        ),
    ] = None,
    source_format: Annotated[
        str | None, typer.Option("--from", help="Its format, if it is not to be found out")
    ] = None,
) -> None:
    """Evaluate runs that are trained, with the evaluate.* keys given; comma lists and experiment=NAME as in sweep."""
    if sae is not None:
        from saebench.imported import evaluate_sae

        print(evaluate_sae(sae, source_format, overrides or [], config_dir) / "metrics.csv")
        return
    from saebench.compose import load_sweep

    configs = load_sweep(overrides or [], config_dir)
    from saebench.engines import sweep

    for folder in dict.fromkeys(sweep(configs, evaluate_only=True)):
        print(folder / "metrics.csv")


@app.command()
def verify(
    outputs: Outputs = Path("outputs"),
    repair: Annotated[bool, typer.Option("--repair", help="Remove what is damaged, so that it is made again")] = False,
) -> None:
    """Compare everything finished with its checksums, and name what is damaged; of a cache only the damaged shards go."""
    from saebench.verify import verify

    found = verify(outputs, repair)
    for damage in found:
        print(damage)
    if not found:
        print("everything is as it was written")
    elif repair:
        print(f"{len(found)} damaged files were removed; the command that made them makes them again")
    else:
        raise InputError(
            f"outputs={outputs}: {len(found)} damaged files; `saebench verify --repair {outputs}` removes them"
        )
