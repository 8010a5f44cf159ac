"""Activations of a task's examples: a stage of outputs/probing that every SAE of the same model, layer and site shares.

Each shard holds the activations of some examples' kept positions, `x` [rows, d_in] in the dtype of the run's own cache
(data.dtype), with `examples` [e] and `offsets` [e + 1] of their rows. A pass that is interrupted goes on behind its last shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from saebench.activations import DTYPES
from saebench.checks import InputError
from saebench.config import RunConfig
from saebench.lm import LM, ModelInfo
from saebench.probing.prompts import Examples, Prompt
from saebench.progress import Progress
from saebench.store import checked, key_of, stage, write_tensors

NUMERICS = 1  # raised by hand when the activations of unchanged prompts change
SHARD_ROWS = 65_536  # about; and
SHARD_PROMPTS = 1_024


class Part(NamedTuple):
    """Whole examples: their numbers [e], the boundaries [e + 1] of their rows, and the rows x [rows, d_in]."""

    examples: Tensor
    offsets: Tensor
    x: Tensor


class Ragged:
    """The activations of `n` examples, read a shard at a time."""

    def __init__(self, folder: Path, n: int, rows: int) -> None:
        self.folder, self.key, self.n, self.rows = folder, folder.name, n, rows

    def parts(self, most: int) -> Iterator[Part]:
        """Every example once, in groups of about `most` rows or one example."""
        for path in sorted(self.folder.glob("x-*.safetensors")):
            whole = load_file(path)
            examples, offsets, x = (whole[name] for name in ("examples", "offsets", "x"))
            for first, end in groups(offsets.tolist(), most):
                low, high = offsets[first], offsets[end]
                yield Part(examples[first:end], offsets[first : end + 1] - low, x[low:high])

    def means(self) -> Tensor:
        """The mean over each example's rows: [n, d_in] float64."""
        parts = list(self.parts(SHARD_ROWS))
        found = torch.empty(self.n, parts[0].x.shape[1], dtype=torch.float64)
        for part in parts:
            sums = torch.zeros(len(part.examples), found.shape[1], dtype=torch.float64)
            lengths = part.offsets.diff()
            owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths)  # [rows]
            found[part.examples] = sums.index_add_(0, owner, part.x.double()) / lengths.unsqueeze(1)
        return found


def groups(offsets: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Runs (first, end) of consecutive examples with boundaries `offsets` that have at most `most` rows, or of one example."""
    first = 0
    for i in range(1, len(offsets)):
        if offsets[i] - offsets[first] > most and i - 1 > first:
            yield first, i - 1
            first = i - 1
    yield first, len(offsets) - 1


def open_activations(
    outputs: Path, cfg: RunConfig, info: ModelInfo, dtype: str, lm: Callable[[], LM], examples: Examples
) -> Ragged:
    """The activations of a task's examples at the run's site, made if missing."""
    inputs: dict[str, Any] = {"numerics": NUMERICS, "model": info.fingerprint(), "prompts": examples.fingerprint()}
    inputs |= {"layer": cfg.model.layer, "site": cfg.model.site, "batch": cfg.model.batch}
    inputs |= {"dtype": dtype, "stored": cfg.data.dtype, "shards": [SHARD_ROWS, SHARD_PROMPTS]}
    folder = outputs / "probing" / key_of(inputs)
    longest = max(len(prompt.tokens) for prompt in examples.prompts)
    if longest > info.max_positions:
        raise InputError(
            f"a prompt has {longest} tokens and {cfg.model.name} {info.max_positions} positions; take fewer"
        )
    make = partial(fill, lm=lm, prompts=examples.prompts, batch=cfg.model.batch, dtype=DTYPES[cfg.data.dtype])
    stage(folder, inputs, make, resumes=True)
    for path in sorted(folder.glob("x-*.safetensors")):
        checked(folder, path.name)
    return Ragged(folder, len(examples.prompts), sum(len(prompt.kept) for prompt in examples.prompts))


def fill(folder: Path, lm: Callable[[], LM], prompts: Sequence[Prompt], batch: int, dtype: torch.dtype) -> None:
    """Write the shards that are missing. Prompts of like length run together, the longest first: memory is known at once."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].tokens))
    total = sum(len(prompt.tokens) for prompt in prompts)
    with Progress(total, "tokens", f"activations of {len(prompts):,} examples") as progress:
        for number, shard in enumerate(shards(order, prompts, batch)):
            path = folder / f"x-{number:05d}.safetensors"
            if not path.is_file():
                rows = [
                    row for few in batches(shard, batch) for row in forward(lm(), [prompts[i] for i in few], progress)
                ]
                x = torch.cat(rows)
                if not bool(x.isfinite().all()):
                    raise InputError("activations: NaN or inf among the examples; try a run with model.dtype=float32")
                lengths = torch.tensor([0, *(len(row) for row in rows)])
                write_tensors(
                    path, {"examples": torch.tensor(shard), "offsets": lengths.cumsum(0), "x": x.to(dtype).contiguous()}
                )
            else:
                progress.advance(sum(len(prompts[i].tokens) for i in shard))


def batches(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Runs of `size` items, the last shorter."""
    return (order[i : i + size] for i in range(0, len(order), size))


def shards(order: Sequence[int], prompts: Sequence[Prompt], batch: int) -> Iterator[list[int]]:
    """The order cut into shards of whole batches."""
    shard: list[int] = []
    rows = 0
    for few in batches(order, batch):
        shard += few
        rows += sum(len(prompts[i].kept) for i in few)
        if rows >= SHARD_ROWS or len(shard) >= SHARD_PROMPTS:
            yield shard
            shard, rows = [], 0
    if shard:
        yield shard


def forward(lm: LM, prompts: Sequence[Prompt], progress: Progress) -> list[Tensor]:
    """The activations [kept, d_in] of each prompt, on the host. Shorter ones are filled up behind, unseen by causal models."""
    longest = max(len(prompt.tokens) for prompt in prompts)
    filled = torch.tensor([[*p.tokens, *[p.tokens[-1]] * (longest - len(p.tokens))] for p in prompts])  # [b, t]
    x = lm.activations(filled)  # [b, t, d_in]
    found = [x[i, torch.tensor(prompt.kept, device=x.device)].cpu() for i, prompt in enumerate(prompts)]
    progress.advance(sum(len(prompt.tokens) for prompt in prompts))
    return found
