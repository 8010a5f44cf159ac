"""What a claim says: the keys of conf/claims/*.yaml, their types and their checks.

A PairClaim compares two sides, row by row: how a metric of `left` stands to that of `right`. A RowClaim says that something
holds in every row it names. Both are judged over seeds; what is written here is all that decides which rows are compared.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from saebench.checks import InputError, at_least, one_of, require
from saebench.claims import holds

Region = tuple[float, float]
DIRECTIONS = ("lower", "higher", "not_lower", "not_higher", "close", "either")
SIDES = ("lower", "higher")
L0_RULES = ("paper", "exact")
TOKENS = ("all", "typical")


@dataclass
class Margin:
    """The smallest difference that counts: a share of the right side's value, or an amount in the metric's own unit."""

    relative: float | None = None
    absolute: float | None = None

    def __post_init__(self) -> None:
        one = (self.relative is None) != (self.absolute is None)
        require(one, "margin: give either relative or absolute, as in margin: {relative: 0.02}")
        at_least("margin.absolute", self.absolute, 0)
        ok = self.relative is None or 0 <= self.relative < 1
        require(ok, f"margin.relative={self.relative}: must be at least 0 and below 1")

    def bounds(self) -> Region:
        """The effects of least and greatest size that do not count, on the scale of effects (log of the ratio if relative)."""
        if self.relative is not None:
            return math.log1p(-self.relative), math.log1p(self.relative)
        assert self.absolute is not None
        return -self.absolute, self.absolute


@dataclass(frozen=True)
class Condition:
    """One way to judge a claim; its verdict must not depend on which."""

    metric: str
    l0: str
    tokens: str

    @property
    def name(self) -> str:
        """As tables show it."""
        return ", ".join(part for part in (self.metric, f"L0 {self.l0}" if self.l0 else "", self.tokens) if part)


@dataclass
class PairClaim:
    """`left` against `right`, paired by equal seeds, model, layer, site, data and the columns in `same`.

    A side maps columns to values: null is an empty cell, `largest` the largest value there is, a list makes one comparison
    for each of its values. Directions: lower, higher (by more than the margin); not_lower, not_higher (by no more than it);
    close (within it); either (two-sided; `says` is what the source reports of the left side, if it does). `factor` multiplies
    the right side.
    """

    text: str
    source: str
    metrics: list[str]
    left: dict[str, Any]
    right: dict[str, Any]
    direction: str
    margin: Margin
    id: str = ""
    rows: str = "views"  # views: metrics.csv; runs: one row per run; else outputs/tables/<rows>.csv
    same: list[str] = field(default_factory=list)
    l0: list[str] = field(default_factory=lambda: ["paper"])  # paper: pairs as `same` makes them; exact: at equal L0
    along: list[str] = field(default_factory=list)  # exact: columns free to differ; their rows are one curve over L0
    tokens: list[str] = field(default_factory=lambda: list(TOKENS))
    says: str | None = None
    factor: float = 1.0
    seeds: int = 3  # fewer are inconclusive
    documents: int = 10  # fewer held-out documents are inconclusive, where the metric is a sum over documents

    def __post_init__(self) -> None:
        one_of("direction", self.direction, DIRECTIONS)
        for key, values, allowed in (("l0", self.l0, L0_RULES), ("tokens", self.tokens, TOKENS)):
            for value in values:
                one_of(key, value, allowed)
        for key in ("metrics", "l0", "tokens"):
            require(bool(getattr(self, key)), f"{key}=[]: name at least one")
        require(self.rows == "views" or self.l0 == ["paper"], f"l0={self.l0}: only rows: views have an L0 to match")
        require("exact" not in self.l0 or bool(self.along), "along=[]: l0 exact needs the columns along which L0 moves")
        require("tokens" not in self.left | self.right, "left, right: tokens is a key of the claim, not of a side")
        require(self.says is None or self.direction == "either", f"says={self.says}: only direction: either has it")
        require(self.says is None or self.says in SIDES, f"says={self.says}: choose one of lower, higher")
        relative = self.margin.relative is not None
        require(self.factor > 0, f"factor={self.factor}: must be positive")
        require(self.factor == 1 or relative, f"factor={self.factor}: needs a relative margin")
        at_least("seeds", self.seeds, 2)
        at_least("documents", self.documents, 2)

    def conditions(self) -> list[Condition]:
        """Every combination of metric, L0 rule and tokens."""
        views = self.rows == "views"
        axes = (self.metrics, self.l0 if views else [""], self.tokens if views else [""])
        return [Condition(metric, l0, tokens) for metric, l0, tokens in itertools.product(*axes)]

    def outcomes(self) -> dict[str, list[Region]]:
        """What an effect that surely lies in one of these open regions means."""
        shift = math.log(self.factor)
        low, high = (bound + shift for bound in self.margin.bounds())
        below, above = (-math.inf, low), (high, math.inf)
        return {
            "lower": {"reproduced": [below], "refuted": [(shift, math.inf)]},
            "higher": {"reproduced": [above], "refuted": [(-math.inf, shift)]},
            "not_lower": {"reproduced": [(low, math.inf)], "refuted": [below]},
            "not_higher": {"reproduced": [(-math.inf, high)], "refuted": [above]},
            "close": {"reproduced": [(low, high)], "refuted": [below, above]},
            "either": {self.named("lower"): [below], self.named("higher"): [above]},
        }[self.direction]

    def named(self, side: str) -> str:
        """The verdict if the left side's value is `side`: itself, unless the source says which it is."""
        return side if self.says is None else "reproduced" if side == self.says else "refuted"


@dataclass
class RowClaim:
    """`holds`, an expression over columns such as "p_gof >= 0.1 and r2 > 0.9", is true of every row that `where` chooses."""

    text: str
    source: str
    rows: str
    where: dict[str, Any]
    holds: str
    id: str = ""
    seeds: int = 3

    def __post_init__(self) -> None:
        at_least("seeds", self.seeds, 2)
        require(bool(self.columns()), f"holds={self.holds}: must compare at least one column with something")

    def columns(self) -> list[str]:
        """The columns that `holds` reads. Raises InputError unless it is made of comparisons, and, or, not and arithmetic."""
        return holds.columns(self.holds)

    def true_of(self, row: dict[str, Any]) -> bool:
        """Whether it holds in a row that has every column it reads."""
        return holds.holds(self.holds, row)


def read_claim(experiment: str, name: str, given: Any) -> PairClaim | RowClaim:
    """A claim from its YAML. Raises InputError naming experiment, claim, key and remedy."""
    where = f"experiment={experiment}, claim {name}"
    require(isinstance(given, dict), f"{where}: must map keys such as text, left and right to values, is {given!r}")
    kind = RowClaim if "holds" in given else PairClaim
    known = tuple(f.name for f in fields(kind) if f.name != "id")
    for key in given:
        one_of(f"{where}, key", key, known)
    try:
        cfg = OmegaConf.merge(OmegaConf.structured(kind), given, {"id": name})
        missing = sorted(OmegaConf.missing_keys(cfg))
        require(not missing, f"{', '.join(missing)}: no value; give one")
        claim = OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        raise InputError(f"{where}, {error.full_key}: {str(error).splitlines()[0]}") from error
    except InputError as error:
        raise InputError(f"{where}, {error}") from error
    assert isinstance(claim, PairClaim | RowClaim)
    return claim
