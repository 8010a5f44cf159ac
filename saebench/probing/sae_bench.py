"""The sae-bench package (SAEBench; Karvonen et al. 2025) on our SAEs, in an environment of its own.

Its pins (numpy below 2, datasets below 4) are not ours, so it is run by the interpreter that is named, on the view exported to
SAELens' format, and what it writes is read into rows named sae_bench_<its own name of the metric>. A stage of the run:
RUN/probing/sae_bench_<eval>-<view>-<key> with summary.csv and sae-bench's own result.json.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from saebench.checks import InputError, WorkError, one_of, require
from saebench.devices import resolve_device
from saebench.interop import export
from saebench.interpret.command import columns_of
from saebench.interpret.study import parse_view
from saebench.lm import find_config
from saebench.probing import sae_bench_driver
from saebench.probing.scores import COLUMNS
from saebench.probing.study import Opened, Rows, open_run, rows_of
from saebench.progress import say
from saebench.runs import describe_run, write_csv
from saebench.store import checksum, key_of, read_mapping, stage, write_json

NUMERICS = 1  # raised by hand when what is asked of sae-bench changes
EVALS = tuple(sae_bench_driver.EVALS)


def sae_bench(runs: Sequence[Path], evals: Sequence[str], python: Path, view: str, overrides: Sequence[str]) -> Rows:
    """The rows of sae-bench's evaluations of one view of each run, run by the interpreter `python`.

    Overrides are EVAL.key=value of sae-bench's own settings. Raises InputError for a wrong option and for an interpreter
    without sae-bench, WorkError where it fails.
    """
    for name in evals:
        one_of("--eval", name, EVALS)
    require(bool(evals), f"--eval: name at least one of {', '.join(EVALS)}")
    settings = settings_of(overrides)
    interpreter = found(python)
    version = version_of(interpreter)
    rows = []
    for run in runs:
        opened = open_run(run)
        for name in evals:
            rows += evaluate(opened, name, view, interpreter, version, settings.get(name, {}))
    return rows


def settings_of(overrides: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The settings of each evaluation. Raises InputError for an override that is of none."""
    found: dict[str, dict[str, Any]] = {}
    for text in overrides:
        name, _, rest = text.partition(".")
        key, given, value = rest.partition("=")
        require(name in EVALS and bool(given), f"{text}: give EVAL.key=value, where EVAL is one of {', '.join(EVALS)}")
        try:
            found.setdefault(name, {})[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"{text}: cannot be read ({error}); give a number, a word or a list") from error
    return found


def found(python: Path) -> str:
    """The interpreter's path, wherever it is run from; not where a link leads, which would be out of its environment."""
    path = shutil.which(python)
    if path is None:
        raise InputError(
            f"--python={python}: no such program; name the Python interpreter of an environment with sae-bench"
        )
    return os.path.abspath(path)


def version_of(python: str) -> str:
    """The version of sae-bench that an interpreter has. Raises InputError if it has none."""
    code = "from importlib.metadata import version; print(version('sae-bench'))"
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=False)
    remedy = "python -m venv ENV; ENV/bin/pip install sae-bench; --python ENV/bin/python"
    require(done.returncode == 0, f"--python={python}: without sae-bench; make an environment that has it: {remedy}")
    return done.stdout.strip()


def evaluate(opened: Opened, name: str, text: str, python: str, version: str, settings: dict[str, Any]) -> Rows:
    """The rows of one evaluation, made if missing."""
    view, cfg = parse_view(text, opened.sae), opened.cfg
    require(cfg.model.site == "resid_post", f"model.site={cfg.model.site}: sae-bench reads resid_post alone")
    inputs = {"numerics": NUMERICS, "sae": checksum(opened.run / "sae.safetensors"), "view": asdict(view)}
    inputs |= {"sae_bench": version, "eval": name, "settings": settings}
    folder = opened.run / "probing" / f"sae_bench_{name}-{view.name()}-{key_of(inputs)}"
    named = describe_run(opened.run.resolve().name, cfg, opened.sae.d_in) | columns_of(view)
    job = {"evals": [name], "settings": {name: settings}, "name": opened.run.resolve().name, "dtype": "float32"}
    model = find_config(cfg.model)[0]  # a folder, or a hub id
    job |= {
        "model": str(Path(model).resolve()) if Path(model).is_dir() else model,
        "device": str(resolve_device(cfg.device)),
    }
    stage(folder, inputs, partial(make, run=opened.run, view=text, python=python, job=job, named=named))
    return rows_of(folder)


def make(folder: Path, run: Path, view: str, python: str, job: dict[str, Any], named: dict[str, Any]) -> None:
    """Export, run, read."""
    export(run, folder / "sae", "saelens", view)
    output, path = folder / "results", folder / "job.json"
    write_json(path, job | {"sae": str((folder / "sae").resolve()), "output": str(output.resolve())})
    say(f"sae-bench {job['evals'][0]}: {run}")
    done = subprocess.run([python, "-I", sae_bench_driver.__file__, str(path.resolve())], cwd=folder, check=False)
    (name,) = job["evals"]
    files = sorted((output / name).glob("*eval_results.json"))
    if done.returncode or len(files) != 1:
        raise WorkError(
            f"sae-bench {name}: ended with exit code {done.returncode} and {len(files)} results; its output says why"
        )
    os.replace(files[0], folder / "result.json")
    for part in [part for part in folder.iterdir() if part.is_dir()]:  # the SAE, and activations of many GB
        shutil.rmtree(part)
    write_csv(folder / "summary.csv", [named | row for row in read_result(folder / "result.json")])


def read_result(path: Path) -> Rows:
    """The rows of one of sae-bench's JSON files: eval_result_metrics {category: {metric: number}}; -1 stands for none there.

    Raises InputError naming the file if it is no such file.
    """
    result = read_mapping(path)
    metrics, kind = result.get("eval_result_metrics"), result.get("eval_type_id")
    is_result = (
        isinstance(metrics, dict) and isinstance(kind, str) and all(isinstance(m, dict) for m in metrics.values())
    )
    require(is_result, f"{path}: is no result of sae-bench, without eval_type_id and eval_result_metrics; run it again")
    assert isinstance(metrics, dict)
    values = {name: value for category in metrics.values() for name, value in category.items()}
    numbers = {name: value for name, value in values.items() if type(value) in (int, float) and value != -1}
    require(bool(numbers), f"{path}: holds no number: {json.dumps(values)[:200]}")
    empty = dict.fromkeys(COLUMNS)
    task = f"sae_bench_{kind}"
    return [empty | {"task": task, "score": f"sae_bench_{n}", "class": "all", "value": v} for n, v in numbers.items()]
