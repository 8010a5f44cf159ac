"""What Typer asks for when a shell completes an argument; what is known of configs is in saebench/completion.py."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path

import typer

LONGEST = (
    50  # letters on a candidate; Typer breaks longer ones at the terminal's width, and fish takes each line for another
)


def brief(candidates: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Candidates with what is said of them in few letters, and no [ that Typer would take for the markup of Rich."""
    return [
        (text, textwrap.shorten(told, LONGEST, placeholder=" ...").replace("[", r"\[")) for text, told in candidates
    ]


def override_words(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Keys, groups, options and values of a run's config."""
    from saebench.completion import complete

    return brief(complete(ctx.params.get("overrides") or [], incomplete, ctx.params.get("config_dir")))


def config_words(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Groups, and options as GROUP/OPTION."""
    from saebench.completion import complete_name

    return brief(complete_name(incomplete, ctx.params.get("config_dir")))


def run_names(ctx: typer.Context) -> list[str]:
    """The names of the runs in the outputs folder."""
    runs = Path(ctx.params.get("outputs") or "outputs") / "runs"
    return sorted(path.name for path in runs.glob("*") if (path / "config.yaml").is_file())


def run_folders(ctx: typer.Context) -> list[str]:
    """Their folders."""
    return [str(Path(ctx.params.get("outputs") or "outputs") / "runs" / name) for name in run_names(ctx)]


def interpret_words(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """The folders of runs, and keys of conf/interpret.yaml."""
    from saebench.completion import interpret_keys

    return brief([*((folder, "") for folder in run_folders(ctx)), *interpret_keys(incomplete)])
