"""Windows of held-out documents in which a latent is silent throughout, drawn from a view's pool."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saebench.checks import require


@dataclass(frozen=True)
class Silence:
    """A window: its place among the pool's tokens from `first` to `stop`, and its centre."""

    first: int
    stop: int
    centre: int


class Negatives:
    """A pool read from its file: `tokens`, `documents` [n], the window of each token, the active latents of each.

    Raises InputError if the file is missing.
    """

    def __init__(self, path: Path) -> None:
        from safetensors.numpy import load_file

        require(path.is_file(), f"{path}: missing; run `saebench interpret` on its run first")
        pool = load_file(path)
        self.tokens, self.documents = pool["tokens"], pool["documents"]
        self.first, self.stop = pool["first"], pool["first"] + pool["length"]
        self.eligible = pool["ordinary"] & ~pool["shown"]  # [n]: as centres
        rows = np.repeat(np.arange(len(self.tokens), dtype=np.int32), np.diff(pool["offsets"]))  # [nnz]
        order = np.argsort(pool["indices"], kind="stable")
        self.latents, self.rows = pool["indices"][order], rows[order]  # by latent, then by token

    def active(self, latent: int) -> np.ndarray:
        """The tokens at which a latent is active, rising."""
        low, high = np.searchsorted(self.latents, np.array([latent, latent + 1], dtype=self.latents.dtype))
        return self.rows[low:high]

    def draw(self, latent: int, own: np.ndarray, n: int, seed: int) -> list[Silence]:
        """n windows in which `latent` is silent, fewer if there are not so many; no two overlap.

        The first half (rounded up) are around tokens that are in `own`, tokens at which it is active elsewhere, in proportion to
        how often each stands there; the others, and those missing of the first, are anywhere. A function of seed and latent.
        """
        active = np.zeros(len(self.tokens) + 1, dtype=np.int32)
        active[self.active(latent) + 1] = 1
        before = active.cumsum()  # [n + 1]: active tokens before each
        silent = before[self.first] == before[self.stop]  # [n]
        centres = np.flatnonzero(silent & self.eligible)
        rng = np.random.default_rng([seed, latent])
        matched = self.pick(self.by_token(centres, own, rng), [], -(-n // 2))
        return self.pick(rng.permutation(centres), matched, n)

    def by_token(self, centres: np.ndarray, own: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The centres whose token is in `own`, in a random order in which each token comes as early as it is frequent there."""
        kinds, counts = np.unique(own, return_counts=True)
        matched = centres[np.isin(self.tokens[centres], kinds)]
        kind = np.searchsorted(kinds, self.tokens[matched])
        share = (
            counts[kind] / np.bincount(kind, minlength=len(kinds))[kind]
        )  # of a centre; its token's add up to the count
        return matched[
            np.argsort(rng.exponential(size=len(matched)) / share)
        ]  # successive draws in proportion to share

    def pick(self, centres: np.ndarray, taken: list[Silence], n: int) -> list[Silence]:
        """`taken` and the first of the centres whose windows overlap none before, n in all."""
        for centre in centres.tolist():
            if len(taken) >= n:
                break
            window = Silence(int(self.first[centre]), int(self.stop[centre]), centre)
            if all(window.stop <= other.first or other.stop <= window.first for other in taken):
                taken = [*taken, window]
        return taken
