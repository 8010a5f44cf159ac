"""Claims as code: what a paper says as comparisons over metrics rows, judged on the finished runs of a sweep.

conf/claims/*.yaml says it (spec), rows finds the evidence, pairs compares like with like, judge decides, text tells.
Imports no torch; pandas and scipy, so import it only where it is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from saebench.checks import InputError, require
from saebench.claims.judge import Judged, judge
from saebench.claims.rows import Evidence
from saebench.claims.spec import read_claim
from saebench.claims.text import claim_rows, report
from saebench.config import RunConfig
from saebench.store import write_text


def judge_claims(configs: list[RunConfig], claims: dict[str, Any]) -> str:
    """Judge the claims of an experiment on the finished runs of its sweep; the verdicts as text.

    Writes outputs/claims.csv (other experiments' rows are kept) and outputs/tables/pairs.csv. Raises InputError for a mistake
    in a claim, naming experiment, claim and key, and if no run of the sweep is finished.
    """
    name = configs[0].experiment.name
    require(
        bool(claims),
        f"experiment={name or 'null'}: it lists no claims; choose one with experiment.claims, such as progressive/cpu",
    )
    read = [read_claim(name, one, given) for one, given in claims.items()]
    evidence = Evidence(configs)
    judged: list[Judged] = []
    for claim in read:
        try:
            judged.append(judge(claim, evidence))
        except InputError as error:
            raise InputError(f"experiment={name}, claim {claim.id}, {error}") from error
    write(evidence.outputs / "claims.csv", name, claim_rows(name, judged))
    pairs = [{"experiment": name} | row for one in judged for row in one.pairs]
    write(evidence.outputs / "tables" / "pairs.csv", name, pairs)
    return report(evidence, judged)


def write(path: Path, experiment: str, rows: list[dict[str, Any]]) -> None:
    """Write rows as CSV in place of the experiment's former ones."""
    table = pd.DataFrame(rows)
    if path.is_file():
        former = pd.read_csv(path)
        kept = former.loc[former["experiment"] != experiment]
        table = pd.concat([kept, table], ignore_index=True) if len(kept) else table
    if table.empty:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, table.to_csv(index=False))
