"""Data-parallel ranks under torchrun: what they agree on and what they add up. Alone, nothing here does anything.

Every rank holds the whole SAE, or with shard=on its latents alone (sharded.py), and trains on its own part of each batch:
gradients are averaged and whatever a batch decides (its selection, dead latents, steering, the log) is taken over all ranks, so
that the steps are those of one process up to the rounding of sums. Files are written by rank 0, or each by one rank.

Tensors on a GPU go by NCCL, those on the host by gloo, which also notices a rank that is gone. Decisions and waiting have a
group of their own that waits for hours, as one rank may tokenise or write while the others wait.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from saebench.checks import RankLost, require
from saebench.progress import hush

PATIENCE = timedelta(days=7)  # for what one rank does while the others wait


@dataclass(frozen=True)
class World:
    """This process's rank among the `size` that share each batch; `control` is their group for decisions."""

    rank: int = 0
    size: int = 1
    control: Any = None

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which writes files."""
        return self.rank == 0

    def sum(self, t: Tensor) -> Tensor:
        """The sum of t over ranks, without gradient."""
        return t if self.size == 1 else reduced(t, dist.ReduceOp.SUM)

    def mean(self, t: Tensor) -> Tensor:
        """The mean of t over ranks. Its gradient is this rank's own, as gradients are averaged over ranks afterwards."""
        return t if self.size == 1 else self.sum(t.detach()) / self.size + (t - t.detach())

    def least(self, t: Tensor) -> Tensor:
        """The smallest of t over ranks, place by place."""
        return t if self.size == 1 else reduced(t, dist.ReduceOp.MIN)

    def any(self, t: Tensor) -> Tensor:
        """Whether t (bool) is true on any rank, place by place."""
        return t if self.size == 1 else reduced(t.int(), dist.ReduceOp.MAX) > 0

    def gather(self, t: Tensor) -> Tensor:
        """t of every rank, of one shape on all: [size, *t.shape]."""
        every = [torch.empty_like(t) for _ in range(self.size)]
        with peers():
            dist.all_gather(every, t.contiguous())
        return torch.stack(every)

    def average(self, gradients: list[Tensor]) -> None:
        """Replace gradients by their means over ranks, the same bits on all of them."""
        if self.size == 1:
            return
        seen = [g.T if g.dim() == 2 and not g.is_contiguous() else g for g in gradients]  # W_enc lies by column
        assert all(g.is_contiguous() for g in seen), "a gradient must be reduced where it lies"
        with peers():
            for work in [dist.all_reduce(g, async_op=True) for g in seen]:
                assert work is not None
                work.wait()
        for g in seen:
            g.div_(self.size)

    def part(self, batch_size: int) -> int:
        """This rank's rows in a batch. Raises InputError unless they are as many on every rank."""
        even = batch_size % self.size == 0
        message = f"train.batch_size={batch_size}: cannot be shared evenly by {self.size} ranks; choose a multiple"
        require(even, f"{message} of {self.size}")
        return batch_size // self.size

    def own(self, order: Tensor, batch_size: int) -> Tensor:
        """Of rows in their order of use, those that this rank trains on: of each whole batch its consecutive part."""
        if self.size == 1:
            return order
        steps, part = len(order) // batch_size, self.part(batch_size)
        return order[: steps * batch_size].view(steps, self.size, part)[:, self.rank].reshape(-1)

    def wait(self) -> None:
        """Go on when all ranks are here."""
        if self.size > 1:
            with peers():
                dist.barrier(self.control)

    @contextmanager
    def first(self) -> Iterator[None]:
        """The block on rank 0, then, when it is through, on the others."""
        if not self.leads:
            self.wait()
        yield
        if self.leads:
            self.wait()

    def either(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank."""
        if self.size == 1:
            return flag
        seen = torch.tensor(int(flag))
        with peers():
            dist.all_reduce(seen, dist.ReduceOp.MAX, group=self.control)
        return bool(seen)

    def decided(self, decide: Callable[[], bool]) -> bool:
        """What rank 0 decides; only there is it asked."""
        return self.either(self.leads and decide())

    def device(self, found: torch.device, asked: str) -> torch.device:
        """The GPU of this rank where all together were given `found` for device=`asked`."""
        if self.size == 1 or found.type != "cuda":
            return found
        local, here = int(os.environ.get("LOCAL_RANK", self.rank)), torch.cuda.device_count()
        require(asked in ("auto", "cuda"), f"device={asked}: every rank takes a GPU of its own; use device=cuda")
        require(
            local < here, f"device={asked}: {here} GPUs are visible for more ranks; start at most {here}, or use cpu"
        )
        torch.cuda.set_device(local)  # where NCCL and the kernels run
        return torch.device("cuda", local)


SOLO = World()


@cache
def join() -> World:
    """The ranks that torchrun started (its RANK, WORLD_SIZE, ...), once they have met; SOLO without it.

    From here on only rank 0 prints, but for errors. Raises InputError for variables that do not fit together.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        return SOLO
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    require(
        not missing, f"WORLD_SIZE={size}: {', '.join(missing)} is not set; start with torchrun, or unset WORLD_SIZE"
    )
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    with peers():
        dist.init_process_group(backend)
        world = World(dist.get_rank(), dist.get_world_size(), dist.new_group(timeout=PATIENCE, backend="gloo"))
    if not world.leads:
        hush()
    return world


def leave() -> None:
    """Part from the other ranks at the end of a command that went well."""
    if join.cache_info().currsize and dist.is_initialized():
        join().wait()
        dist.destroy_process_group()
        join.cache_clear()


@contextmanager
def peers() -> Iterator[None]:
    """Turn a failure to reach the other ranks into a RankLost."""
    try:
        yield
    except RuntimeError as error:
        raise lost(error) from error


@contextmanager
def peers_within() -> Iterator[None]:
    """The same around work that reaches the other ranks now and then: its own errors are raised as they are."""
    try:
        yield
    except RuntimeError as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if frame.f_globals["__name__"] != "torch.distributed.distributed_c10d":  # where all collectives are called
            raise
        raise lost(error) from error


def lost(error: RuntimeError) -> RankLost:
    """What is said where another rank could not be reached."""
    reason = str(error).partition("\n")[0]
    return RankLost(f"another rank is gone, and says itself why; this one stops ({reason})")


def reduced(t: Tensor, how: Any) -> Tensor:
    """A copy of t reduced over ranks."""
    whole = t.clone()
    with peers():
        dist.all_reduce(whole, how)
    return whole


def local(t: Tensor) -> Tensor:
    """What this rank holds of a tensor that fully_shard shares out, in the same memory; any other as it is. No gradient."""
    held: Any = t.detach()
    return held.to_local() if hasattr(held, "to_local") else held


def own(rows: Tensor, like: Any) -> Tensor:
    """Of the rows of all ranks those that this rank holds where `like` is shared out by rows; all of them where it is not."""
    if not hasattr(like, "to_local"):
        return rows
    mesh = like.device_mesh
    parts = rows.chunk(mesh.size())  # as fully_shard cuts them: the last ones may be shorter, or none
    return parts[mesh.get_local_rank()] if mesh.get_local_rank() < len(parts) else rows[:0]


def whole(rows: Tensor, like: Any) -> Tensor:
    """The rows of all ranks, given those that this rank holds, where `like` is shared out by rows; each rank must ask."""
    if not hasattr(like, "to_local"):
        return rows
    from torch.distributed.tensor import DTensor

    shape, stride = like.shape, like.stride()
    with peers():
        found = DTensor.from_local(rows, like.device_mesh, like.placements, run_check=False, shape=shape, stride=stride)
        return found.full_tensor()
