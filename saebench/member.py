"""A member of a gang: one SAE in training with its optimiser, schedules, dead latents and log; nothing is shared with others."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saebench.config import RunConfig
from saebench.optim import adam, normalise_rows, remove_parallel, set_lr
from saebench.saes import SAE, Stats, Step, build
from saebench.schedules import lr_factor, sparsity_factor

DEAD_EVERY = 16  # steps between looks at which latents are dead, so that a step does not wait for the device


class Member:
    """One run's training state; `step(x)` advances it by one batch of raw activations."""

    def __init__(self, cfg: RunConfig, stats: Stats, device: torch.device) -> None:
        self.cfg, self.device = cfg, device
        self.sae: SAE = build(cfg.sae, stats, cfg.seed).to(device)
        self.lr = cfg.train.learning_rate(cfg.sae.d_sae)
        self.optimizer = adam(self.sae, self.sae.lr_factors(), cfg.train)
        self.steps = max(1, cfg.train_tokens // cfg.train.batch_size)
        self.done = 0
        self.since_fired = torch.zeros(cfg.sae.d_sae, dtype=torch.int64, device=device)  # tokens
        self.dead: Tensor | None = None
        self.log: list[dict[str, Any]] = []
        self.loss = compiled(self.sae, cfg.compile)
        self.clock = time.monotonic()
        self.failure: str | None = None

    def step(self, x: Tensor) -> None:
        """One optimiser step on activations x [n, d_in] as the model gave them."""
        seen = self.sae.normalise(x).x
        if self.done % DEAD_EVERY == 0:
            self.find_dead()
        factor = sparsity_factor(self.cfg.sparsity, self.done, self.steps)
        step = self.loss(seen, factor, self.dead)
        self.optimizer.zero_grad(set_to_none=True)
        step.loss.backward()
        self.update()
        self.since_fired = torch.where(step.latents.fired(), 0, self.since_fired + len(x))
        self.done += 1
        if self.done % self.cfg.train.log_every == 0 or self.done == self.steps:
            self.record(seen, step)

    def update(self) -> None:
        """Projection, clipping, Adam at the scheduled rate, renormalisation of the decoder."""
        W_dec = self.sae.W_dec
        assert W_dec.grad is not None
        remove_parallel(W_dec.grad, W_dec)
        if self.cfg.train.clip > 0:
            torch.nn.utils.clip_grad_norm_(self.sae.parameters(), self.cfg.train.clip)
        set_lr(self.optimizer, self.lr * lr_factor(self.cfg.train, self.done, self.steps))
        self.optimizer.step()
        normalise_rows(W_dec)

    def find_dead(self) -> None:
        """List the latents that have not fired for sae.dead_tokens tokens."""
        dead = (self.since_fired >= self.cfg.sae.dead_tokens).nonzero().squeeze(1)  # [n_dead]
        self.dead = dead if len(dead) > 0 else None

    @torch.no_grad()
    def record(self, x: Tensor, step: Step) -> None:
        """Append a row to the log; a loss that is not finite marks the member as failed."""
        now, tokens = time.monotonic(), self.done * self.cfg.train.batch_size
        since = tokens - (self.log[-1]["tokens"] if self.log else 0)
        loss = float(step.loss.detach())
        variance = (x - x.mean(0)).square().sum()
        self.log.append(
            {
                "step": self.done,
                "tokens": tokens,
                "loss": loss,
                "fvu": float((x - step.x_hat).square().sum() / variance),
                "l0": float((step.latents.values > 0).sum() / len(x)),
                "dead": 0 if self.dead is None else len(self.dead),
                "lr": self.lr * lr_factor(self.cfg.train, self.done - 1, self.steps),
                "tokens_per_s": since / max(now - self.clock, 1e-9),
            }
        )
        self.clock = now
        if not torch.isfinite(step.loss):
            self.failure = f"the loss became {loss} at step {self.done}; lower train.lr={self.lr:g}"


def compiled(sae: SAE, choice: str) -> Callable[[Tensor, float, Tensor | None], Step]:
    """The SAE's loss, through torch.compile with compile=on (auto: not, until measured); a function of its own for each member.

    One compiled function shared by members of many shapes would fall back to eager after eight recompilations.
    """
    if choice != "on":
        return sae.loss
    return torch.compile(sae.loss, dynamic=False)
