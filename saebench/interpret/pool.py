"""All active latents of some consecutive tokens, so that windows in which a latent is silent can be drawn later."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from saebench.checks import InputError
from saebench.interpret.windows import Text
from saebench.sparse import SparseLatents
from saebench.store import write_tensors

MOST_ENTRIES = 1 << 26  # active latents of a pool, 4 bytes each


class Pool:
    """The first `blocks` whole blocks of a pass with every latent active in them: compressed sparse rows, on the host."""

    def __init__(self, blocks: int, name: str) -> None:
        self.left, self.name = blocks, name
        self.texts: list[dict[str, Tensor]] = []
        self.counts: list[Tensor] = []
        self.indices: list[Tensor] = []
        self.entries = 0

    def add(self, latents: SparseLatents, places: Tensor, text: Text) -> None:
        """Take what is still missing of a text whose ordinary tokens stand at `places` [rows].

        Raises InputError if the view has more active latents than a pool may hold.
        """
        if self.left == 0:
            return
        size = min(self.left, len(text.blocks)) * text.seq_len
        at = places[latents.row_of_entry]  # [nnz]
        taken = (latents.values > 0) & (at < size)
        counts = torch.bincount(at[taken], minlength=size)  # [size]
        ordinary = torch.zeros(len(text.tokens), dtype=torch.bool, device=at.device).index_fill_(0, places, True)
        kept = {"tokens": text.tokens, "documents": text.documents, "shown": text.shown, "ordinary": ordinary}
        kept |= {"first": text.first + sum(map(len, self.counts)), "length": text.length}
        self.texts.append({name: part[:size].cpu() for name, part in kept.items()})
        self.counts.append(counts.cpu())
        self.indices.append(latents.indices[taken].int().cpu())
        self.left -= size // text.seq_len
        self.entries += len(self.indices[-1])
        if self.entries > MOST_ENTRIES:
            raise InputError(
                f"interpret.pool: {self.entries / sum(map(len, self.counts)):.0f} latents are active on a token in view "
                f"{self.name}, too many to keep for so many tokens; lower interpret.pool"
            )

    def write(self, path: Path) -> None:
        """Write safetensors: tokens, documents, shown, ordinary (bool), first, length [n], offsets [n + 1] and indices [nnz].

        `first` and `length` say where the window around each token lies. All integers are int32.
        """
        counts = torch.cat(self.counts)  # [n]
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        texts = {name: torch.cat([text[name] for text in self.texts]) for name in self.texts[0]}
        tensors = texts | {"offsets": offsets, "indices": torch.cat(self.indices)}
        whole = {name: part if part.dtype == torch.bool else part.int() for name, part in tensors.items()}
        write_tensors(path, {name: part.contiguous() for name, part in whole.items()})
