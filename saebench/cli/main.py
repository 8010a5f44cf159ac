"""`saebench`: every command imports what it needs when it runs, so that help and mistakes are answered at once."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from saebench import __version__
from saebench.checks import InputError, RankLost, WorkError

from saebench.cli import runs, configs, results, shelf, latents, probing, interop  # isort: skip  # the order of `saebench --help`
from saebench.cli.app import app
from saebench.cli.ends import check_ranks, end, stopped, told

COMMANDS = (runs, configs, results, shelf, latents, probing, interop)  # importing them adds their commands


@app.callback(invoke_without_command=True)
def top(
    ctx: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version")] = False
) -> None:
    """Train, prune, nest and measure sparse autoencoders of language models."""
    check_ranks(ctx.invoked_subcommand)
    if version:
        print(__version__)
        raise typer.Exit


UsageError: Any = typer.BadParameter.__mro__[1]  # click's; newer Typers bring a click of their own


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit code 2."""
    try:
        code = app(standalone_mode=len(sys.argv) < 2)  # without arguments it prints its help
    except InputError as error:
        end(str(error), 2)
    except (WorkError, RankLost) as error:
        end(str(error), 1)
    except UsageError as error:
        end(f"{error.format_message()}; `saebench --help`, or --help behind a command, says what there is", 2)
    except OSError as error:
        end(told(error), 2)
    except KeyboardInterrupt:
        stopped()
    sys.exit(code if isinstance(code, int) else 0)
