"""What finished runs left in outputs/runs, read as tables. Imports pandas: import it only where it is used."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from saebench.checks import InputError, require
from saebench.progress import Progress, say

TEXTS = ["run", "variant", "model", "site", "data", "view", "rule", "order", "mode"]
INTEGERS = ["layer", "d_sae", "k", "m", "budget", "seed", "order_seed"]
NUMBERS = ["l0", "fvu", "fvu_std", "nmse", "cosine", "ce_clean", "ce_sae", "ce_zero", "ce_mean", "kl", "cka", "cka_std"]
NUMBERS += ["recovered_zero", "recovered_mean", "rsa_pearson", "rsa_spearman", "dead_fraction", "coefficient"]
POINTS = 200  # kept of each curve
FIRST_CELL = re.compile(r'"(?:[^"]|"")*"|[^,]*')


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
    """CSV text as a table; an empty cell is missing, and nothing else is. Raises ValueError for text among numbers."""
    return parse_once(text).copy()


@lru_cache(maxsize=2)  # as what was just written is read again
def parse_once(text: str) -> pd.DataFrame:
    """`parse`, whose result must not be changed."""
    names = text.partition("\n")[0].split(",")
    types = dict.fromkeys(TEXTS, str) | dict.fromkeys(INTEGERS, "Int64") | {name: str for name in names if "." in name}
    types |= dict.fromkeys(NUMBERS, float)
    dtype: Any = {name: types[name] for name in names if name in types}
    return pd.read_csv(io.StringIO(text), dtype=dtype, keep_default_na=False, na_values=["", "nan"])


def read_runs(folders: list[Path], name: str, keep: Callable[[list[str]], Iterable[str]] = list) -> pd.DataFrame:
    """`gather_lines` as a table. Raises InputError naming the file that cannot be read."""
    return parsed(gather_lines(folders, name, keep), folders, name)


def parsed(text: str, folders: list[Path], name: str) -> pd.DataFrame:
    """`parse` of what `gather_lines` gave. Raises InputError naming the first file that it cannot read."""
    try:
        return parse(text)
    except ValueError:
        for folder in folders:
            try:
                parse(gather_lines([folder], name))
            except ValueError as error:
                reason = str(error).splitlines()[0]
                raise InputError(f"{folder / name}: {reason}; remove its folder and make the run again") from error
        raise


def gather_lines(folders: list[Path], name: str, keep: Callable[[list[str]], Iterable[str]] = list) -> str:
    """The lines that `keep` chooses of one CSV of every run, as one CSV whose first column `run` names their folder.

    No number is read, so that many runs take no longer than their files. Raises InputError unless all have the same columns.
    """
    texts = [(quoted(folder.name), *read_lines(folder / name)) for folder in folders]
    header = texts[0][1]
    for (_, other, _), folder in zip(texts, folders, strict=True):
        require(other == header, f"{folder / name}: other columns than in {folders[0]}; run `saebench evaluate` again")
    first, _, others = header.partition(",")
    if first == "run":  # as the run was called when it was made
        lines = [run + line[end_of_cell(line) :] for run, _, rows in texts for line in keep(rows)]
        return "\n".join([f"run,{others}", *lines]) + "\n"
    return "\n".join([f"run,{header}", *(f"{run},{line}" for run, _, rows in texts for line in keep(rows))]) + "\n"


def require_columns(table: pd.DataFrame, names: Iterable[str], path: Path) -> None:
    """Raise InputError unless a table that was read from `path` has these columns."""
    lacking = [name for name in names if name not in table]
    require(not lacking, f"{path}: has no column {', '.join(lacking)}; remove its folder and make the run again")


def end_of_cell(line: str) -> int:
    """Where the first cell of a line of CSV ends."""
    found = FIRST_CELL.match(line)
    assert found is not None
    return found.end()


def quoted(name: str) -> str:
    """A name as a cell of a CSV file."""
    return '"' + name.replace('"', '""') + '"' if any(c in name for c in ',"\r\n') else name


def read_lines(path: Path) -> tuple[str, list[str]]:
    """The header and the rows of a CSV file. Raises InputError if it is missing, empty or not text."""
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason}); remove its folder and make the run again") from error
    require(bool(text.strip()), f"{path}: missing or empty; remove its folder and make the run again")
    header, *rows = text.splitlines()
    commas = header.count(",")
    cut = not text.endswith("\n") or min(map(str.count, rows, repeat(",")), default=commas) < commas
    require(not cut, f"{path}: cut off; remove its folder and make the run again")
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
            latents = read_columns(folder / "latents.csv", ["energy", "frequency"])
            n = len(latents["energy"])
            ranks = np.unique(np.geomspace(1, n, min(POINTS, n)).round().astype(int))
            falling = {name: np.sort(values)[::-1][ranks - 1] for name, values in latents.items()}
            parts.append({"run": np.repeat(folder.name, len(ranks)), "rank": ranks} | falling)
            progress.advance()
    return pd.DataFrame({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def plain_csv(table: pd.DataFrame) -> str:
    """The table as CSV, as `to_csv` writes it, in a third of the time; for run names and numbers, none missing."""
    columns = [[quoted(v) for v in table[name]] if name == "run" else table[name].tolist() for name in table]
    lines = [",".join(map(str, row)) for row in zip(*columns, strict=True)]
    return "\n".join([",".join(table), *lines]) + "\n"


def read_columns(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Columns of numbers of a CSV file, float64. Raises InputError if it is missing, empty or lacks them."""
    from pyarrow import ArrowException, csv, float64

    options = csv.ConvertOptions(include_columns=names, column_types=dict.fromkeys(names, float64()))
    require(path.is_file(), f"{path}: missing or empty; remove its folder and make the run again")
    try:
        table = csv.read_csv(path, convert_options=options)
    except (ArrowException, KeyError) as error:
        raise InputError(f"{path}: cannot be read ({error}); remove its folder and make the run again") from error
    require(len(table) > 0, f"{path}: missing or empty; remove its folder and make the run again")
    return {name: table[name].to_numpy() for name in names}


def gather_histograms(folders: list[Path]) -> str:
    """How many tokens have how many active latents, by run, view and group of tokens, as CSV; nothing of older runs."""
    there = [folder for folder in folders if (folder / "l0.csv").is_file()]
    return gather_lines(there, "l0.csv") if there else "run\n"
