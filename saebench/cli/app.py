"""The command line itself, and what its commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from saebench.cli.complete import override_words
from saebench.cli.ends import part, stopped


class Commands(TyperGroup):
    """The commands; one that is interrupted says so, where Typer would end without a word."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was typed."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            stopped()


app = typer.Typer(
    name="saebench",
    cls=Commands,
    help="Train, prune, nest and measure sparse autoencoders of language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    result_callback=part,
)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE ...",
        help="Hydra overrides, such as sae=matryoshka sae.k=64",
        autocompletion=override_words,
    ),
]
ConfigDir = Annotated[
    str | None, typer.Option("--config-dir", help="A folder with your own YAMLs, laid out like conf/")
]
Outputs = Annotated[Path, typer.Argument(help="The outputs folder")]
