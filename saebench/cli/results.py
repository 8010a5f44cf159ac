"""The commands that read finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saebench.checks import InputError
from saebench.cli.app import ConfigDir, Outputs, Overrides, app
from saebench.cli.complete import run_folders


@app.command()
def tables(outputs: Outputs = Path("outputs")) -> None:
    """Pivot the metrics of all runs into outputs/tables, and print the result."""
    from saebench.frontier import write_frontier
    from saebench.seeds import write_seeds
    from saebench.tables import result_table, write_tables

    makers = (write_tables, write_seeds, write_frontier)
    written = [path for make in makers for path in make(outputs)]
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
def figures(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[OUTPUTS] [figures.style=paper]", help="The outputs folder, and the style"),
    ] = None,
) -> None:
    """Draw figures from the tables into outputs/figures; figures.style=paper: one column, 8 pt, PDF, into figures/paper."""
    folders = [word for word in words or [] if "=" not in word]
    options = dict(word.split("=", 1) for word in words or [] if "=" in word)
    if len(folders) > 1 or options.keys() - {"figures.style"}:
        raise InputError(
            f"{' '.join(words or [])}: give one outputs folder, and figures.style=paper or figures.style=screen"
        )
    from saebench.figures import draw_figures

    written = draw_figures(Path(*folders or ["outputs"]), options.get("figures.style", "screen"))
    print(f"{len(written)} figures in {written[0].parent if written else 'figures'}")


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
    run: Annotated[Path, typer.Argument(help="The folder of a finished run", autocompletion=run_folders)],
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
    run: Annotated[
        Path, typer.Argument(help="The folder of a finished run, batchtopk or matryoshka", autocompletion=run_folders)
    ],
    l0: Annotated[float | None, typer.Option(help="The mean L0 to reach; its k if left out")] = None,
    tokens: Annotated[str, typer.Option(help="Measured on: train, or heldout")] = "train",
    into: Annotated[Path | None, typer.Option(help="The new folder; RUN/calibrated/TOKENS-L0 if left out")] = None,
) -> None:
    """Save an SAE with its threshold set anew, to its k or to any mean L0; the last line printed is its folder."""
    from saebench.calibrate import calibrate

    print(calibrate(run, l0, tokens, into))


@app.command()
def choose(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run", autocompletion=run_folders)],
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
    from saebench.engines import require_local
    from saebench.pipeline import check_outputs
    from saebench.reach import reach, reached_table

    require_local(configs[0], "reach")
    check_outputs(configs)
    print(reached_table(reach(configs, targets, tolerance, most)))


def as_number(key: str, text: str) -> float:
    """The number that `text` says. Raises InputError."""
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{key}={text}: is not a number") from None
