"""The runs behind the tables: config, command and environment of each, and the experiments that they belong to."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from saebench.compose import composed, composing, conf_folder
from saebench.config import flatten
from saebench.shelf import config_of
from saebench.store import read_json
from saebench.tables import read_table

GROUPS = ("model", "data", "sae", "sparsity")  # sections that are an option of conf/, by their name
ELSEWHERE = ("experiment", "outputs")  # keys that a run does not depend on
OTHER = "Other runs"


def read_records(outputs: Path) -> dict[str, dict[str, Any]]:
    """What is known of each run of tables/runs.csv by name: config, command, experiment, environment; {} without its folder."""
    folders = {str(run): outputs / "runs" / str(run) for run in read_table(outputs, "runs")["run"]}
    return {run: record_of(folder) if (folder / "done.json").is_file() else {} for run, folder in folders.items()}


def record_of(folder: Path) -> dict[str, Any]:
    """What a run's folder says."""
    config = config_of(folder)
    env: dict[str, Any] = read_json(folder / "env.json") if (folder / "env.json").is_file() else {}
    return {
        "config": flatten({key: value for key, value in config.items() if key != "experiment"}),
        "command": command_of(config),
        "experiment": config.get("experiment", {}).get("name", ""),
        "environment": flatten({key: value for key, value in env.items() if key != "activations"}),
    }


def command_of(config: dict[str, Any]) -> str:
    """The command that makes a run of this config again, with every key that differs from conf/'s; "" for options not there."""
    options = tuple(f"{group}={config[group]['name']}" for group in GROUPS)
    if not all((conf_folder() / group / f"{config[group]['name']}.yaml").is_file() for group in GROUPS):
        return ""
    usual, own = defaults(options), flatten_values(config)
    changed = [f"{key}={text_of(value)}" for key, value in own.items() if usual.get(key, "???") != value]
    return shlex.join(["saebench", "train", *options, *changed])


@cache
def defaults(options: tuple[str, ...]) -> dict[str, Any]:
    """Every dotted key of what these options compose, with its value; a value yet to be given is ???."""
    with composing(None) as extra:
        return flatten_values(OmegaConf.to_container(composed([*options, *extra])))


def flatten_values(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys and values; of the keys that a run does not depend on, none."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if not prefix and key in ELSEWHERE:
            continue
        flat |= flatten_values(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def text_of(value: Any) -> str:
    """A value in Hydra's override grammar, a text in quotes where it needs them."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join(map(text_of, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    if not isinstance(value, str) or re.fullmatch(r"[A-Za-z_/][\w./-]*", text):
        return text
    escaped = re.sub(r"(\\*)'", lambda m: m[1] * 2 + r"\'", text)
    return f"'{escaped}'"


def sections_of(verdicts: Sequence[dict[str, Any]], records: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The experiments, those with claims first, each with its runs: named by its claims or made by it; then all other runs."""
    names = list(dict.fromkeys(verdict["experiment"] for verdict in verdicts))
    names += sorted({record.get("experiment", "") for record in records.values()} - {"", *names})
    found, placed = [], set[str]()
    for name in names:
        judged = {run for verdict in verdicts if verdict["experiment"] == name for run in verdict["runs"]}
        mine = [run for run, record in records.items() if run in judged or record.get("experiment") == name]
        placed |= {*mine}
        found.append({"name": name, "runs": mine, "commands": [f"saebench {do} experiment={name}" for do in DO]})
    rest = [run for run in records if run not in placed]
    return [*found, *([{"name": OTHER if found else "All runs", "runs": rest, "commands": []}] if rest else [])]


DO = ("sweep", "claims")
