"""How alike the latents of runs are that differ in their seeds alone: every finished evaluation in, tables/seeds.csv out."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from saebench.progress import Progress
from saebench.store import write_text
from saebench.tables import SEEDS, read_table

GRAM = "latents.safetensors"
COLUMNS = [
    *("configuration", "run_a", "run_b", *(f"{name}_{side}" for side in "ab" for name in SEEDS)),
    *("tokens", "n_tokens", "cka_latents", "rsa_latents_pearson", "rsa_latents_spearman"),
]


def write_seeds(outputs: Path) -> list[Path]:
    """Write outputs/tables/seeds.csv, a row for every two runs of one configuration (tables/runs.csv) and kind of tokens.

    Measured on the tokens that evaluate.rsa_tokens sampled, on each run's first full view. Nothing is written without such runs.
    """
    runs = read_table(outputs, "runs")
    pairs = [
        (a, b) for _, members in runs.groupby("configuration") for a, b in combinations(members.to_dict("records"), 2)
    ]
    together = [(a, b, key) for a, b in pairs if (key := shared_evaluation(outputs, a["run"], b["run"]))]
    if not together:
        return []
    with Progress(len(together), "pairs", "similarity between seeds") as progress:
        rows = []
        for a, b, key in together:
            rows += compare(outputs, a, b, key)
            progress.advance()
    path = outputs / "tables" / "seeds.csv"
    write_text(path, pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False))
    return [path]


def shared_evaluation(outputs: Path, a: str, b: str) -> str | None:
    """The key of the latest evaluation that both runs have, so that both sampled the same tokens."""
    folders = [outputs / "runs" / run / "evaluations" for run in (a, b)]
    found = [{path.parent.name: path.stat().st_mtime for path in folder.glob(f"*/{GRAM}")} for folder in folders]
    keys = {*found[0]} & {*found[1]}
    return max(keys, key=lambda key: (found[0][key], key)) if keys else None


def compare(outputs: Path, a: dict[str, Any], b: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The rows of two runs, over all sampled tokens and over those of typical norm."""
    from saebench.similarity import load_gram  # torch is not needed where there is nothing to compare

    (left, typical), (right, _) = (
        load_gram(outputs / "runs" / run["run"] / "evaluations" / key / GRAM) for run in (a, b)
    )
    named = {"configuration": a["configuration"], "run_a": a["run"], "run_b": b["run"]}
    named |= {f"{name}_{side}": run[name] for side, run in (("a", a), ("b", b)) for name in SEEDS}
    chosen = {"all": typical | True, "typical": typical}
    return [
        named | {"tokens": tokens, "n_tokens": int(mask.sum())} | left.of_tokens(mask).similarity(right.of_tokens(mask))
        for tokens, mask in chosen.items()
    ]
