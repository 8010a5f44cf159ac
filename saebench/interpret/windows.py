"""Windows of text around a token, and a view's activations in them.

A window never leaves its block, beyond which the language model did not look, nor its document, so that what is held out
by document is never shown.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from saebench.sparse import SparseLatents

SIGN = (1 << 31) - 1


class Text(NamedTuple):
    """Whole blocks of text laid end to end, [size] each but `blocks` [b]; a token's place is its index in them.

    `first` and `length`: the window of the token at each place; `shown`: whether its document is; `blocks`: the blocks' numbers.
    """

    tokens: Tensor
    documents: Tensor
    shown: Tensor
    first: Tensor
    length: Tensor
    blocks: Tensor

    @property
    def seq_len(self) -> int:
        return len(self.tokens) // len(self.blocks)


class Entries(NamedTuple):
    """A view's activations above 0, sorted by latent and then by place: [e] each.

    `codes` = latent * size + place, rising; `ranks`: the activation's place among those of its token, from 0, falling.
    """

    codes: Tensor
    latents: Tensor
    places: Tensor
    acts: Tensor
    ranks: Tensor


def windows(documents: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """First place and length [b * t] of the window around every token of documents [b, t], which number each token's document.

    A window has `window` tokens with its token in the middle, is moved where its block or document begins or ends, and is
    shorter where these are.
    """
    b, t = documents.shape
    places = torch.arange(b * t, device=documents.device).view(b, t)  # [b, t]
    edge = places.new_ones(b, 1, dtype=torch.bool)
    cut = documents[:, 1:] != documents[:, :-1]  # [b, t - 1]
    low = torch.where(torch.cat([edge, cut], 1), places, 0).cummax(1).values  # [b, t]
    last = torch.where(torch.cat([cut, edge], 1), places, b * t)  # [b, t]
    high = last.flip(1).cummin(1).values.flip(1) + 1  # [b, t]
    first = torch.maximum(low, torch.minimum(places - window // 2, high - window))
    return first.view(-1), (high - low).clamp(max=window).view(-1)


def entries_of(latents: SparseLatents, places: Tensor, index: Tensor, size: int) -> Entries:
    """The activations of a view's latents, whose rows stand at `places` [rows] of a text of `size` tokens.

    `index` [d_sae] renumbers the latents.
    """
    active = (latents.values > 0).nonzero().squeeze(1)  # [e]
    acts, rows = latents.values[active].float(), latents.row_of_entry[active]  # [e]
    ranks = ranks_in_rows(acts, rows, latents.rows)
    codes, order = (index[latents.indices[active]] * size + places[rows]).sort()
    return Entries(codes, codes // size, codes % size, acts[order], ranks[order])


def ranks_in_rows(acts: Tensor, rows: Tensor, n: int) -> Tensor:
    """The place of each activation [e] among those of its row, falling, from 0; `rows` [e] rise and lie in [0, n)."""
    order = ((rows << 32) + (SIGN - bits(acts))).sort(stable=True).indices  # by row, then by falling activation
    counts = torch.bincount(rows, minlength=n)  # [n]
    starts = counts.cumsum(0) - counts  # [n]
    places = torch.arange(len(rows), device=rows.device) - starts[rows]  # [e]
    return torch.empty_like(places).scatter_(0, order, places)


def bits(acts: Tensor) -> Tensor:
    """The bits of float32 activations above 0 as int64, in [0, 2^31): they rise as the activations do."""
    return acts.view(torch.int32).long()


def window_tokens(text: Text, places: Tensor, window: int) -> Tensor:
    """The tokens of the windows around `places` [c], padded with -1: [c, window] (int32)."""
    inside = torch.arange(window, device=places.device)  # [window]
    at = (text.first[places].unsqueeze(1) + inside).clamp_(max=len(text.tokens) - 1)  # [c, window]
    return torch.where(inside < text.length[places].unsqueeze(1), text.tokens[at], -1).int()


def window_acts(text: Text, entries: Entries, chosen: Tensor, window: int) -> Tensor:
    """The activations of each `chosen` [c] entry's latent at every token of the window around it, 0 beyond: [c, window]."""
    places = entries.places[chosen]
    first = text.first[places]  # [c]
    begin = entries.codes[chosen] - places + first  # [c], the code of the latent at the window's first token
    low = torch.searchsorted(entries.codes, begin)
    counts = torch.searchsorted(entries.codes, begin + text.length[places]) - low  # [c], at least 1
    owner = torch.repeat_interleave(torch.arange(len(chosen), device=low.device), counts)  # [e of all windows]
    ends = counts.cumsum(0)
    source = torch.arange(len(owner), device=low.device) - (ends - counts - low)[owner]
    acts = entries.acts.new_zeros(len(chosen), window)
    acts[owner, entries.places[source] - first[owner]] = entries.acts[source]
    return acts
