"""Which rows a claim compares under one condition: pairs of equal seeds, gathered into comparisons over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy import ndarray

from saebench.checks import InputError, require
from saebench.claims.effects import pooled
from saebench.claims.labels import ambiguous, describe, differing, few, name_of
from saebench.claims.points import Point, between, in_common
from saebench.claims.rows import MAKERS, SUMS, Evidence, NoRowsError, known, view_name
from saebench.claims.spec import Condition, PairClaim
from saebench.tables import PLACE, SEEDS, missing

Key = tuple[Any, ...]
SAME_L0 = (
    0.01  # relative; so near the end of a curve its last value is taken, as thresholds miss their L0 by about as much
)
LOG_METRICS = ("mse", "nmse", "fvu", "fvu_std", "ce_sae", "ce_increase", "kl")  # interpolated on a log scale


@dataclass(frozen=True)
class Pair:
    """Both sides at one seed, with the effect: log of left / right (relative) or left - right."""

    seed: Key
    left: Point
    right: Point
    effect: float
    draws: ndarray | None


@dataclass
class Comparison:
    """The pairs, one per seed, that agree in everything else, which `label` tells (column: value)."""

    label: dict[str, Any]
    pairs: list[Pair] = field(default_factory=list)

    @property
    def by_document(self) -> bool:
        """Whether the uncertainty of the documents is known beside that of the seeds."""
        return all(pair.draws is not None for pair in self.pairs)

    @property
    def documents(self) -> int:
        """Held-out documents behind each pair; 0 if the metric is not a sum over documents."""
        return len(self.pairs[0].left.documents) if self.by_document else 0

    @property
    def runs(self) -> list[str]:
        """The runs behind it."""
        return sorted({run for pair in self.pairs for run in (*pair.left.runs, *pair.right.runs)})


@dataclass(frozen=True)
class Side:
    """The rows of one side by what must be shared and by what is listed, each group's rows along the curve."""

    groups: dict[Key, dict[Key, list[dict[str, Any]]]]
    listed: list[str]


def compare(claim: PairClaim, condition: Condition, evidence: Evidence) -> tuple[list[Comparison], list[str]]:
    """Every comparison that can be made, and what cannot. Raises NoRowsError, saying what to make, if there is none."""
    table = evidence.with_columns(claim.rows, [*claim.same, *claim.along, *claim.left, *claim.right])
    if claim.rows == "views":
        known(table, condition.metric)
    if condition.metric not in table:
        maker = f"; `saebench {MAKERS[claim.rows]}` makes it" if claim.rows in MAKERS else ""
        raise NoRowsError(f"{claim.rows} has no column {condition.metric}{maker}")
    along = claim.along if condition.l0 == "exact" else []
    shared = [*PLACE, *SEEDS, *(known(table, name) for name in claim.same if name not in along)]
    left, right = (side_of(claim, side, condition, evidence, shared) for side in (claim.left, claim.right))
    keys = [key for key in left.groups if key in right.groups]
    if not keys:
        raise NoRowsError(
            f"no row of left ({describe(claim.left)}) agrees with one of right: {apart(left, right, shared)}"
        )
    build = Builder(claim, condition, evidence, [*along])
    for key in keys:
        for own, rows in left.groups[key].items():
            for other, others in right.groups[key].items():
                label = dict(zip(shared, key, strict=True))
                label |= {f"left {name}": value for name, value in zip(left.listed, own, strict=True)}
                label |= {f"right {name}": value for name, value in zip(right.listed, other, strict=True)}
                build.add(label, rows, others)
    return build.result()


def side_of(
    claim: PairClaim, side: dict[str, Any], condition: Condition, evidence: Evidence, shared: list[str]
) -> Side:
    """The rows of a side in which the metric was measured, by shared columns and by columns with several values asked for."""
    rows = evidence.choose(claim.rows, side | ({"tokens": condition.tokens} if condition.tokens else {}))
    measured = rows.loc[rows[condition.metric].notna()]
    if measured.empty:
        raise NoRowsError(f"{condition.metric} was not measured for {describe(side)}")
    listed = [name for name, value in side.items() if isinstance(value, list)]
    groups: dict[Key, dict[Key, list[dict[str, Any]]]] = {}
    for row in records(measured):
        key, own = tuple(row[name] for name in shared), tuple(row[name] for name in listed)
        groups.setdefault(key, {}).setdefault(own, []).append(row)
    return Side(groups, listed)


