"""Run folders of known truth for the judge of claims; nothing here is a result."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from saebench.claims.judge import Judged, judge
from saebench.claims.rows import Evidence
from saebench.claims.spec import read_claim
from saebench.compose import load_sweep
from saebench.config import RunConfig, as_dict

DOCUMENTS = 24
SEED_NOISE, DOCUMENT_NOISE = 0.004, 0.1  # of the log of FVU; most of a document's noise is common to all SAEs
VIEW = {"view": "full", "rule": "", "order": "", "m": 1024, "budget": 8, "mode": "topk", "l0": 8.0}
CLAIM = {
    "text": "left is lower",
    "source": "a test",
    "metrics": ["fvu"],
    "left": {"variant": "matryoshka"},
    "right": {"variant": "topk"},
    "tokens": ["all"],
    "direction": "lower",
    "margin": {"relative": 0.02},
}
Truth = Callable[[RunConfig], list[dict[str, Any]]]  # the rows of a run: keys of VIEW and, per metric, its true value


@cache
def sweep_of(*overrides: str) -> list[RunConfig]:
    """The runs that overrides ask for."""
    return load_sweep(list(overrides))


def sweep(outputs: Path, *overrides: str) -> list[RunConfig]:
    """The same with an outputs folder."""
    configs = deepcopy(sweep_of(*overrides))
    for cfg in configs:
        cfg.outputs, cfg.experiment.name = str(outputs), "test"
    return configs


def levels(**fvu: float) -> Truth:
    """A full view per run, with an FVU by variant."""
    return lambda cfg: [{"fvu": fvu[cfg.sae.name]}]


def write_runs(configs: list[RunConfig], truth: Truth, documents: int = DOCUMENTS, noise: float = SEED_NOISE) -> None:
    """Write the finished run of every config; FVU is a ratio of noisy per-document sums, the rest as `truth` has it."""
    for i, cfg in enumerate(configs):
        write_run(Path(cfg.outputs) / "runs" / f"{cfg.sae.name}-{i:03d}", cfg, truth(cfg), documents, noise)


def write_run(folder: Path, cfg: RunConfig, views: list[dict[str, Any]], documents: int, noise: float) -> None:
    """One run folder."""
    evaluation = folder / "evaluations" / "one"
    evaluation.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(as_dict(cfg)))
    (folder / "done.json").write_text(json.dumps({"inputs": {}}))
    write(folder / "train.csv", [{"step": 1, "seconds": 1.0}, {"step": 2, "seconds": 8.0 + cfg.seed}])
    named = {"run": folder.name, "variant": cfg.sae.name, "model": cfg.model.name, "layer": cfg.model.layer}
    named |= {"site": cfg.model.site, "data": cfg.data.name, "seed": cfg.seed, "order_seed": cfg.train.order_seed}
    k = getattr(cfg.sae, "k", "")
    named |= {"d_sae": cfg.sae.d_sae, "k": k}
    rows, sums = [], []
    for i, view in enumerate(views):
        row = VIEW | {"m": cfg.sae.d_sae, "budget": k} | view
        own = [len(folder.name), cfg.seed, k or 0, i, int(folder.name[-3:])]
        parts, row["fvu"] = fvu_sums(row, cfg.seed, own, documents, noise)
        rows += [
            named | {"tokens": tokens, "ce_clean": 3.0, "ce_sae": 3.0 + row["fvu"], "fvu_std": row["fvu"]} | row
            for tokens in ("all", "typical")
        ]
        name = "-".join(str(row[key]) for key in ("view", "rule", "order", "m", "budget", "mode") if row[key] != "")
        sums += [{"view": name} | part for part in parts]
    for path in (folder / "metrics.csv", evaluation / "metrics.csv"):
        write(path, rows)
    write(evaluation / "documents.csv", sums)


def fvu_sums(
    row: dict[str, Any], seed: int, own: list[int], documents: int, noise: float
) -> tuple[list[dict[str, Any]], float]:
    """Per-document sums whose ratio is near row["fvu"], and that ratio; most of the documents' noise is common."""
    shared, mine = np.random.default_rng(0), np.random.default_rng(own)
    totals = shared.uniform(50, 150, documents)
    bumps = DOCUMENT_NOISE * shared.normal(size=documents) + 0.1 * DOCUMENT_NOISE * mine.normal(size=documents)
    residuals = totals * row["fvu"] * np.exp(bumps + noise * mine.normal())
    parts = [
        {
            "document": d,
            "group": "typical",
            "tokens": 100,
            "residual": r,
            "total": t,
            "ce_tokens": 10,
            "ce_sae": 10 * (3.0 + r / t),
        }
        for d, (r, t) in enumerate(zip(residuals, totals, strict=True))
    ]
    return parts, float(residuals.sum() / totals.sum())


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def verdict_on(configs: list[RunConfig], **changes: Any) -> Judged:
    """CLAIM with changes, judged on the runs of a sweep; a change to None takes the key away."""
    given = {key: value for key, value in (CLAIM | changes).items() if value is not None}
    return judge(read_claim("test", "T", given), Evidence(configs))
