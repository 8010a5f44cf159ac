"""`saebench`: every command imports what it needs when it runs, so that help and mistakes are answered at once."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from saebench import __version__
from saebench.checks import InputError, RankLost, WorkError

from saebench.cli import runs, results, shelf, latents, interop  # isort: skip  # the order of `saebench --help`
from saebench.cli.app import app
from saebench.cli.ends import FULL, check_ranks, end, stopped, told

COMMANDS = (runs, results, shelf, latents, interop)  # importing them adds their commands


@app.callback(invoke_without_command=True)
def top(
    ctx: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version")] = False
) -> None:
    """Train, prune, nest and measure sparse autoencoders of language models."""
    check_ranks(ctx.invoked_subcommand)
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit code 2."""
    try:
        app()
    except (InputError, WorkError, RankLost) as error:
        if os.environ.get("SAEBENCH_TRACEBACK"):
            raise
        end(" ".join(str(error).split()), 2 if isinstance(error, InputError) else 1)
    except OSError as error:
        if error.errno not in FULL or os.environ.get("SAEBENCH_TRACEBACK"):
            raise
        end(told(error), 2)
    except KeyboardInterrupt:
        stopped()
