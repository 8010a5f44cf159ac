"""The commands that tell what latents know."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saebench.cli.app import app
from saebench.cli.latents import listed

PROBE_KEYS = "Finished runs, and overrides of conf/probing.yaml such as probe.k=[1,5,20] probe.tokens=256"
ABSORPTION_KEYS = "Finished runs, and overrides of conf/probing.yaml such as absorption.words=5000"
SAE_BENCH_KEYS = "Finished runs, and settings of sae-bench such as absorption.max_k_value=5 core.context_size=256"
Views = Annotated[str, typer.Option(help="Comma-separated: full, prefix:M[:J], budget:J, pruned:RULE:M")]


@app.command()
def probe(
    given: Annotated[list[str], typer.Argument(metavar="RUN ... [KEY=VALUE] ...", help=PROBE_KEYS)],
    data: Annotated[list[Path], typer.Option(help="A .jsonl file with text and label on each line; may be repeated")],
    views: Views = "full",
) -> None:
    """Tell how much of a label the few best latents of finished runs know, against all latents and the activations."""
    from saebench.probing.command import probe, table_of

    runs = [Path(text) for text in given if "=" not in text]
    print(table_of(probe(runs, data, listed(views), [text for text in given if "=" in text])))


@app.command()
def absorption(
    given: Annotated[list[str], typer.Argument(metavar="RUN ... [KEY=VALUE] ...", help=ABSORPTION_KEYS)],
    views: Views = "full",
) -> None:
    """Measure how far latents of single words absorb the latents of their first letters, in finished runs."""
    from saebench.probing.command import absorption, table_of

    runs = [Path(text) for text in given if "=" not in text]
    print(table_of(absorption(runs, listed(views), [text for text in given if "=" in text])))


@app.command("saebench")
def sae_bench(
    given: Annotated[list[str], typer.Argument(metavar="RUN ... [EVAL.KEY=VALUE] ...", help=SAE_BENCH_KEYS)],
    python: Annotated[Path, typer.Option(help="The Python interpreter of an environment with the sae-bench package")],
    evals: Annotated[
        str, typer.Option("--eval", help="Comma-separated: core, absorption, sparse_probing")
    ] = "absorption",
    view: Annotated[str, typer.Option(help="full, prefix:M, prefix:M:J or budget:J")] = "full",
) -> None:
    """Run the sae-bench package (SAEBench) on finished runs in an environment of its own; its scores join the tables."""
    from saebench.probing.command import table_of
    from saebench.probing.sae_bench import sae_bench

    runs = [Path(text) for text in given if "=" not in text]
    print(table_of(sae_bench(runs, listed(evals), python, view, [text for text in given if "=" in text])))
