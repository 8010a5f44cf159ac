"""The best few of a stream, for all latents at once: a fixed table of slots, whatever the stream's length.

A row's slots hold the entries whose keys are largest, at most one of each block. With activations as keys these are its
strongest contexts; with random draws they are a uniform sample (priority sampling). Keys do not depend on the order of
the stream, so neither does what is kept.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from saebench.interpret.windows import Entries, Text, window_acts, window_tokens

EMPTY, ABSENT = -1, -2  # keys of a free slot and of no offer; all others are at least 0
AT_ONCE = 1 << 16  # windows cut out together


class Kept(NamedTuple):
    """Kept contexts, in no order: [c] each, but tokens (padded with -1) and acts [c, window].

    `acts` are of the row's latent at the window's tokens; `centre` is the place in it of the token it was kept for, which stands
    at `position` in its block.
    """

    rows: Tensor
    tokens: Tensor
    acts: Tensor
    documents: Tensor
    blocks: Tensor
    positions: Tensor
    centres: Tensor


class Reservoir:
    """`slots` contexts for each of `rows` rows; 24 + 8 * window bytes a slot and 8 a row (`nbytes`)."""

    def __init__(self, rows: int, slots: int, window: int, device: torch.device) -> None:
        self.slots, self.window = slots, window
        self.keys = torch.full((rows, slots), EMPTY, device=device)  # [rows, slots]
        self.least = torch.full((rows,), EMPTY, device=device)  # [rows], the smallest key of each
        self.where = torch.zeros(rows * slots, 4, dtype=torch.int32, device=device)  # document, block, position, centre
        self.tokens = torch.zeros(rows * slots, window, dtype=torch.int32, device=device)
        self.acts = torch.zeros(rows * slots, window, device=device)

    @staticmethod
    def nbytes(rows: int, slots: int, window: int) -> int:
        """Bytes that a reservoir holds."""
        return rows * (slots * (24 + 8 * window) + 8)

    def offer(self, rows: Tensor, keys: Tensor, entries: Entries, text: Text) -> None:
        """Offer every entry to its row [e] with its key [e]; a block must not be offered again in a later call."""
        winners, slots = self.admit(rows, keys, entries.places // text.seq_len)
        for chosen, at in zip(winners.split(AT_ONCE), slots.split(AT_ONCE), strict=True):
            places = entries.places[chosen]
            block, position = places // text.seq_len, places % text.seq_len
            centre = places - text.first[places]
            self.where[at] = torch.stack([text.documents[places], text.blocks[block], position, centre], 1).int()
            self.tokens[at] = window_tokens(text, places, self.window)
            self.acts[at] = window_acts(text, entries, chosen, self.window)

    def admit(self, rows: Tensor, keys: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the offers are kept, and the slots they take: both [c]; the keys are put there."""
        best = best_of_blocks(rows, keys, blocks, (keys > self.least[rows]).nonzero().squeeze(1))
        touched, row, counts = rows[best].unique_consecutive(return_inverse=True, return_counts=True)  # [u], [c], [u]
        rank = torch.arange(len(best), device=row.device) - (counts.cumsum(0) - counts)[row]  # [c], within the row
        fits = rank < self.slots
        best, row, rank = best[fits], row[fits], rank[fits]
        offers = best.new_zeros(len(touched), self.slots).index_put_((row, rank), best)  # [u, slots]
        offered = torch.full_like(offers, ABSENT).index_put_((row, rank), keys[best])
        both = torch.cat([self.keys[touched], offered], 1)  # [u, 2 * slots]
        stays = torch.zeros_like(both, dtype=torch.bool).scatter_(1, both.topk(self.slots).indices, True)
        left = (~stays[:, : self.slots]).nonzero()  # [c, 2]: as many in each row as enter it
        winners = offers[stays[:, self.slots :]]  # [c]
        slots = touched[left[:, 0]] * self.slots + left[:, 1]
        self.keys.view(-1)[slots] = keys[winners]
        self.least[touched] = self.keys[touched].amin(1)
        return winners, slots

    def kept(self, start: int, stop: int) -> Kept:
        """The contexts of the rows from `start` to `stop`, on the host."""
        filled = (self.keys[start:stop] != EMPTY).view(-1).nonzero().squeeze(1) + start * self.slots  # [c]
        where = self.where[filled].cpu().long()
        rows = filled.cpu() // self.slots
        return Kept(rows, self.tokens[filled].cpu(), self.acts[filled].cpu(), *where.unbind(1))


def best_of_blocks(rows: Tensor, keys: Tensor, blocks: Tensor, offers: Tensor) -> Tensor:
    """Of the offers [o] the one of largest key in each (row, block), by row and falling key: [c]."""
    offers = offers[keys[offers].argsort(descending=True, stable=True)]
    groups = rows[offers] * (blocks.max() + 1 if len(blocks) else 1) + blocks[offers]  # [o]
    groups, order = groups.sort(stable=True)
    leads = torch.ones_like(groups, dtype=torch.bool)
    leads[1:] = groups[1:] != groups[:-1]
    offers = offers[order[leads].sort().values]  # by falling key again
    return offers[rows[offers].argsort(stable=True)]
