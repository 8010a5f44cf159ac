"""`saebench`: every command imports what it needs when it runs, so that help and mistakes are answered at once."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from saebench import __version__
from saebench.checks import InputError

app = typer.Typer(
    name="saebench",
    help="Train, prune, nest and measure sparse autoencoders of language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE ...", help="Hydra overrides, such as sae=matryoshka sae.k=64")
]
ConfigDir = Annotated[
    str | None, typer.Option("--config-dir", help="A folder with your own YAMLs, laid out like conf/")
]
Outputs = Annotated[Path, typer.Argument(help="The outputs folder")]


@app.callback(invoke_without_command=True)
def top(version: Annotated[bool, typer.Option("--version", help="Print the version")] = False) -> None:
    """Train, prune, nest and measure sparse autoencoders of language models."""
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def train(overrides: Overrides = None, config_dir: ConfigDir = None) -> None:
    """Cache activations if missing, train one SAE, evaluate it; the last line printed is the run folder."""
    from saebench.compose import load

    cfg = load(overrides or [], config_dir)
    from saebench.pipeline import run

    print(run([cfg])[0])


@app.command()
def sweep(overrides: Overrides = None, config_dir: ConfigDir = None) -> None:
    """Train and evaluate a grid: comma lists (sae.k=16,32) or experiment=NAME; runs that are done are skipped."""
    from saebench.compose import load_sweep

    configs = load_sweep(overrides or [], config_dir)
    from saebench.pipeline import check_outputs, run
    from saebench.search import searched

    check_outputs(configs)
    for folder in dict.fromkeys(run(searched(configs))):
        print(folder)


@app.command()
def plan(overrides: Overrides = None, config_dir: ConfigDir = None) -> None:
    """State how long a sweep would take, and the disk and memory, from short measurements here; writes nothing."""
    from saebench.compose import load_sweep

    configs = load_sweep(overrides or [], config_dir)
    from saebench.plan import plan

    print(plan(configs))


@app.command()
def cache(overrides: Overrides = None, config_dir: ConfigDir = None) -> None:
    """Tokenise the text and cache the activations that a run would train on."""
    from saebench.compose import load

    cfg = load(overrides or [], config_dir)
    if cfg.cache == "stream":
        raise InputError("cache=stream: this command writes the cache; use cache=disk")
    from saebench.pipeline import check_outputs, open_stream

    check_outputs([cfg])
    shards = open_stream(cfg).shards
    print(getattr(shards, "path", cfg.outputs))


@app.command()
def evaluate(overrides: Overrides = None, config_dir: ConfigDir = None) -> None:
    """Evaluate runs that are trained, with the evaluate.* keys given; comma lists and experiment=NAME as in sweep."""
    from saebench.compose import load_sweep

    configs = load_sweep(overrides or [], config_dir)
    from saebench.pipeline import run
    from saebench.search import with_rates

    for folder in dict.fromkeys(run(with_rates(configs), evaluate_only=True)):
        print(folder / "metrics.csv")


@app.command()
def tables(outputs: Outputs = Path("outputs")) -> None:
    """Pivot the metrics of all runs into outputs/tables, and print the result."""
    from saebench.frontier import write_frontier
    from saebench.seeds import write_seeds
    from saebench.tables import result_table, write_tables

    written = [*write_tables(outputs), *write_seeds(outputs), *write_frontier(outputs)]
    print(result_table(outputs))
    print(f"{len(written)} tables in {outputs / 'tables'}")


@app.command()
def claims(overrides: Overrides = None, config_dir: ConfigDir = None) -> None:
    """Judge an experiment's claims on its finished runs: reproduced, refuted or inconclusive; into outputs/claims.csv."""
    from saebench.compose import load_claims, load_sweep

    configs = load_sweep(overrides or [], config_dir)
    named = load_claims(configs[0].experiment.claims, config_dir)
    from saebench.claims import judge_claims
    from saebench.search import with_rates

    print(judge_claims(with_rates(configs), named))


@app.command()
def figures(outputs: Outputs = Path("outputs")) -> None:
    """Draw figures from the tables into outputs/figures."""
    from saebench.figures import draw_figures

    written = draw_figures(outputs)
    print(f"{len(written)} figures in {outputs / 'figures'}")


@app.command()
def laws(
    outputs: Outputs = Path("outputs"),
    replicates: Annotated[int, typer.Option(help="Samples of each bootstrap")] = 100,
) -> None:
    """Fit power laws to the importance of latents and to decoder spectra, measure nested levels; into outputs/tables."""
    from saebench.laws import law_table, write_laws

    written = write_laws(outputs, replicates)
    print(law_table(outputs))
    print(f"{len(written)} tables in {outputs / 'tables'}")


