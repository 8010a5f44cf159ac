"""The training loop: every member of a gang takes each batch in turn; solo is a gang of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from saebench.activations import Batches
from saebench.member import Member
from saebench.memory import sent_ahead
from saebench.progress import Progress
from saebench.saes import SAE


def train(members: list[Member], batches: Batches, after_step: Callable[[], None] = lambda: None) -> None:
    """Train the members to their own number of steps, from wherever each of them is. A failed one stops; the others go on."""
    start, steps = min(m.done for m in members), max(m.steps for m in members)
    title = f"training {len(members)} SAEs" if len(members) > 1 else f"training {members[0].cfg.sae.name}"
    with Progress(steps * batches.batch_size, "tokens", title, start * batches.batch_size) as progress:
        for s, batch in enumerate(sent_ahead(batches.between(start, steps), members[0].device), start):
            for member in running(members):
                if member.done == s:  # else it is ahead of the others
                    member.step(batch)
            progress.advance(batches.batch_size, note(members))
            if not running(members):
                break
            after_step()
    for member in members:
        member.settle()


def running(members: list[Member]) -> list[Member]:
    """The members that have steps to go."""
    return [m for m in members if m.failure is None and m.done < m.steps]


def note(members: list[Member]) -> str:
    """The first member's last logged numbers, for the bar."""
    rows = members[0].log
    return f"fvu {rows[-1]['fvu']:.3f}, l0 {rows[-1]['l0']:.0f}, dead {rows[-1]['dead']}" if rows else ""


@torch.no_grad()
def importance(
    openers: Sequence[Callable[[], AbstractContextManager[SAE]]], batches: Batches, tokens: int, device: torch.device
) -> list[list[dict[str, Any]]]:
    """For each SAE a row per latent: firing frequency, energy E[z^2] (normalised space, inference rule), decoder norm.

    Measured over about `tokens` training tokens, read once for all, by every rank its part. Each opener gives one SAE with its
    weights, as long as it is needed.
    """
    norms: list[Tensor] = []
    for opened in openers:
        with opened() as sae:
            norms.append(torch.linalg.vector_norm(sae.W_dec.detach(), dim=1))  # [d_sae]
    fired = [torch.zeros(len(norm), dtype=torch.float64, device=device) for norm in norms]
    energy = [torch.zeros_like(f) for f in fired]
    steps = max(1, tokens // batches.batch_size)
    with Progress(steps * batches.batch_size, "tokens", f"importance of the latents of {len(norms)} SAEs") as progress:
        for batch in batches.between(0, steps):
            x = batch.to(device)
            for opened, f, e in zip(openers, fired, energy, strict=True):
                with opened() as sae:
                    latents = sae.encode(x)
                f.index_add_(0, latents.indices, (latents.values > 0).double())
                e.index_add_(0, latents.indices, latents.values.double().square())
            progress.advance(batches.batch_size)
    n, world = steps * batches.batch_size, batches.world
    fired, energy = [world.sum(f) for f in fired], [world.sum(e) for e in energy]
    return [latent_rows(f / n, e / n, norm) for f, e, norm in zip(fired, energy, norms, strict=True)]


def latent_rows(frequency: Tensor, energy: Tensor, norms: Tensor) -> list[dict[str, Any]]:
    """The rows of latents.csv, from three times [d_sae]."""
    names = ("latent", "frequency", "energy", "decoder_norm")
    table = zip(range(len(norms)), frequency.tolist(), energy.tolist(), norms.tolist(), strict=True)
    return [dict(zip(names, row, strict=True)) for row in table]
