"""The commands that tell what latents mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saebench.cli.app import app
from saebench.cli.complete import interpret_words, run_folders

INTERPRET_KEYS = (
    "Finished runs, and overrides of conf/interpret.yaml such as interpret.tokens=1_000_000 judge.model=NAME"
)


def listed(text: str) -> list[str]:
    """The parts of a comma-separated option."""
    return [part.strip() for part in text.split(",") if part.strip()]


@app.command()
def interpret(
    given: Annotated[
        list[str],
        typer.Argument(metavar="RUN ... [KEY=VALUE] ...", help=INTERPRET_KEYS, autocompletion=interpret_words),
    ],
    views: Annotated[str, typer.Option(help="Comma-separated: full, prefix:M[:J], budget:J, pruned:RULE:M")] = "full",
    latents: Annotated[int, typer.Option(help="How many latents of each view are scored")] = 200,
    score: Annotated[
        str, typer.Option(help="Comma-separated: intruder, coherence, ..., detection, fuzzing, simulation")
    ] = "",
) -> None:
    """Collect the contexts that activate the latents of finished runs, and score how well they can be understood."""
    from saebench.interpret.command import interpret, table_of

    runs = [Path(text) for text in given if "=" not in text]
    print(table_of(interpret(runs, listed(views), latents, listed(score), [text for text in given if "=" in text])))


@app.command()
def browse(
    run: Annotated[Path, typer.Argument(help="The folder of an interpreted run", autocompletion=run_folders)],
) -> None:
    """Open pages of a run's latents in a browser: search, sort, contexts, scores; the last line printed is the page."""
    from saebench.interpret.pages import browse

    print(browse(run))
