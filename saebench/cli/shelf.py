"""The commands that look at outputs as a whole: what is there, what differs, what goes on, what may go."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from saebench.checks import InputError
from saebench.cli.app import Outputs, app
from saebench.cli.complete import run_names

Folder = Annotated[Path, typer.Option("--outputs", "-o", help="The outputs folder")]
FILTERS = "Such as state=done variant=topk,batchtopk sae.k=32 run='topk-0*'; any config key, or its last part"


@app.command("ls")
def list_(
    filters: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE] ...", help=FILTERS)] = None,
    outputs: Folder = Path("outputs"),
) -> None:
    """List the runs: state, variant, knobs, FVU, cross-entropy increase, age."""
    from saebench.shelf import list_runs, shelf_table

    print(shelf_table(list_runs(outputs, filters or [])))


@app.command()
def diff(
    a: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="A run's folder, or its name or the beginning of it", autocompletion=run_names
        ),
    ],
    b: Annotated[str, typer.Argument(metavar="RUN", help="Another", autocompletion=run_names)],
    every: Annotated[bool, typer.Option("--all", help="Every view that both have, not the full ones alone")] = False,
    outputs: Folder = Path("outputs"),
) -> None:
    """Tell how two runs differ: config, environment, metrics."""
    from saebench.difference import describe_difference
    from saebench.shelf import find_run

    print(describe_difference(find_run(outputs, a), find_run(outputs, b), every))


@app.command()
def rm(
    chosen: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN | KEY=VALUE] ...", help="Runs, or filters", autocompletion=run_names),
    ] = None,
    caches: Annotated[bool, typer.Option("--caches", help="Also caches that no run left refers to")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask")] = False,
    outputs: Folder = Path("outputs"),
) -> None:
    """Remove runs, and caches that nothing refers to, after saying what and how much; never what is being made."""
    from saebench.removal import choose, doomed_caches, doomed_runs, removal_table, remove

    if not chosen and not caches:
        raise InputError("rm: name runs, or filters such as state=interrupted, or --caches")
    removals = doomed_runs(outputs, choose(outputs, chosen)) if chosen else []
    removals += doomed_caches(outputs, [removal.path for removal in removals]) if caches else []
    print(removal_table(removals))
    if not removals or not (yes or asked(f"Remove them from {outputs}?")):
        return
    for reason in remove(outputs, removals):
        print(reason)


def asked(question: str) -> bool:
    """Whether the user agrees. Raises InputError where there is nobody to ask."""
    if not sys.stdin.isatty():
        raise InputError("rm: nobody to ask here, so nothing was removed; --yes removes without asking")
    return typer.confirm(question)


@app.command()
def watch(
    outputs: Outputs = Path("outputs"),
    once: Annotated[bool, typer.Option("--once", help="Look once, and end")] = False,
) -> None:
    """Show what is being trained: progress, loss, L0, dead latents, tokens per second, time left."""
    from saebench.watch import watch

    watch(outputs, once)


@app.command()
def report(outputs: Outputs = Path("outputs")) -> None:
    """Write outputs/report/index.html: verdicts, figures and tables in one page; the last line printed is its path."""
    from saebench.report import write_report

    print(write_report(outputs))
