"""What an operating point costs, and the cheapest view of a run that reaches a target (rate against distortion).

A view with m of d_sae latents and a mean of L0 active ones costs, per token,
    multiply-adds = d_in * (latents whose pre-activations are needed + L0): the encoder product, and the decoder's rows
    bits          = log2(m choose L0) + VALUE_BITS * L0: which latents, and their values in bfloat16
Selecting first and pruning then needs all pre-activations of an SAE that selects among its latents; pruning first needs m.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from saebench.checks import one_of, require
from saebench.finished import read_runs, require_columns
from saebench.tables import VIEW, align, missing

VALUE_BITS = 16
COSTS = ("macs", "bits")
NEEDED = ("l0", "fvu", "fvu_std", "ce_clean", "ce_sae")  # of metrics.csv, beside what names a view
TOKENS = ("typical", "all")


def with_costs(views: pd.DataFrame) -> pd.DataFrame:
    """Rows of metrics.csv with the columns `macs` (multiply-adds per token), `flops` (twice as many) and `bits` (per token)."""
    rows: list[dict[str, Any]] = views.to_dict("records")  # pyright: ignore[reportAssignmentType]
    macs_of = [macs(row) for row in rows]
    sizes = [bits(row["m"], row["l0"]) for row in rows]
    return views.assign(macs=macs_of, flops=[2 * n for n in macs_of], bits=sizes)


def macs(row: dict[str, Any]) -> float:
    """Multiply-adds per token of a row of metrics.csv."""
    among = row["order"] == "select_then_prune" and not missing(row["k"])
    return row["d_in"] * ((row["d_sae"] if among else row["m"]) + row["l0"])


def bits(m: float, l0: float) -> float:
    """Bits per token that say which l0 of m latents are active, and how strongly; l0 may be a mean."""
    l0 = min(l0, m)
    which = math.lgamma(m + 1) - math.lgamma(l0 + 1) - math.lgamma(m - l0 + 1)
    return which / math.log(2) + VALUE_BITS * l0


def choose(
    run: Path, limits: dict[str, float | None], by: str = "macs", tokens: str = "typical"
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The view of the run in a folder that is cheapest `by` macs or bits within `limits`, and all views on the frontier.

    Limits are the most of fvu, fvu_std, ce_increase, l0, macs, flops or bits; None asks nothing. Without a limit on the
    distortion (fvu, fvu_std, ce_increase) the view of least FVU within the others is chosen. Raises InputError if no view is
    within them, naming what came nearest.
    """
    one_of("--by", by, COSTS)
    one_of("--tokens", tokens, TOKENS)
    wanted = {name: limit for name, limit in limits.items() if limit is not None}
    for name, limit in wanted.items():
        require(not math.isnan(limit), f"--{name.replace('_', '-')}={limit}: must be a number")
    require(bool(wanted), "--fvu, --l0, --macs, ...: name at least one limit")
    path = run / "metrics.csv"
    require(path.is_file(), f"{path}: missing; name the folder of an evaluated run")
    measured = read_runs([run], path.name)
    require_columns(measured, [*VIEW, "d_in", "d_sae", "k", *NEEDED], path)
    views = with_costs(measured)
    views = views.assign(ce_increase=views["ce_sae"] - views["ce_clean"])
    views = views.loc[views["tokens"] == tokens]
    fitting = views
    for name, limit in wanted.items():
        rest = fitting.loc[fitting[name] <= limit]
        least = fitting[name].min()
        found = "was not measured" if missing(least) else f"is {least:.4g} at the least"
        require(
            not rest.empty, f"--{name.replace('_', '-')}={limit:g}: {name} {found} among the {len(fitting)} views left"
        )
        fitting = rest
    distortion = [name for name in ("fvu", "fvu_std", "ce_increase") if name in wanted]
    ranked = fitting.sort_values(by=[by, "fvu"] if distortion else ["fvu", by])
    best: dict[str, Any] = ranked.iloc[0].to_dict()
    return best, frontier(views, by)


def frontier(views: pd.DataFrame, by: str) -> pd.DataFrame:
    """The views that no other view beats in cost and FVU at once, the cheapest first."""
    ranked = views.sort_values(by=[by, "fvu"])
    best = ranked["fvu"].cummin().shift(fill_value=math.inf)
    return ranked.loc[ranked["fvu"] < best]


def chosen_text(best: dict[str, Any], front: pd.DataFrame) -> str:
    """The chosen view and the frontier, as aligned text; the chosen one is marked."""
    rows: list[Any] = front.to_dict("records")
    if all(named(row) != named(best) for row in rows):
        rows.insert(0, best)
    return align(pd.DataFrame([shown(row, named(row) == named(best)) for row in rows]))


def named(row: Any) -> tuple[str, ...]:
    """What tells a view of a run from its others."""
    return tuple("" if missing(row[key]) else str(row[key]) for key in ("view", "rule", "order", "m", "budget", "mode"))


def shown(row: Any, chosen: bool) -> dict[str, str]:
    """A view as a line of text."""
    view, rule, order, m, budget, mode = named(row)
    numbers = {name: f"{row[name]:.4g}" for name in ("fvu", "fvu_std")}
    ce = "" if missing(row["ce_increase"]) else f"{row['ce_increase']:.4g}"
    return {
        "chosen": "->" if chosen else "",
        "view": " ".join(part for part in (view, rule, order.replace("_", " ")) if part),
        "m": m,
        "budget": budget,
        "mode": mode,
        "L0": f"{row['l0']:.2f}",
        **numbers,
        "ce_increase": ce,
        "macs": f"{row['macs']:,.0f}",
        "bits": f"{row['bits']:,.0f}",
    }
