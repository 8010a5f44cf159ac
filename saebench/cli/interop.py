"""The commands that exchange SAEs with other libraries and with the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saebench.cli.app import ConfigDir, Overrides, app
from saebench.cli.complete import run_folders

From = Annotated[str | None, typer.Option("--from", help="Its format, if it is not to be found out")]


@app.command()
def export(
    run: Annotated[
        str,
        typer.Argument(help="The folder of a run, or any SAE that `saebench import` reads", autocompletion=run_folders),
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The new folder")],
    to: Annotated[str, typer.Option(help="The library: saelens, sparsify or dictionary_learning")],
    view: Annotated[str, typer.Option(help="full, prefix:M, prefix:M:J or budget:J")] = "full",
) -> None:
    """Write an SAE in another library's format, working on raw activations; the last line printed is its folder."""
    from saebench.interop import export

    difference = export(run, folder, to, view)
    print(f"read back: reconstructions differ by at most {difference:.1e} of the activations' deviation")
    print(folder)


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="A folder, a file, or a hub id owner/name[/folder][@revision]")],
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    source_format: From = None,
) -> None:
    """Make a run of another library's SAE, to be evaluated with `saebench evaluate --sae RUN`; the last line is its folder."""
    from saebench.imported import import_sae

    print(import_sae(source, source_format, overrides or [], config_dir))


@app.command()
def push(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run", autocompletion=run_folders)],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The model repository of the hub, made if missing")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the card and the files, and send nothing")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a private repository")] = False,
    licence: Annotated[
        str | None, typer.Option(help="The licence's id on the hub; without it the card says none")
    ] = None,
) -> None:
    """Upload a run to the Hugging Face hub with a model card; the last line printed is its address."""
    from saebench.publish import push

    print(push(run, repo, dry_run, private, licence))


@app.command()
def pull(
    source: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="A repository that `saebench push` made")],
    outputs: Annotated[Path, typer.Option(help="The outputs folder")] = Path("outputs"),
) -> None:
    """Download a run from the Hugging Face hub into outputs/runs; the last line printed is its folder."""
    from saebench.publish import pull

    print(pull(source, outputs))
