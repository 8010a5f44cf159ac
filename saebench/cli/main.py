"""`saebench`: every command imports what it needs when it runs, so that help and mistakes are answered at once."""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated

import typer

from saebench import __version__
from saebench.checks import InputError, WorkError

from saebench.cli import runs, results, latents  # isort: skip  # the order of `saebench --help`
from saebench.cli.app import app

COMMANDS = (runs, results, latents)  # importing them adds their commands


@app.callback(invoke_without_command=True)
def top(version: Annotated[bool, typer.Option("--version", help="Print the version")] = False) -> None:
    """Train, prune, nest and measure sparse autoencoders of language models."""
    if version:
        print(__version__)
        raise typer.Exit


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
    except WorkError as error:
        print(f"saebench: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.errno not in FULL or os.environ.get("SAEBENCH_TRACEBACK"):
            raise
        print(f"saebench: {told(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("saebench: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
