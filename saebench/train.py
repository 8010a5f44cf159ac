"""The training loop: every member of a gang takes each batch in turn; solo is a gang of one."""

from __future__ import annotations

import torch

from saebench.activations import Batches
from saebench.member import Member
from saebench.progress import Progress, say


def train(members: list[Member], batches: Batches) -> None:
    """Train the members to their own number of steps. A failed member stops; the others go on."""
    steps = max(m.steps for m in members)
    title = f"training {len(members)} SAEs" if len(members) > 1 else f"training {members[0].cfg.sae.name}"
    with Progress(steps * batches.batch_size, "tokens", title) as progress:
        for s, batch in enumerate(batches.between(0, steps)):
            for member in running(members, s):
                member.step(batch.to(member.device, non_blocking=True))
                if member.failure:
                    say(f"{member.cfg.sae.name}: {member.failure}")
            progress.advance(len(batch), note(members))
            if not running(members, s + 1):
                break


def running(members: list[Member], step: int) -> list[Member]:
    """The members that take step `step`."""
    return [m for m in members if m.failure is None and step < m.steps]


def note(members: list[Member]) -> str:
    """The first member's last logged numbers, for the bar."""
    rows = members[0].log
    return f"fvu {rows[-1]['fvu']:.3f}, l0 {rows[-1]['l0']:.0f}, dead {rows[-1]['dead']}" if rows else ""


@torch.no_grad()
def importance(member: Member, batches: Batches, tokens: int) -> dict[str, list[float]]:
    """Each latent's firing frequency and energy E[z^2] (inference rule, normalised space) over about `tokens` training tokens."""
    sae = member.sae
    fired = torch.zeros(sae.d_sae, dtype=torch.float64, device=member.device)
    energy, n = torch.zeros_like(fired), 0
    for batch in batches.between(0, max(1, tokens // batches.batch_size)):
        latents = sae.encode(batch.to(member.device))
        fired.index_add_(0, latents.indices, (latents.values > 0).double())
        energy.index_add_(0, latents.indices, latents.values.double().square())
        n += len(batch)
    norms = torch.linalg.vector_norm(sae.W_dec, dim=1)
    columns = {"frequency": fired / n, "energy": energy / n, "decoder_norm": norms}
    return {name: values.tolist() for name, values in columns.items()}
