"""Which latents of an SAE are scored: as many rare ones as frequent ones, the same draw for the same SAE."""

from __future__ import annotations

import numpy as np

from saebench.interpret.contexts import STRATA


def strata_of(frequency: np.ndarray) -> np.ndarray:
    """`contexts.stratum_of` of every frequency [d_sae]: [d_sae]."""
    return np.searchsorted(STRATA, frequency, side="right")


def sample_latents(frequency: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw n latents, equally many from each stratum of firing `frequency` [d_sae]; they rise, with their strata: [n] each.

    Frequent latents score otherwise than rare ones and SAEs differ in how many they have of each, so a plain draw would
    compare the frequent latents of one SAE with the rare ones of another. Dead latents are never drawn; a stratum that has too
    few gives all, and the others give more, equally; fewer than n in all give all. A larger n adds to a smaller one's draw.
    """
    alive = np.flatnonzero(frequency > 0)  # [alive]
    shuffled = alive[np.argsort(np.random.default_rng(seed).random(len(frequency))[alive])]
    strata = strata_of(frequency[shuffled])
    turn = np.empty(len(alive), dtype=np.int64)  # of each latent in its stratum
    for stratum in np.unique(strata):
        mine = strata == stratum
        turn[mine] = np.arange(mine.sum())
    chosen = np.sort(shuffled[np.lexsort((strata, turn))[:n]])
    return chosen, strata_of(frequency[chosen])
