"""Claims: a forest plot of each, every comparison's mean effect with its interval beside the effect at every seed."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from saebench.checks import require
from saebench.figures.data import pages
from saebench.figures.style import INK, key, legend, name_axes


class Mark(NamedTuple):
    """The colour and the marker of a verdict, and whether it is filled."""

    colour: str
    marker: str
    filled: bool = True


MARKS = {  # told apart by the colour-blind; none is a variant's colour
    "reproduced": Mark("#004488", "o"),
    "refuted": Mark("#BB5566", "v"),
    "inconclusive": Mark("#777777", "D", filled=False),
}
NUMBERS = ["effect", "low", "high"]
MARGIN = ["margin_low", "margin_high"]
UNITS = {"relative": "left / right − 1 (%)", "absolute": "left − right"}
BAND = "#F0E6C8"
COLUMNS, ROWS = 4, 40  # of panels side by side; of comparisons above each other on a page
PANEL, ROW, LETTER = 1.75, 0.15, 0.055  # inches
BELOW = 0.33  # of a row: where the seeds are, the mean above them
Block = tuple[list[str], list[str]]  # conditions side by side that share their comparisons


@dataclass
class Claim:
    """A claim of claims.csv that compares pairs: its verdict, the findings below it and the pairs behind them.

    Findings and pairs are in the unit of the axis (%, or the metric's own); a condition's own finding has comparison "".
    `margin` holds the ends of the region in which nothing is claimed, if claims.csv knows it.
    """

    name: str
    id: str
    text: str
    source: str
    verdict: str
    unit: str
    margin: tuple[float, float] | None
    findings: pd.DataFrame
    pairs: pd.DataFrame

    def limits(self) -> tuple[float, float]:
        """The x axis: every mean and seed, zero and the margin, and of the intervals what fits on as much again."""
        inner = [0.0, *self.pairs["effect"], *self.findings["effect"].dropna(), *(self.margin or ())]
        least, most = min(inner), max(inner)
        span = (most - least) or 1.0
        low, high = (self.findings[name].dropna() for name in ("low", "high"))
        left = max(min([least, *low]), least - span) - 0.05 * span
        return left, min(max([most, *high]), most + span) + 0.05 * span


def read_claims(outputs: Path) -> list[Claim]:
    """The claims about pairs of outputs/claims.csv, in its order; none without it or outputs/tables/pairs.csv.

    Raises InputError if the two do not belong together.
    """
    claims, pairs = (read(outputs / name) for name in ("claims.csv", "tables/pairs.csv"))
    if claims.empty or pairs.empty:
        return []
    several = len(set(claims["experiment"])) > 1
    found = []
    for (experiment, name), findings in claims.groupby(["experiment", "id"], sort=False):  # pyright: ignore
        own = pairs.loc[(pairs["experiment"] == experiment) & (pairs["id"] == name)]
        unknown = set(keys_of(own)) - set(keys_of(findings))
        require(not unknown, f"outputs={outputs}: tables/pairs.csv and claims.csv differ; run `saebench claims` again")
        suffix = f"-{experiment}".replace("/", "_") if several else ""
        if len(own):
            found.append(claim_of(f"claim_{name}{suffix}", findings, own))
    return found


def read(path: Path) -> pd.DataFrame:
    """A table of `saebench claims`, numbers as numbers, an empty text as such; without rows if it is not there."""
    text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    if not text:
        return pd.DataFrame()
    table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    numbers = [name for name in (*NUMBERS, *MARGIN) if name in table]
    return table.assign(**{name: pd.to_numeric(table[name]) for name in numbers})


def keys_of(table: pd.DataFrame) -> Iterable[tuple[str, str]]:
    """The condition and the comparison of every row."""
    return zip(table["condition"], table["comparison"], strict=True)


def claim_of(name: str, findings: pd.DataFrame, pairs: pd.DataFrame) -> Claim:
    """A claim from its rows of claims.csv, the first of which is its verdict, and of pairs.csv."""
    head = findings.iloc[0]
    factor = 100.0 if head["unit"] == "relative" else 1.0
    known = set(MARGIN) <= set(findings) and bool(head[MARGIN].notna().all())
    margin = (factor * head[MARGIN[0]], factor * head[MARGIN[1]]) if known else None
    below, pairs = (table.assign(**{n: factor * table[n] for n in NUMBERS}) for table in (findings.iloc[1:], pairs))
    named = (head["id"], head["text"], head["source"], head["verdict"], head["unit"])
    return Claim(name, *named, margin, below, pairs)


def forest(claim: Claim) -> list[Figure]:
    """One row per comparison, one panel per condition; conditions with the same comparisons stand side by side."""
    return [forest_page(claim, page) for page in packed(blocks_of(claim))]


def blocks_of(claim: Claim) -> list[Block]:
    """The panels of a claim: at most COLUMNS conditions of at most ROWS comparisons."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for condition, pairs in claim.pairs.groupby("condition", sort=False):
        alike.setdefault(tuple(dict.fromkeys(pairs["comparison"])), []).append(str(condition))
    return [
        (side_by_side, rows)
        for comparisons, conditions in alike.items()
        for rows in pages(list(comparisons), ROWS)
        for side_by_side in (conditions[i : i + COLUMNS] for i in range(0, len(conditions), COLUMNS))
    ]


def packed(blocks: Iterable[Block]) -> list[list[Block]]:
    """The blocks, in their order, on as few pages of at most ROWS comparisons as can be."""
    filled: list[list[Block]] = []
    for block in blocks:
        if filled and sum(len(rows) for _, rows in [*filled[-1], block]) <= ROWS:
            filled[-1].append(block)
        else:
            filled.append([block])
    return filled


def forest_page(claim: Claim, page: list[Block]) -> Figure:
    """One page of `forest`."""
    columns, heights = max(len(conditions) for conditions, _ in page), [len(rows) + 0.6 for _, rows in page]
    letters = max(len(row) for _, rows in page for row in rows)
    width = min(max(5.0, PANEL * columns + LETTER * letters + 0.5), 2 * rcParams["figure.figsize"][0] + 0.25)
    size = (width, ROW * sum(heights) + 0.5 * len(page) + 1.7)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title(claim, int(15 * size[0])), x=0.01, ha="left", color=INK)
    axes = figure.subplots(
        len(page), columns, sharex=True, sharey="row", squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for panels, (conditions, rows) in zip(axes, page, strict=True):
        for ax, condition in zip(panels, conditions, strict=False):
            draw(ax, claim, condition, rows)
        for ax in panels[len(conditions) :]:
            ax.set_axis_off()
    axes[0, 0].set_xlim(*claim.limits())
    name_axes(axes, UNITS[claim.unit], None)
    legend(figure, keys(claim))
    return figure


def draw(ax: Axes, claim: Claim, condition: str, rows: list[str]) -> None:
    """Draw the comparisons of one condition from the top down."""
    findings, pairs = (t.loc[t["condition"] == condition] for t in (claim.findings, claim.pairs))
    whole = findings.loc[findings["comparison"] == "", "verdict"]
    ax.set_title("\n".join([condition.removesuffix(", L0 "), *whole]))
    if claim.margin:
        ax.axvspan(*claim.margin, color=BAND, linewidth=0, zorder=0)
    ax.axvline(0, color=INK, linewidth=0.8, zorder=1)
    for place, row in enumerate(rows):
        finding = findings.loc[findings["comparison"] == row].iloc[0]
        effects = pairs.loc[pairs["comparison"] == row, "effect"].to_numpy(dtype=float)
        mark = MARKS[finding["verdict"]]
        ax.hlines(place, finding["low"], finding["high"], color=mark.colour, linewidth=1.4)
        ax.plot(effects, np.full(len(effects), place + BELOW), ".", color=INK, markersize=2.5, label="seeds")
        face = mark.colour if mark.filled else "white"
        look = {"color": mark.colour, "marker": mark.marker, "markerfacecolor": face, "markersize": 4.5}
        ax.plot(finding["effect"], place, linestyle="none", label=finding["verdict"], **look)
    ax.set_yticks(range(len(rows)), [row or "all pairs" for row in rows], fontsize=6.5)
    ax.set_ylim(len(rows) - 0.4, -0.6)


def title(claim: Claim, width: int) -> str:
    """What is claimed and by whom, the verdict, what is drawn, and which of the conditions compared nothing."""
    compared = claim.findings["comparison"].ne("") | claim.findings["condition"].isin(claim.pairs["condition"])
    without = list(claim.findings.loc[~compared, "condition"])
    few = "; ".join(without[:3]) + (f"; {len(without) - 3} more" if len(without) > 3 else "")
    open_ = claim.findings.loc[compared, "low"].isna().any()
    bars = "95% intervals" + (" (none: too few seeds or documents)" if open_ else "")
    lines = [
        f"{claim.id}: {claim.text}",
        f"Verdict: {claim.verdict}. Source: {claim.source}. Marks: means over seeds; bars: {bars}.",
        *([f"Nothing to compare under: {few}."] if without else []),
    ]
    return "\n".join(fill(line, width) for line in lines)


def keys(claim: Claim) -> list[Line2D | Patch]:
    """The legend: every verdict, drawn or not, so that pages look alike."""
    verdicts = [
        Line2D([], [], color=m.colour, marker=m.marker, markerfacecolor=m.colour if m.filled else "white", label=name)
        for name, m in MARKS.items()
    ]
    margin = [Patch(color=BAND, label="within the margin")] if claim.margin else []
    return [*verdicts, key("each seed", ".", width=0), *margin]
