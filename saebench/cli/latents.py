"""The commands that tell what latents mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saebench.cli.app import app

INTERPRET_KEYS = "Overrides of conf/interpret.yaml, such as interpret.tokens=1_000_000 judge.model=NAME"


def listed(text: str) -> list[str]:
    """The parts of a comma-separated option."""
    return [part.strip() for part in text.split(",") if part.strip()]


@app.command()
def interpret(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE] ...", help=INTERPRET_KEYS)] = None,
    views: Annotated[str, typer.Option(help="Comma-separated: full, prefix:M[:J], budget:J, pruned:RULE:M")] = "full",
    latents: Annotated[int, typer.Option(help="How many latents of each view are scored")] = 200,
    score: Annotated[
        str, typer.Option(help="Comma-separated: intruder, coherence, ..., detection, fuzzing, simulation")
    ] = "",
) -> None:
    """Collect the contexts that activate an SAE's latents, and score how well they can be understood."""
    from saebench.interpret.command import interpret, table_of

    print(table_of(interpret(run, listed(views), latents, listed(score), overrides or [])))


@app.command()
def browse(run: Annotated[Path, typer.Argument(help="The folder of an interpreted run")]) -> None:
    """Open pages of a run's latents in a browser: search, sort, contexts, scores; the last line printed is the page."""
    from saebench.interpret.pages import browse

    print(browse(run))