@app.command()
def prune(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run")],
    keep: Annotated[int, typer.Option(help="Latents to keep")],
    rule: Annotated[str, typer.Option(help="Which: the best by energy, frequency, ...; random; unsorted")] = "energy",
    into: Annotated[Path | None, typer.Option(help="The new folder; RUN/pruned/RULE-KEEP if left out")] = None,
    order: Annotated[str, typer.Option(help="prune_then_select, or select_then_prune")] = "prune_then_select",
    seed: Annotated[int, typer.Option(help="Of the rule random")] = 0,
) -> None:
    """Save a pruned SAE as an SAE of its own; the last line printed is its folder."""
    from saebench.prune import prune

    print(prune(run, rule, keep, order, into, seed))


@app.command()
def calibrate(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run, batchtopk or matryoshka")],
    l0: Annotated[float | None, typer.Option(help="The mean L0 to reach; its k if left out")] = None,
    tokens: Annotated[str, typer.Option(help="Measured on: train, or heldout")] = "train",
    into: Annotated[Path | None, typer.Option(help="The new folder; RUN/calibrated/TOKENS-L0 if left out")] = None,
) -> None:
    """Save an SAE with its threshold set anew, to its k or to any mean L0; the last line printed is its folder."""
    from saebench.calibrate import calibrate

    print(calibrate(run, l0, tokens, into))


@app.command()
def choose(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run")],
    fvu: Annotated[float | None, typer.Option(help="The most variance unexplained")] = None,
    fvu_std: Annotated[float | None, typer.Option(help="The same with dimensions scaled to unit variance")] = None,
    ce_increase: Annotated[float | None, typer.Option(help="The most nats over the clean model")] = None,
    l0: Annotated[float | None, typer.Option(help="The most active latents per token")] = None,
    macs: Annotated[float | None, typer.Option(help="The most multiply-adds per token")] = None,
    flops: Annotated[float | None, typer.Option(help="The same in operations, two a multiply-add")] = None,
    bits: Annotated[float | None, typer.Option(help="The most bits per token")] = None,
    by: Annotated[str, typer.Option(help="What is cheap: macs, or bits")] = "macs",
    tokens: Annotated[str, typer.Option(help="Measured on: typical, or all")] = "typical",
) -> None:
    """Name the cheapest view of an SAE that reaches a target, beside those that no other view beats."""
    from saebench.choose import choose, chosen_text

    limits = {"fvu": fvu, "fvu_std": fvu_std, "ce_increase": ce_increase, "l0": l0}
    limits |= {"macs": macs, "flops": flops, "bits": bits}
    print(chosen_text(*choose(run, limits, by, tokens)))


@app.command()
def reach(
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    l0: Annotated[str, typer.Option(help="The mean L0s to reach, comma-separated")] = "16,32,64",
    tolerance: Annotated[float, typer.Option(help="A share of the L0")] = 0.05,
    most: Annotated[int, typer.Option(help="Runs for each L0 before giving up")] = 12,
) -> None:
    """Train until every SAE of a sweep has each mean L0 within a tolerance, and count the runs that it took."""
    from saebench.compose import load_sweep

    targets = [as_number("--l0", text) for text in l0.split(",")]
    configs = load_sweep(overrides or [], config_dir)
    from saebench.pipeline import check_outputs
    from saebench.reach import reach, reached_table

    check_outputs(configs)
    print(reached_table(reach(configs, targets, tolerance, most)))


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


@app.command()
def config(overrides: Overrides = None, config_dir: ConfigDir = None) -> None:
    """Print the configuration that the overrides make, and stop."""
    from omegaconf import OmegaConf

    from saebench.compose import load
    from saebench.config import as_dict

    print(OmegaConf.to_yaml(OmegaConf.create(as_dict(load(overrides or [], config_dir)))), end="")


def as_number(key: str, text: str) -> float:
    """The number that `text` says. Raises InputError."""
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{key}={text}: is not a number") from None


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def told(error: OSError) -> str:
    """What a disk that takes no more means."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}; nothing finished is lost: make space, and the same command goes on from here"


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit code 2."""
    try:
        app()
    except InputError as error:
        if os.environ.get("SAEBENCH_TRACEBACK"):
            raise
        print(f"saebench: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in FULL or os.environ.get("SAEBENCH_TRACEBACK"):
            raise
        print(f"saebench: {told(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("saebench: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
