"""Which latents of an SAE are scored: as many rare ones as frequent ones, the same draw for the same SAE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from saebench.interpret.contexts import STRATA


def strata_of(frequency: np.ndarray) -> np.ndarray:
    """`contexts.stratum_of` of every frequency [d_sae]: [d_sae]."""
    return np.searchsorted(STRATA, frequency, side="right")


def draw_order(frequency: np.ndarray, seed: int) -> np.ndarray:
    """The latents that fire, of frequencies [d_sae], in the order in which they are drawn: [alive].

    Frequent latents score otherwise than rare ones and SAEs differ in how many they have of each, so a plain draw would
    compare the frequent latents of one SAE with the rare ones of another. So the strata of firing frequency take turns; one
    that has too few gives all, and the others give more, equally. Dead latents are never drawn.
    """
    alive = np.flatnonzero(frequency > 0)  # [alive]
    shuffled = alive[np.argsort(np.random.default_rng(seed).random(len(frequency))[alive])]
    strata = strata_of(frequency[shuffled])
    turn = np.empty(len(alive), dtype=np.int64)  # of each latent in its stratum
    for stratum in np.unique(strata):
        mine = strata == stratum
        turn[mine] = np.arange(mine.sum())
    return shuffled[np.lexsort((strata, turn))]


@dataclass(frozen=True)
class Drawn:
    """The latents to score: those drawn from all, and those drawn from each level of a nested dictionary, by its name.

    A larger n adds to a smaller one's draw. The two draws are kept apart, because a mean over both would count small levels
    too often.
    """

    every: list[int]
    levels: dict[str, list[int]]

    @property
    def latents(self) -> list[int]:
        """All of them, in rising order."""
        return sorted({*self.every, *(i for level in self.levels.values() for i in level)})


def draw(frequency: np.ndarray, n: int, seed: int, levels: Mapping[str, tuple[int, int]]) -> Drawn:
    """n latents of frequencies [d_sae], and n / len(levels) of each level, whose latents are those of a range (low, high).

    Fewer than n in all give all. Levels differ in how often their latents fire as SAEs do, and are drawn from likewise.
    """
    order, each = draw_order(frequency, seed), -(-n // max(1, len(levels)))
    parts = {}
    for name, (low, high) in levels.items():
        inside = draw_order(np.where(in_range(len(frequency), low, high), frequency, 0.0), seed)
        parts[name] = sorted(inside[:each].tolist())
    return Drawn(sorted(order[:n].tolist()), parts)


def in_range(size: int, low: int, high: int) -> np.ndarray:
    """Whether each of `size` latents is at least `low` and below `high`: [size] (bool)."""
    latents = np.arange(size)
    return (low <= latents) & (latents < high)
