"""What it costs to reach a mean L0: train, measure, change the knob, and train again until L0 is within a tolerance.

The knob is k where a variant has one, else the L0 it is steered to, else the coefficient of its penalty. Every run that was
trained for one target serves the next; a new value is interpolated between known runs, linearly in the logarithms of knob and
L0. Claim B6 of arXiv 2412.06410 compares the numbers of runs.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saebench.checks import InputError, require
from saebench.config import RunConfig
from saebench.heldout import HeldOut
from saebench.pipeline import evaluate_gang, gangs, run_folder, train_gang
from saebench.progress import say
from saebench.runs import write_csv
from saebench.search import searched
from saebench.stream import open_stream

TABLE = "reached.csv"
FARTHEST = 10.0  # a knob moves by no more than this factor at once beyond the runs known
LEAST_L0 = 0.01  # stands for none, as L0 enters by its logarithm


@dataclass
class Seeker:
    """A configuration whose knob is moved: the knobs tried, the L0 they gave, and what came of each target."""

    cfg: RunConfig
    targets: list[float]
    run: str = ""  # the folder of the run that `cfg` is
    known: dict[float, float] = field(default_factory=dict)  # L0 by knob, in the order of training
    tried: dict[float, list[float]] = field(default_factory=dict)  # knobs by target
    found: dict[float, dict[str, Any]] = field(default_factory=dict)  # by target

    @property
    def key(self) -> str:
        """The config key of the knob, within sae."""
        sae = self.cfg.sae
        names = [name for name in ("k", "target_l0", "l0", "l1") if getattr(sae, name, None) is not None]
        require(bool(names), f"sae={sae.name}: has no knob for its sparsity")
        return names[0]

    def first(self) -> list[float]:
        """The knobs to begin with: the targets themselves if the knob is an L0, else the configured coefficient."""
        direct = self.key in ("k", "target_l0")
        self.tried = {
            target: [self.whole(target if direct else getattr(self.cfg.sae, self.key))] for target in self.targets
        }
        return self.asked()

    def asked(self) -> list[float]:
        """The knobs that are wanted and were not trained yet."""
        last = [values[-1] for target, values in self.tried.items() if target not in self.found]
        return [value for value in dict.fromkeys(last) if value not in self.known]

    def whole(self, value: float) -> float:
        """A value as the knob can take it."""
        return float(max(1, round(value))) if self.key == "k" else float(f"{value:.4g}")

    def at(self, value: float) -> RunConfig:
        """The run with this knob."""
        given = {self.key: int(value) if self.key == "k" else value}
        return dataclasses.replace(self.cfg, sae=dataclasses.replace(self.cfg.sae, **given))

    def settle(self, tolerance: float, most: int) -> list[float]:
        """Note which targets are reached or given up, and return the knobs to try for the others."""
        for target, tried in self.tried.items():
            if target in self.found:
                continue
            value, l0 = min(self.known.items(), key=lambda pair: abs(math.log(max(pair[1], LEAST_L0) / target)))
            hit = abs(l0 / target - 1) <= tolerance
            following = self.whole(self.next_to(target))
            if hit or len(tried) >= most or following in self.known:
                self.found[target] = {"knob": value, "l0": l0, "hit": hit, "runs": len(tried)}
            else:
                tried.append(following)
        return self.asked()

    def next_to(self, target: float) -> float:
        """The knob for a target from the runs known, at most FARTHEST from the nearest of them."""
        points = sorted((math.log(value), math.log(max(l0, LEAST_L0))) for value, l0 in self.known.items())
        goal, sign = math.log(target), 1.0 if self.key in ("k", "target_l0") else -1.0
        (x, y), *others = sorted(
            points, key=lambda at: (abs(at[1] - goal), -sign * math.copysign(1, goal - at[1]) * at[0])
        )
        across = [point for point in others if (point[1] - goal) * (y - goal) <= 0] or others
        slope = sign
        if across and (across[0][1] - y) * (across[0][0] - x) * sign > 0:
            slope = (across[0][1] - y) / (across[0][0] - x)
        step = (goal - y) / slope
        return math.exp(x + max(-math.log(FARTHEST), min(math.log(FARTHEST), step)))

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per target with the runs trained for it (the first may serve all)."""
        for target, found in self.found.items():
            named = {"run": self.run, "variant": self.cfg.sae.name, "d_sae": self.cfg.sae.d_sae}
            yield named | {"seed": self.cfg.seed, "knob_key": f"sae.{self.key}", "target": target, **found}


def reach(
    configs: list[RunConfig], targets: list[float], tolerance: float = 0.05, most: int = 12
) -> list[dict[str, Any]]:
    """Train every configuration until its mean L0 on all held-out tokens is within `tolerance` of every target.

    At most `most` runs for each target. Writes outputs/tables/reached.csv; returns its rows. Raises InputError for a target
    that is not positive.
    """
    for target in targets:
        require(target > 0, f"--l0={target:g}: must be positive")
    require(0 < tolerance < 1, f"--tolerance={tolerance:g}: choose a share between 0 and 1")
    seekers = [Seeker(cfg, targets) for cfg in searched(configs)]
    opened: dict[str, HeldOut] = {}
    pending = [(seeker, seeker.first()) for seeker in seekers]
    while pending:
        measure([(seeker, value) for seeker, values in pending for value in values], opened)
        pending = [(seeker, seeker.settle(tolerance, most)) for seeker in seekers]
        pending = [(seeker, values) for seeker, values in pending if values]
    rows = [row for seeker in seekers for row in seeker.rows()]
    folder = Path(configs[0].outputs) / "tables"
    folder.mkdir(exist_ok=True)
    write_csv(folder / TABLE, rows)
    return rows


def measure(wanted: list[tuple[Seeker, float]], opened: dict[str, HeldOut]) -> None:
    """Train and evaluate each seeker's run with each knob, and note its L0."""
    configs = [seeker.at(value) for seeker, value in wanted]
    say(f"{len(configs)} runs: " + ", ".join(f"{s.cfg.sae.name} {s.key} {value:g}" for s, value in wanted))
    for gang in gangs(configs):
        mine = [configs[i] for i in gang]
        stream = open_stream(mine[0])
        folders = [run_folder(cfg, stream) for cfg in mine]
        train_gang(mine, folders, stream)
        evaluate_gang(mine, folders, stream, opened)
        for i, folder in zip(gang, folders, strict=True):
            seeker, value = wanted[i]
            seeker.known[value], seeker.run = l0_of(folder), run_folder(seeker.cfg, stream).name


def l0_of(folder: Path) -> float:
    """The mean L0 of the full view over all held-out tokens, by threshold where a variant has one."""
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["view"] == "full" and row["tokens"] == "all"]
    if not rows:
        raise InputError(f"{folder / 'metrics.csv'}: has no row of the full view; remove the folder and run again")
    return float(next((row for row in rows if row["mode"] == "threshold"), rows[0])["l0"])


def reached_table(rows: list[dict[str, Any]]) -> str:
    """The rows as aligned text."""
    import pandas as pd

    from saebench.tables import align

    shown = [
        {
            "variant": row["variant"],
            "d_sae": str(row["d_sae"]),
            "seed": str(row["seed"]),
            "by": row["knob_key"],
            "target": f"{row['target']:g}",
            "value": f"{row['knob']:.4g}",
            "L0": f"{row['l0']:.2f}",
            "reached": "yes" if row["hit"] else "no",
            "runs": str(row["runs"]),
        }
        for row in rows
    ]
    return align(pd.DataFrame(shown))
