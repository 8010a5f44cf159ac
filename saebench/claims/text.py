"""Findings as tables: outputs/claims.csv, outputs/tables/pairs.csv, and text for people."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pandas as pd

from saebench.claims.judge import Finding, Judged, shown
from saebench.claims.rows import Evidence
from saebench.claims.spec import PairClaim, RowClaim
from saebench.tables import WIDTH, align

VERDICT = "verdict"
FIGURES = ["effect", "95% interval", "p", "pairs", "seeds", "docs"]
CAPTION = (
    "Each line shows the comparison that speaks least for its claim, of all its conditions. effect: left / right - 1 in %, "
    "else left - right. Interval: Student's, over seeds and held-out documents (docs -: over seeds alone). p: two-sided, "
    "Holm-adjusted. conditions: those with this verdict. All comparisons and pairs: "
)


def claim_rows(experiment: str, judged: list[Judged]) -> list[dict[str, Any]]:
    """The rows of claims.csv: per claim its verdict, then its conditions, each followed by its comparisons."""
    rows = []
    for one in judged:
        named = {"experiment": experiment, "id": one.claim.id}
        said = {"condition": VERDICT, "source": one.claim.source, "text": one.claim.text}
        rows.append(named | fields_of(one.verdict) | said | margin_of(one.claim))
        for condition in one.conditions or [None]:
            rows += [named | fields_of(condition)] if condition else []
            own = (f for f in one.comparisons if condition is None or f.condition == condition.condition)
            rows += [named | fields_of(f) for f in own if f.comparison]
    return rows


def margin_of(claim: PairClaim | RowClaim) -> dict[str, Any]:
    """The effects that do not count, in the unit of `effect`: around none, or around the factor that the claim names."""
    if isinstance(claim, RowClaim):
        return {"margin_low": None, "margin_high": None}
    middle = math.log(claim.factor)  # 0 without a factor
    low, high = (shown(middle + bound, claim.margin.relative is not None) for bound in claim.margin.bounds())
    return {"margin_low": low, "margin_high": high}


def fields_of(finding: Finding) -> dict[str, Any]:
    """A finding as the columns of claims.csv."""
    row = asdict(finding) | {"runs": " ".join(finding.runs)}
    row["unit"] = "" if finding.effect is None else "relative" if row.pop("relative") else "absolute"
    row.pop("relative", None)
    order = ["condition", "comparison", "verdict", "effect", "low", "high", "unit", "p", "pairs", "seeds", "documents"]
    return {name: row[name] for name in (*order, "reason", "runs")}


def report(evidence: Evidence, judged: list[Judged]) -> str:
    """The verdicts as text of at most WIDTH columns: a line of figures, the claim, and what there is to say of it."""
    shown = pd.DataFrame([figures(one) for one in judged])
    head, *lines = align(shown).splitlines()
    missing = len(evidence.runs) - len(evidence.done)
    top = f"{evidence.name}: {len(evidence.done)} of {len(evidence.runs)} runs"
    parts = [top + (f", {missing} missing" if missing else ""), head]
    for one, line in zip(judged, lines, strict=True):
        parts += [line.rstrip(), *wrapped(f"{one.claim.text} [{one.claim.source}]")]
        parts += list(wrapped(f"-> {one.verdict.reason}")) if one.verdict.reason else []
    counts = pd.Series([one.verdict.verdict for one in judged]).value_counts()
    parts.append(", ".join(f"{n} {name}" for name, n in counts.items()))
    parts += textwrap.wrap(
        CAPTION + f"{evidence.outputs / 'claims.csv'}, {evidence.outputs / 'tables' / 'pairs.csv'}", WIDTH
    )
    return "\n".join(parts)


def wrapped(text: str) -> Iterator[str]:
    """Text below a line of figures."""
    yield from textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)


def figures(one: Judged) -> dict[str, str]:
    """The cells of a claim's line."""
    f = one.verdict
    pair = isinstance(one.claim, PairClaim)
    values = {
        "effect": size(f.effect, f.relative) if pair else "" if f.effect is None else f"true of {f.effect:.0%}",
        "95% interval": "" if f.low is None else f"{size(f.low, f.relative)} to {size(f.high, f.relative)}",
        "p": "" if f.p is None else "<.001" if f.p < 0.001 else f"{f.p:.3f}",
        "pairs": str(f.pairs or ""),
        "seeds": str(f.seeds or ""),
        "docs": str(f.documents or ("-" if pair and f.pairs else "")),
    }
    judged = f"{sum(c.verdict == f.verdict for c in one.conditions)}/{len(one.conditions)}" if one.conditions else ""
    return {"claim": one.claim.id, VERDICT: f.verdict, "conditions": judged} | {name: values[name] for name in FIGURES}


def size(value: float | None, relative: bool) -> str:
    """An effect or an end of its interval."""
    if value is None:
        return ""
    return f"{value:+.1%}" if relative else f"{value:+.4f}"
