"""The commands that show what can be configured, and what a configuration comes to."""

from __future__ import annotations

from typing import Annotated

import typer

from saebench.cli.app import ConfigDir, Overrides, app
from saebench.cli.complete import config_words


@app.command()
def configs(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[GROUP[/OPTION]]", help="A group, or one file of it", autocompletion=config_words),
    ] = None,
    config_dir: ConfigDir = None,
) -> None:
    """List the groups of configs and their options, one line each; or print one option's YAML, which explains its keys."""
    from saebench.catalogue import listing

    print(listing(name, config_dir))


@app.command()
def show(
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    job: Annotated[int, typer.Option(help="Of a sweep, which job")] = 1,
) -> None:
    """Print the configuration that the overrides make, as YAML, with what set each value; writes nothing."""
    from saebench.origins import show

    print(show(overrides or [], config_dir, job))


app.command("config", hidden=True, help="The same as show, under its old name.")(show)
