"""Verdicts: what pairs of rows say of a claim, under every condition it names.

A comparison is decided when Student's interval over seeds and documents lies in the region that the claim (or its opposite)
names, after Holm's correction over the claim's comparisons, and every seed's effect lies there too. A condition is decided when
all its comparisons agree, a claim when all its conditions do. Everything else is inconclusive.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from saebench.checks import require
from saebench.claims.effects import LEVEL, Estimate, estimate, holm, percentiles
from saebench.claims.labels import describe, differing, few, name_of
from saebench.claims.pairs import Comparison, compare, records
from saebench.claims.rows import RUN_COLUMNS, Evidence, NoRowsError, known
from saebench.claims.spec import PairClaim, RowClaim
from saebench.tables import PLACE, SEEDS

INCONCLUSIVE = "inconclusive"


@dataclass
class Finding:
    """The verdict on a comparison, a condition or a claim, with the numbers of the weakest comparison in it.

    `effect`, `low`, `high` are left / right - 1 where `relative`, else left - right; `p` is two-sided, Holm-adjusted.
    """

    verdict: str
    reason: str = ""
    condition: str = ""
    comparison: str = ""
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    relative: bool = False
    p: float | None = None
    pairs: int = 0
    seeds: int = 0
    documents: int = 0  # 0: the interval is from seeds alone
    runs: list[str] = field(default_factory=list)


@dataclass
class Judged:
    """A claim with its verdict and the findings below it."""

    claim: PairClaim | RowClaim
    verdict: Finding
    conditions: list[Finding]
    comparisons: list[Finding]
    pairs: list[dict[str, Any]]


def judge(claim: PairClaim | RowClaim, evidence: Evidence) -> Judged:
    """The verdict on one claim."""
    if isinstance(claim, RowClaim):
        return judge_rows(claim, evidence)
    conditions, comparisons, pairs = [], [], []
    for condition in claim.conditions():
        try:
            found, uncovered = compare(claim, condition, evidence)
        except NoRowsError as error:
            conditions.append(Finding(INCONCLUSIVE, str(error), condition.name))
            continue
        findings = weigh(claim, found, condition.name)
        comparisons += findings
        conditions.append(conclude(findings, uncovered))
        pairs += [pair_row(claim, condition.name, f.comparison, c) for f, c in zip(findings, found, strict=True)]
    rows = [row for part in pairs for row in part]
    return Judged(claim, overall(claim, conditions, evidence), conditions, comparisons, rows)


# comparisons


def weigh(claim: PairClaim, found: list[Comparison], condition: str) -> list[Finding]:
    """The finding of each comparison under one condition."""
    outcomes = claim.outcomes()
    estimates = [estimate_of(claim, comparison) for comparison in found]
    sure = [e for e in estimates if e is not None]
    raw = {name: [min(e.p_outside(r) for r in regions) for e in sure] for name, regions in outcomes.items()}
    adjusted = {name: iter(holm(ps)) for name, ps in raw.items()}
    told = differing([comparison.label for comparison in found])
    findings = []
    for comparison, one in zip(found, estimates, strict=True):
        finding = blank(claim, comparison, condition, name_of(comparison.label, told))
        if one is not None:
            decide(finding, claim, comparison, one, {name: next(ps) for name, ps in adjusted.items()}, len(sure))
        findings.append(finding)
    return findings


def estimate_of(claim: PairClaim, comparison: Comparison) -> Estimate | None:
    """The mean effect, or None where too few seeds or documents are behind it."""
    if len(comparison.pairs) < claim.seeds or (comparison.by_document and comparison.documents < claim.documents):
        return None
    draws = [pair.draws for pair in comparison.pairs if pair.draws is not None] if comparison.by_document else None
    return estimate([pair.effect for pair in comparison.pairs], draws, comparison.documents)


def blank(claim: PairClaim, comparison: Comparison, condition: str, name: str) -> Finding:
    """The finding of a comparison before it is decided: its mean effect, and what it lacks."""
    count, documents = len(comparison.pairs), comparison.documents
    lacks = [f"{count} of {claim.seeds} seeds"] if count < claim.seeds else []
    if comparison.by_document and documents < claim.documents:
        lacks.append(f"{documents} of {claim.documents} documents (raise data.eval_tokens or evaluate.ce_tokens)")
    relative = claim.margin.relative is not None
    mean = sum(pair.effect for pair in comparison.pairs) / count
    return Finding(
        INCONCLUSIVE, " and ".join(lacks), condition, name, shown(mean, relative), relative=relative,
        pairs=count, seeds=count, documents=documents, runs=comparison.runs,
    )  # fmt: skip


def decide(
    finding: Finding, claim: PairClaim, comparison: Comparison, one: Estimate, ps: dict[str, float], number: int
) -> None:
    """Complete the finding of a comparison: interval, p, verdict and, if it is open, why."""
    low, high = one.interval()
    finding.low, finding.high = (shown(end, finding.relative) for end in (low, high))
    first = "reproduced" if "reproduced" in ps else min(ps, key=lambda name: ps[name])
    finding.p = ps[first]
    for name, regions in claim.outcomes().items():
        inside = [any(a < pair.effect < b for a, b in regions) for pair in comparison.pairs]
        if ps[name] <= 1 - LEVEL and all(inside):
            finding.verdict, finding.p = name, ps[name]
            return
        if ps[name] <= 1 - LEVEL:
            finding.reason = f"{inside.count(False)} of {len(inside)} seeds say otherwise"
        elif any(a < low and high < b for a, b in regions):
            finding.reason = f"not after correction for {number} comparisons"
    least, most = claim.margin.bounds()
    shift = math.log(claim.factor)
    within = least + shift <= low and high <= most + shift
    finding.reason = finding.reason or (
        "no difference beyond the margin" if within else "the interval holds both outcomes"
    )


def shown(effect: float, relative: bool) -> float:
    """An effect as it is reported."""
    return math.expm1(effect) if relative else effect


def pair_row(claim: PairClaim, condition: str, name: str, comparison: Comparison) -> list[dict[str, Any]]:
    """The rows of pairs.csv of one comparison."""
    rows = []
    for pair in comparison.pairs:
        relative = claim.margin.relative is not None
        ends = (None, None) if pair.draws is None else (shown(end, relative) for end in percentiles(pair.draws))
        named = {"id": claim.id, "condition": condition, "comparison": name}
        named |= dict(zip(SEEDS, pair.seed, strict=True))
        sides = {"left": pair.left.value, "right": pair.right.value, "left_l0": pair.left.l0, "right_l0": pair.right.l0}
        effect = dict(zip(("effect", "low", "high"), (shown(pair.effect, relative), *ends), strict=True))
        runs = {"left_run": " ".join(pair.left.runs), "right_run": " ".join(pair.right.runs)}
        rows.append(named | sides | effect | {"documents": comparison.documents} | runs)
    return rows


# conditions and claims


def conclude(findings: list[Finding], uncovered: list[str]) -> Finding:
    """The finding of a condition: that on which all its comparisons agree, told by the weakest of them."""
    weakest = max(findings, key=lambda f: (f.p is None, f.p or 0.0))
    verdicts = {f.verdict for f in findings}
    verdict = verdicts.pop() if len(verdicts) == 1 and not uncovered else INCONCLUSIVE
    parts = [f"weakest of {len(findings)}: {weakest.comparison}"] if len(findings) > 1 else []
    if verdict == INCONCLUSIVE:
        parts = by_verdict(findings) + ([f"not comparable at {few(uncovered)}"] if uncovered else [])
    runs = sorted({run for f in findings for run in f.runs})
    return Finding(
        verdict, "; ".join(parts), weakest.condition, "", weakest.effect, weakest.low, weakest.high, weakest.relative,
        weakest.p, sum(f.pairs for f in findings), min(f.seeds for f in findings), min(f.documents for f in findings), runs,
    )  # fmt: skip


def by_verdict(findings: list[Finding]) -> list[str]:
    """Which comparisons came to which verdict, and why those are open that are."""
    groups: dict[tuple[str, str], list[str]] = {}
    for f in findings:
        groups.setdefault((f.verdict, f.reason), []).append(f.comparison)
    parts = []
    for (verdict, reason), names in groups.items():
        said = "open" if verdict == INCONCLUSIVE else verdict
        parts.append(f"{said} at {few(names)}" + (f" ({reason})" if reason else "") if names[0] else reason)
    return parts


def overall(claim: PairClaim, conditions: list[Finding], evidence: Evidence) -> Finding:
    """The finding of a claim: that on which all its conditions agree, told by the weakest of them."""
    weakest = max(conditions, key=lambda f: (f.effect is not None, f.p is None, f.p or 0.0))
    verdicts = Counter(f.verdict for f in conditions)
    verdict = next(iter(verdicts)) if len(verdicts) == 1 else INCONCLUSIVE
    if len(verdicts) > 1:
        under = {name: few([f.condition for f in conditions if f.verdict == name]) for name in verdicts}
        reason = "the verdict depends on the condition: " + ", ".join(f"{n} ({where})" for n, where in under.items())
        opened = next((f for f in conditions if f.verdict == INCONCLUSIVE and f.reason), None)
        reason += f". {opened.condition}: {opened.reason}" if opened else ""
    else:
        reasons = list(dict.fromkeys(f.reason for f in conditions if f.reason))
        reason = (f"{weakest.condition}: " if len(reasons) > 1 else "") + weakest.reason
        if claim.direction == "either" and verdict != INCONCLUSIVE:
            reason = f"left is {'lower' if (weakest.effect or 0.0) < 0 else 'higher'}" + (
                f"; {reason}" if reason else ""
            )
    todo = [
        run
        for run in evidence.runs
        if run.folder is None and any(evidence.asks(run, s) for s in (claim.left, claim.right))
    ]
    if todo and "runs missing" not in reason:
        reason += ("; " if reason else "") + evidence.to_make(todo)
    runs = sorted({run for f in conditions for run in f.runs})
    return Finding(
        verdict, reason, "", "", weakest.effect, weakest.low, weakest.high, weakest.relative, weakest.p,
        weakest.pairs, weakest.seeds, weakest.documents, runs,
    )  # fmt: skip


# claims about single rows


def judge_rows(claim: RowClaim, evidence: Evidence) -> Judged:
    """The verdict on a claim about single rows: reproduced if it holds at every seed, refuted if it fails at every one."""
    try:
        items = by_item(claim, evidence)
    except NoRowsError as error:
        return Judged(claim, Finding(INCONCLUSIVE, str(error)), [], [], [])
    told = differing([label for label, _ in items])
    findings = [row_finding(claim, rows, name_of(label, told)) for label, rows in items]
    end = conclude(findings, [])
    everything = [held for _, rows in items for held, _ in rows]
    verdict = Finding(
        end.verdict, end.reason, effect=sum(everything) / len(everything), pairs=end.pairs, seeds=end.seeds
    )
    verdict.runs = end.runs
    return Judged(claim, verdict, [], findings, [])


def by_item(claim: RowClaim, evidence: Evidence) -> list[tuple[dict[str, Any], list[tuple[bool, str]]]]:
    """Whether the claim holds, and in which run, in every row that has all it needs: by everything but the seeds."""
    table = evidence.with_columns(claim.rows, [*claim.where])
    rows = evidence.choose(claim.rows, claim.where)
    listed = [name for name, value in claim.where.items() if isinstance(value, list) and name not in RUN_COLUMNS]
    names = [name for name in (*PLACE, "d_sae", "k", *listed) if name in table]
    measured = rows.dropna(subset=[known(table, name) for name in claim.columns()])
    if measured.empty:
        raise NoRowsError(f"{', '.join(claim.columns())} were not measured for {describe(claim.where)}")
    items: dict[tuple[Any, ...], list[tuple[bool, str]]] = {}
    seen = set()
    for row in records(measured):
        key, seed = tuple(row[name] for name in names), tuple(row[name] for name in SEEDS)
        require(
            (key, seed) not in seen, f"where: several rows with {describe(dict(zip(names, key, strict=True)))} per seed"
        )
        seen.add((key, seed))
        items.setdefault(key, []).append((claim.true_of(row), row["run"]))
    return [(dict(zip(names, key, strict=True)), found) for key, found in items.items()]


def row_finding(claim: RowClaim, rows: list[tuple[bool, str]], name: str) -> Finding:
    """The finding of one item: its rows, one per seed."""
    held = [true for true, _ in rows]
    verdict = "reproduced" if all(held) else INCONCLUSIVE if any(held) else "refuted"
    reason = f"holds at {sum(held)} of {len(held)} seeds"
    if len(held) < claim.seeds:
        verdict, reason = INCONCLUSIVE, f"{reason}, {claim.seeds} needed"
    runs = [run for _, run in rows]
    return Finding(verdict, reason, "", name, sum(held) / len(held), pairs=len(held), seeds=len(set(runs)), runs=runs)
