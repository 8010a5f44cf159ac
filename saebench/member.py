"""A member of a gang: one SAE in training with its optimiser, schedules, dead latents and log; nothing is shared with others."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saebench.config import RunConfig
from saebench.memory import Late, Stopwatch, is_out_of_memory
from saebench.optim import Adam, remove_parallel
from saebench.parallel import SOLO, World
from saebench.progress import say
from saebench.saes import SAE, Stats, Step, build
from saebench.schedules import lr_factor, sparsity_factor
from saebench.sharded import TWINS, Sharded

DEAD_EVERY = 16  # steps between looks at which latents are dead
BY_LATENT = ("W_enc", "b_enc", "W_dec")  # parameters whose rows (slot.rows) belong to latents


class Pending(NamedTuple):
    """A row of the log whose loss, FVU and L0 (`measured` [3]) are on their way from the device."""

    step: int
    tokens: int
    measured: Late
    dead: int
    lr: float
    tokens_per_s: float


class Member:
    """One run's training state; `step(x)` advances it by one batch of raw activations, `settle()` ends the log.

    No step waits for the device: what is logged, and which latents are dead, is read one step later. Ranks that share each
    batch hold the same member.
    """

    def __init__(self, cfg: RunConfig, stats: Stats, device: torch.device, world: World = SOLO) -> None:
        self.cfg, self.device, self.world = cfg, device, world
        self.sae: SAE = build(cfg.sae, stats, cfg.seed)
        self.sae.world = world
        self.mixed = cfg.train.resolve_precision(device.type) == "bfloat16"
        self.sharded = Sharded(self.sae, device, self.mixed) if cfg.shard == "on" and world.size > 1 else None
        self.sae.to(device)
        named = dict(self.sae.named_parameters()) if self.sharded is None else self.sharded.shared()
        self.optimizer = Adam(named, cfg.train, self.sae.lr_factors())
        if self.mixed and self.sharded is None:
            self.sae.copies = {name: getattr(self.sae, name).detach().bfloat16() for name in TWINS}
            self.optimizer.copies = self.sae.copies
        self.lr = cfg.train.learning_rate(cfg.sae.d_sae)
        self.steps = max(1, cfg.train_tokens // cfg.train.batch_size)
        self.done = 0
        self.since_fired = torch.zeros(cfg.sae.d_sae, dtype=torch.int64, device=device)  # tokens
        self.dead: Tensor | None = None
        self.silent: Late | None = None  # [d_sae] (bool), the latents found dead after the last step
        self.log: list[dict[str, Any]] = []
        self.pending: Pending | None = None
        self.loss = compiled(self.sae, cfg.compile, device)  # of a member that ranks do not share out
        self.clock, self.watch = time.monotonic(), Stopwatch(device)
        self.failure: str | None = None

    def step(self, x: Tensor) -> None:
        """One optimiser step on activations x [n, d_in] as the model gave them, this rank's part of the batch.

        Running out of memory ends this member alone, as a loss that is not finite does; among several ranks it is raised.
        """
        self.settle()
        if self.failure is not None:
            return
        try:
            with self.watch:
                self.advance(x)
        except (RuntimeError, MemoryError) as error:
            if self.world.size > 1 or not is_out_of_memory(error):
                raise
            first = str(error).partition("\n")[0]
            self.fail(f"memory ran out in step {self.done + 1} ({first}); lower memory_gb or train.batch_size")

    def advance(self, x: Tensor) -> None:
        """The step itself: loss, gradients, update, which latents fired, log."""
        seen = self.sae.normalise(x).x
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            step = self.gradients(seen, sparsity_factor(self.cfg.sparsity, self.done, self.steps))
        self.update()
        fired = self.world.any(step.fired)
        self.since_fired = torch.where(fired, 0, self.since_fired + len(x) * self.world.size)
        self.done += 1
        order = self.sae.order_after(self.done)
        if order is not None:
            self.reorder(order)
        if (self.done - 1) % DEAD_EVERY == 0:
            self.silent = Late(self.since_fired >= self.cfg.sae.dead_tokens)
        if self.done % self.cfg.train.log_every == 0 or self.done == self.steps:
            self.record(seen, step)

    def gradients(self, x: Tensor, factor: float) -> Step:
        """The loss on normalised x [n, d_in], AuxK's among it, with all gradients in `.grad`."""
        if self.sharded is not None:
            return self.sharded.step(x, factor, self.dead)
        step = self.loss(x, factor)
        step.loss.backward()
        if self.dead is None or self.cfg.sae.aux_weight == 0:
            return step
        return step._replace(loss=step.loss + self.sae.aux_backward(x, step.x_hat, self.dead))

    def update(self) -> None:
        """Clipping, and Adam at the scheduled rate; the decoder's rows keep unit norm."""
        slots = self.optimizer.slots
        parameters = [slot.parameter for slot in slots.values()]
        if self.sharded is None:
            self.world.average([p.grad for p in parameters if p.grad is not None])
        if self.cfg.train.clip > 0:
            decoder = slots["W_dec"]
            assert decoder.parameter.grad is not None
            # what the step ignores must not count
            remove_parallel(decoder.rows(decoder.parameter.grad), decoder.rows(decoder.parameter))
            torch.nn.utils.clip_grad_norm_(parameters, self.cfg.train.clip)
        self.optimizer.step(self.lr * lr_factor(self.cfg.train, self.done, self.steps))
        for p in parameters:
            p.grad = None

    @torch.no_grad()
    def reorder(self, order: Tensor) -> None:
        """Put the latents, with all that is kept of each, into the order [d_sae]."""
        self.since_fired = self.since_fired[order]
        if self.dead is not None:
            places = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
            self.dead = places[self.dead].sort().values
        for name in BY_LATENT:
            slot, copies = self.optimizer.slots[name], self.optimizer.copies
            twin = [slot.rows(copies[name])] if name in copies else []
            for rows in (slot.rows(slot.parameter), slot.mean, slot.square, *twin):
                rows.copy_(slot.own(slot.whole(rows)[order]))

    @torch.no_grad()
    def record(self, x: Tensor, step: Step) -> None:
        """Send loss, FVU and L0 on their way into the log."""
        tokens = self.done * self.cfg.train.batch_size
        since = tokens - (self.log[-1]["tokens"] if self.log else 0)
        mean = self.world.mean(x.mean(0))  # [d_in]
        fvu = self.world.sum((x - step.x_hat).square().sum()) / self.world.sum((x - mean).square().sum())
        now = time.monotonic()
        loss, l0 = self.world.mean(step.loss.detach().float()), self.world.mean(step.l0)
        measured = Late(torch.stack([loss, fvu, l0]))
        dead = 0 if self.dead is None else len(self.dead)
        lr = self.lr * lr_factor(self.cfg.train, self.done - 1, self.steps)
        rate = since / max(now - self.clock, 1e-9)
        self.clock = now
        self.pending = Pending(self.done, tokens, measured, dead, lr, rate)

    def settle(self) -> None:
        """Read what the last step left to be read; a loss that is not finite marks the member as failed."""
        if self.silent is not None:
            dead = self.silent.read().nonzero().squeeze(1)  # [n_dead]
            self.dead = dead.to(self.device, non_blocking=True) if len(dead) > 0 else None
            self.silent = None
        if self.pending is None:
            return
        row, self.pending = self.pending, None
        loss, fvu, l0 = row.measured.read().tolist()
        named = {"step": row.step, "tokens": row.tokens, "loss": loss, "fvu": fvu, "l0": l0}
        own = {"dead": row.dead, "lr": row.lr, "tokens_per_s": row.tokens_per_s, "seconds": self.watch.seconds()}
        self.log.append(named | own)
        if not math.isfinite(loss):
            self.fail(f"the loss became {loss} at step {row.step}; lower train.lr={self.lr:g}")

    def fail(self, why: str) -> None:
        """Stop for good, say why, and leave the memory to the others."""
        self.failure = why
        say(f"{self.cfg.sae.name}: {why}")
        self.sae.zero_grad(set_to_none=True)
        self.sae.to("meta")
        self.sae.copies.clear()
        self.optimizer.slots.clear()
        self.sharded = None
        self.pending = self.silent = self.dead = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def opened(self) -> Iterator[SAE]:
        """The SAE with all its weights, for use without gradients; where ranks share them out, each must ask."""
        if self.sharded is None:
            yield self.sae
            return
        with self.sharded.opened() as sae:
            yield sae

    def shared(self) -> Iterator[tuple[str, Tensor]]:
        """What ranks may share out, by its name in `state`, whole and one at a time; each rank must go through it."""
        if self.sharded is not None:
            for name, weights in self.sharded.items():
                yield f"sae.{name}", weights
        yield from self.optimizer.moments()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the following steps depend on, and the log: tensors by name, and what JSON can hold. Settle first.

        Every rank must ask, if only for what is `shared`.
        """
        tensors = {f"sae.{name}": t for name, t in self.sae.state_dict().items()} | {"since_fired": self.since_fired}
        tensors |= {name: t.cpu() for name, t in self.shared()}
        if self.dead is not None:
            tensors["dead"] = self.dead
        if self.sae.generator is not None:
            tensors["generator"] = self.sae.generator.get_state()
        record: dict[str, Any] = {
            "step": self.done,
            "adam_steps": self.optimizer.steps,
            "seconds": self.watch.seconds(),
        }
        record["log"] = [list(row.items()) for row in self.log]  # pairs, as JSON objects are written in another order
        return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}, record

    def restore(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Go on from a `state`."""
        parts = {name.partition(".")[2]: t for name, t in tensors.items() if name.startswith("sae.")}
        if self.sharded is not None:
            self.sharded.load(parts)
            parts = {name: t for name, t in parts.items() if name not in self.optimizer.slots}
        self.sae.load_state_dict(parts, strict=self.sharded is None)
        for name, slot in self.optimizer.slots.items():
            slot.mean.copy_(slot.own(tensors[f"mean.{name}"]))
            slot.square.copy_(slot.own(tensors[f"square.{name}"]))
        for name, copy in self.sae.copies.items():
            copy.copy_(getattr(self.sae, name))
        self.since_fired.copy_(tensors["since_fired"])
        self.dead = tensors["dead"].to(self.device) if "dead" in tensors else None
        if self.sae.generator is not None:
            self.sae.generator.set_state(tensors["generator"])
        self.done, self.log = record["step"], [dict(row) for row in record["log"]]
        self.optimizer.steps, self.watch.total = record["adam_steps"], record["seconds"]


def compiled(sae: SAE, choice: str, device: torch.device, backend: str = "inductor") -> Callable[[Tensor, float], Step]:
    """The SAE's loss, through torch.compile if its variant trains dense and `choice` is on, or auto on a GPU.

    The top-k family has kernels of its own and nothing dense to fuse. Every member has a function of its own: one compiled
    function shared by members of many shapes would fall back to eager after eight recompilations. The schedule's factor
    goes in as a tensor, as a number would be compiled in and each of its values would be another function.
    """
    if not sae.dense or choice == "off" or (choice == "auto" and device.type != "cuda"):
        return sae.loss
    loss: Callable[..., Step] = torch.compile(sae.loss, dynamic=False, backend=backend)
    return lambda x, factor: loss(x, torch.tensor(factor))
