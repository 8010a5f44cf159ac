"""What is counted of every latent of a view: how often it is active, how strongly, at which rank among its token's latents."""

from __future__ import annotations

import torch
from torch import Tensor

from saebench.interpret.windows import Entries

HISTOGRAM_BINS = 128
LOWEST, HIGHEST = -16.0, 16.0  # log2 of the outer edges; what lies beyond counts in the outer bins
WIDTH = (HIGHEST - LOWEST) / HISTOGRAM_BINS
EDGES = [LOWEST + WIDTH * i for i in range(HISTOGRAM_BINS + 1)]  # of log2(act)


def scale_of(acts: Tensor) -> Tensor:
    """Where activations above 0 lie on the histogram's axis: [0, HISTOGRAM_BINS], in bins."""
    return ((acts.log2() - LOWEST) / WIDTH).clamp(0, HISTOGRAM_BINS)


class LatentStats:
    """Counts of `m` latents: 28 + 4 * HISTOGRAM_BINS bytes each (`nbytes`), whatever the number of tokens.

    `n_active` [m] tokens on which each is active; `total` [m] its activations' sum; `largest` [m]; `ranks` [m] the sum of its
    places among its tokens' active latents; `histogram` [m, HISTOGRAM_BINS] of log2(act). Counts fit int32 below 2^31 tokens.
    """

    def __init__(self, m: int, device: torch.device) -> None:
        self.n_tokens = 0
        self.n_active = torch.zeros(m, dtype=torch.int64, device=device)
        self.total = torch.zeros(m, dtype=torch.float64, device=device)
        self.largest = torch.zeros(m, device=device)
        self.ranks = torch.zeros(m, dtype=torch.int64, device=device)
        self.histogram = torch.zeros(m, HISTOGRAM_BINS, dtype=torch.int32, device=device)

    @staticmethod
    def nbytes(m: int) -> int:
        """Bytes that the counts hold."""
        return m * (28 + 4 * HISTOGRAM_BINS)

    def add(self, entries: Entries, n_tokens: int) -> None:
        """Add the entries of n_tokens tokens."""
        self.n_tokens += n_tokens
        bins = scale_of(entries.acts).long().clamp_(max=HISTOGRAM_BINS - 1)  # [e]
        once = torch.ones_like(entries.latents)  # [e]
        self.n_active.index_add_(0, entries.latents, once)
        self.ranks.index_add_(0, entries.latents, entries.ranks)
        self.total.index_add_(0, entries.latents, entries.acts.double())
        self.largest.scatter_reduce_(0, entries.latents, entries.acts, "amax")
        self.histogram.view(-1).index_add_(0, entries.latents * HISTOGRAM_BINS + bins, once.int())

    def mean_act(self) -> Tensor:
        """[m]: the mean over active tokens, 0 if there are none."""
        return (self.total / self.n_active.clamp(min=1)).float()

    def mean_rank(self) -> Tensor:
        """[m]: the mean over active tokens, NaN if there are none."""
        return (self.ranks.double() / self.n_active).float()

    def quantiles(self, latents: Tensor, acts: Tensor) -> Tensor:
        """The share of each latent's activations that lie below `acts` [c], one of its own: [c] in [0, 1), on the host.

        From the histogram: (those in lower bins + those in its bin, spread evenly over it, that lie below) / all. The error is
        less than its bin's share.
        """
        distinct, row = latents.unique(return_inverse=True)
        histogram = self.histogram[distinct.to(self.histogram.device)].cpu().double()  # [l, HISTOGRAM_BINS]
        at = scale_of(acts).double()  # [c]
        bins = at.long().clamp(max=HISTOGRAM_BINS - 1)
        mine = histogram[row, bins]  # [c]
        below = histogram.cumsum(1)[row, bins] - mine
        return (below + (at - bins).clamp(max=1) * (mine - 1)) / histogram.sum(1)[row]
