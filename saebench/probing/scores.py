"""Scores of a view by class, with their means over classes and intervals: the rows of summary.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

COLUMNS = ["task", "score", "class", "value", "low", "high", "chance", "n"]


@dataclass(frozen=True)
class Measured:
    """One score of one view: the values of each class's test examples [n_c] by class, and what chance would give each class."""

    score: str
    values: Mapping[str, Tensor]
    chance: Mapping[str, float]
    replicates: int
    seed: int

    def rows(self, task: str) -> list[dict[str, Any]]:
        """A row for `all`, the mean over classes, and one for each class.

        The intervals are the 2.5 and 97.5 percentiles over bootstrap samples of each class's test examples; the probes and the
        latents they read stay as they are, so they say nothing of other SAEs or other training texts.
        """
        values = {name: v.double().numpy() for name, v in self.values.items()}
        draws = {name: self.resampled(v, i) for i, (name, v) in enumerate(values.items())}
        found = [self.row(task, name, v.mean(), draws[name], self.chance[name], len(v)) for name, v in values.items()]
        every = np.mean([v.mean() for v in values.values()])
        chance = float(np.mean(list(self.chance.values())))
        n = sum(map(len, values.values()))
        return [self.row(task, "all", every, np.mean(list(draws.values()), axis=0), chance, n), *found]

    def resampled(self, values: np.ndarray, number: int) -> np.ndarray:
        """The mean of as many values drawn with replacement, `replicates` times."""
        rng = np.random.default_rng([self.seed % 2**63, number])
        return np.array([values[rng.integers(len(values), size=len(values))].mean() for _ in range(self.replicates)])

    def row(self, task: str, name: str, value: Any, draws: np.ndarray, chance: float, n: int) -> dict[str, Any]:
        """One row."""
        low, high = np.percentile(draws, [2.5, 97.5])
        cells = [task, self.score, name, float(value), float(low), float(high), chance, n]
        return dict(zip(COLUMNS, cells, strict=True))


def counted(task: str, score: str, values: Mapping[str, float], n: Mapping[str, int]) -> list[dict[str, Any]]:
    """The rows of a score that is one number for each class, which has no interval and no chance level of its own."""
    every = {"all": float(np.mean(list(values.values())))} | dict(values)
    sizes = {"all": sum(n.values())} | dict(n)
    rows: Sequence[list[Any]] = [
        [task, score, name, float(v), None, None, None, sizes[name]] for name, v in every.items()
    ]
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]