def apart(left: Side, right: Side, shared: list[str]) -> str:
    """The shared columns in which two sides have no value in common; all of them if it is only their combinations."""
    columns = [
        ({*map(str, a)}, {*map(str, b)})
        for a, b in zip(zip(*left.groups, strict=True), zip(*right.groups, strict=True), strict=True)
    ]
    told = [
        f"{name} ({few(sorted(a))} against {few(sorted(b))})"
        for name, (a, b) in zip(shared, columns, strict=True)
        if not a & b
    ]
    return f"they differ in {'; '.join(told)}" if told else f"not in all of {', '.join(shared)} at once"


def records(table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The rows as dictionaries, None where a cell is empty."""
    for row in table.to_dict("records"):
        yield {str(name): None if missing(value) else value for name, value in row.items()}


@dataclass
class Place:
    """What agrees in all but L0: its comparisons, and why a row found no partner if one did not."""

    label: dict[str, Any]
    found: dict[Key, Comparison] = field(default_factory=dict)
    why: str = ""

    def usable(self, seeds: int) -> list[Comparison]:
        """The comparisons; those that lack seeds, as L0 was in reach for some seeds only, give way to others that do not."""
        return [c for c in self.found.values() if len(c.pairs) >= seeds] or list(self.found.values())


class Builder:
    """Gathers pairs into comparisons, and remembers what could not be compared."""

    def __init__(self, claim: PairClaim, condition: Condition, evidence: Evidence, along: list[str]) -> None:
        self.claim, self.condition, self.evidence, self.along = claim, condition, evidence, along
        self.places: dict[Key, Place] = {}

    def add(self, label: dict[str, Any], left: list[dict[str, Any]], right: list[dict[str, Any]]) -> None:
        """Compare both sides at one seed: one row with one, or at equal L0 each row of one side with the curve of the other."""
        seed = tuple(label.pop(name) for name in SEEDS)
        place = self.places.setdefault(tuple(label.items()), Place(label))
        if self.condition.l0 == "exact":
            self.at_equal_l0(place, seed, left, right)
            return
        one, other = only(left, label, "left"), only(right, label, "right")
        self.pair(place, label, seed, self.point(one), self.point(other))

    def at_equal_l0(self, place: Place, seed: Key, left: list[dict[str, Any]], right: list[dict[str, Any]]) -> None:
        """Each row of the left against the curve of the right, or the reverse where only the left has several L0."""
        swap = len({row["l0"] for row in right}) < 2 <= len({row["l0"] for row in left})
        rows, curve = (right, left) if swap else (left, right)
        for row in rows:
            here = self.on_curve(curve, row["l0"])
            if here is None:
                span = f"{min(r['l0'] for r in curve):.3g} to {max(r['l0'] for r in curve):.3g}"
                place.why = f"L0 {row['l0']:.3g} is outside {span}"
                continue
            label = place.label | {name: row[name] for name in self.along}
            sides = (here, self.point(row)) if swap else (self.point(row), here)
            self.pair(place, label, seed, *sides)

    def pair(self, place: Place, label: dict[str, Any], seed: Key, left: Point, right: Point) -> None:
        """Put one pair into its comparison."""
        pairs = place.found.setdefault(tuple(label.items()), Comparison(label)).pairs
        twice = any(pair.seed == seed for pair in pairs)
        require(
            not twice, f"along={self.along}: several rows with {describe(label)}; add to same what tells them apart"
        )
        pairs.append(self.effect(seed, left, right))

    def effect(self, seed: Key, left: Point, right: Point) -> Pair:
        """The pair with its effect. Raises NoRowsError if the sides were not measured on the same documents or strata."""
        left, right = in_common(left, right)
        same = left.documents.keys() == right.documents.keys() and all(
            math.isclose(size, right.documents[name], rel_tol=1e-3) for name, size in left.documents.items()
        )
        if not same:
            raise NoRowsError(
                f"{' '.join(left.runs)} and {' '.join(right.runs)} were measured on different held-out documents; "
                "run `saebench evaluate` for both with equal data and evaluate keys"
            )
        if self.claim.margin.relative is None:
            draws = None if left.draws is None or right.draws is None else left.draws - right.draws
            return Pair(seed, left, right, left.value - right.value, draws)
        positive = min(point.value if point.draws is None else point.draws.min() for point in (left, right)) > 0
        require(positive, f"margin.relative: {self.condition.metric} is not positive everywhere; use margin.absolute")
        draws = None if left.draws is None or right.draws is None else np.log(left.draws / right.draws)
        return Pair(seed, left, right, math.log(left.value / right.value), draws)

    def point(self, row: dict[str, Any]) -> Point:
        """A row's metric, with its draws over documents; each row is looked at once for all claims."""
        value = row[self.condition.metric]
        if isinstance(value, dict):
            return Point((row["run"],), math.nan, math.nan, strata=value)
        if self.claim.rows != "views":
            return Point((row["run"],), math.nan, float(value))
        key = (row["run"], view_name(row), self.condition.metric, self.condition.tokens)
        if key not in self.evidence.points:
            self.evidence.points[key] = self.measured(row)
        return self.evidence.points[key]

    def measured(self, row: dict[str, Any]) -> Point:
        """A view's metric, with its draws if it is a ratio of sums over documents and the run has them."""
        value, l0 = float(row[self.condition.metric]), float(row["l0"])
        names = SUMS.get(self.condition.metric)
        sums = self.evidence.documents(row["run"], view_name(row), self.condition.tokens) if names else None
        if sums is None or names is None or not {*names} <= {*sums.columns}:
            return Point((row["run"],), l0, value)
        sums = sums.loc[sums[names[1]] > 0]
        sizes = sums[names[1]]
        draws = value * pooled(sums[names[0]].to_numpy(float), sizes.to_numpy(float))
        return Point((row["run"],), l0, value, draws, sizes.to_dict())

    def on_curve(self, rows: list[dict[str, Any]], l0: float) -> Point | None:
        """The curve through rows of several L0 at `l0`, linear in log L0 (log metric where LOG_METRICS); None outside it."""
        rows = sorted(rows, key=lambda row: row["l0"])
        places = [row["l0"] for row in rows]
        twins = next(((a, b) for a, b in pairwise(rows) if a["l0"] == b["l0"]), None)
        if twins:
            raise InputError(f"along={self.along}: {ambiguous(list(twins))}, and both have L0 {twins[0]['l0']:g}")
        nearest = min(rows, key=lambda row: abs(math.log(row["l0"] / l0)))
        if abs(nearest["l0"] / l0 - 1) <= SAME_L0 and not places[0] < l0 < places[-1]:
            return self.point(nearest)
        if not places[0] <= l0 <= places[-1]:
            return None
        after = max(1, int(np.searchsorted(places, l0)))
        low, high = self.point(rows[after - 1]), self.point(rows[after])
        return between(low, high, l0, self.condition.metric in LOG_METRICS)

    def result(self) -> tuple[list[Comparison], list[str]]:
        """The comparisons, and the places that have none because the other side's L0 is out of reach."""
        found = [one for place in self.places.values() for one in place.usable(self.claim.seeds)]
        told = differing([place.label for place in self.places.values()])
        bare = [place for place in self.places.values() if not place.found]
        uncovered = [f"{name_of(place.label, told)}: {place.why}".removeprefix(": ") for place in bare]
        if not found:
            raise NoRowsError(f"no two rows have an equal L0 ({few(uncovered)}); train or evaluate more of them")
        return found, uncovered


def only(rows: list[dict[str, Any]], label: dict[str, Any], side: str) -> dict[str, Any]:
    """The one row of a side. Raises InputError naming the columns that tell several apart."""
    require(
        len(rows) == 1,
        f"{side}: {len(rows)} rows with {describe(label)}: {ambiguous(rows)}; say which, or add it to same",
    )
    return rows[0]
