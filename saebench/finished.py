"""What finished runs left in outputs/runs, read as tables. Imports pandas: import it only where it is used."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from saebench.checks import require
from saebench.progress import Progress, say

TEXTS = ["run", "variant", "model", "site", "data", "view", "rule", "order", "mode"]
INTEGERS = ["layer", "d_sae", "k", "m", "budget", "seed", "order_seed"]
POINTS = 200  # kept of each curve
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # C is ten times as fast, and not in every build


def finished_runs(outputs: Path) -> list[Path]:
    """The folders of outputs/runs that are finished and evaluated, by name. Raises InputError if there is none."""
    folders = sorted(done.parent for done in (outputs / "runs").glob("*/done.json"))
    finished = [folder for folder in folders if not folder.name.endswith(".partial")]
    evaluated = [folder for folder in finished if (folder / "metrics.csv").is_file()]
    if len(evaluated) < len(finished):
        say(f"{len(finished) - len(evaluated)} of {len(finished)} runs are not evaluated yet and are left out")
    require(
        bool(evaluated), f"outputs={outputs}: no finished run in {outputs / 'runs'}; make one with `saebench train`"
    )
    return evaluated


def parse(text: str) -> pd.DataFrame:
    """CSV text as a table; an empty cell is missing, and nothing else is."""
    names = text.partition("\n")[0].split(",")
    types = dict.fromkeys(TEXTS, str) | dict.fromkeys(INTEGERS, "Int64") | {name: str for name in names if "." in name}
    dtype: Any = {name: types[name] for name in names if name in types}
    return pd.read_csv(io.StringIO(text), dtype=dtype, keep_default_na=False, na_values=["", "nan"])


def read_runs(folders: list[Path], name: str, keep: Callable[[list[str]], Iterable[str]] = list) -> pd.DataFrame:
    """The lines that `keep` chooses of one CSV of every run, beside the column `run`; parsed at once: quicker."""
    texts = [(folder.name, *read_lines(folder / name)) for folder in folders]
    header = texts[0][1]
    for (_, other, _), folder in zip(texts, folders, strict=True):
        require(other == header, f"{folder / name}: other columns than in {folders[0]}; run `saebench evaluate` again")
    lines = [(run, line) for run, _, rows in texts for line in keep(rows)]
    table = parse("\n".join([header, *(line for _, line in lines)]) + "\n")
    runs = [run for run, _ in lines]
    return (
        table.assign(run=runs) if "run" in table else pd.concat([pd.Series(runs, name="run", dtype=str), table], axis=1)
    )


def read_lines(path: Path) -> tuple[str, list[str]]:
    """The header and the rows of a CSV file. Raises InputError if it is missing or empty."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    require(bool(text), f"{path}: missing or empty; remove its folder and make the run again")
    header, *rows = text.splitlines()
    return header, rows


def thin(lines: list[str]) -> Iterable[str]:
    """At most POINTS of the lines, evenly spread, the first and the last among them."""
    places = np.unique(np.linspace(0, len(lines) - 1, min(POINTS, len(lines))).round().astype(int))
    return (lines[i] for i in places)


def read_latents(folders: list[Path]) -> pd.DataFrame:
    """Energy and frequency, each sorted from the largest, against rank (from 1), at about POINTS ranks per run."""
    parts = []
    with Progress(len(folders), "runs", "latents") as progress:
        for folder in folders:
            header, rows = read_lines(folder / "latents.csv")
            latents = pd.read_csv(io.StringIO("\n".join([header, *rows])), usecols=["energy", "frequency"])
            ranks = np.unique(np.geomspace(1, len(latents), min(POINTS, len(latents))).round().astype(int))
            falling = {name: np.sort(latents[name])[::-1][ranks - 1] for name in ("energy", "frequency")}
            parts.append(pd.DataFrame({"run": folder.name, "rank": ranks} | falling))
            progress.advance()
    return pd.concat(parts, ignore_index=True)


def read_histograms(folders: list[Path]) -> pd.DataFrame:
    """How many tokens have how many active latents, by run, view and group of tokens; nothing of older runs."""
    there = [folder for folder in folders if (folder / "l0.csv").is_file()]
    return read_runs(there, "l0.csv") if there else pd.DataFrame({"run": pd.Series(dtype=str)})
