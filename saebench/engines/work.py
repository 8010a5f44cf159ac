"""What a worker does with its task, in a process of its own, perhaps on another machine."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saebench.checks import InputError
from saebench.config import RunConfig, from_dict
from saebench.pipeline import run
from saebench.search import rates, search
from saebench.stream import open_stream


def work(order: Mapping[str, Any]) -> dict[str, Any]:
    """Do what a Task's `order` says; an Outcome's folders, or its wrong or failed, which standard error tells, too."""
    try:
        configs = [from_dict(values) for values in order["configs"]]
        return {"folders": [str(folder) for folder in ACTS[order["does"]](configs)]}
    except InputError as error:
        print(f"saebench: {error}", file=sys.stderr, flush=True)
        return {"wrong": " ".join(str(error).split())}
    except Exception as error:
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}


def sweep(configs: list[RunConfig]) -> list[Path]:
    """Search what is to be searched, train and evaluate."""
    search(configs)
    return run(rates(configs)[0])


def evaluate(configs: list[RunConfig]) -> list[Path]:
    """Evaluate runs that are trained."""
    return run(rates(configs)[0], evaluate_only=True)


def cache(configs: list[RunConfig]) -> list[Path]:
    """Cache the activations that all of them read."""
    shards = open_stream(configs[0]).shards
    return [getattr(shards, "path", Path(configs[0].outputs))]


ACTS = {"sweep": sweep, "evaluate": evaluate, "cache": cache}
