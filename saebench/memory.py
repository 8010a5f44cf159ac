"""Between host and device: memory kept for the next step, results read late, batches sent ahead."""

from __future__ import annotations

import ctypes
import os
import platform
import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from saebench.checks import require
from saebench.config import RunConfig

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
KEPT_BYTES = (1 << 31) - 1  # freed memory at the top of the heap beyond this goes back to the system


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to serve large blocks from the heap; whether it could (elsewhere nothing is done).

    By default each block above 32 MiB is mapped anew and its pages zeroed on first touch, which took a fifth of a step
    of TopK on a CPU. The price is that memory freed below a block still in use stays with the process.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, KEPT_BYTES), (M_TOP_PAD, 64 << 20))
    return all(libc.mallopt(option, value) == 1 for option, value in settings)


def check_memory(cfg: RunConfig, d_in: int, device: torch.device, ranks: int = 1) -> None:
    """Raise InputError if training an SAE needs more than all the memory of a device.

    Counted in bytes: float32 weights and two moments, their bfloat16 twins, and gradients. Ranks that share it out (shard=on)
    hold a part of the first two, and have the weights in the precision of products, and the gradients, for a step.
    """
    mixed = cfg.train.resolve_precision(device.type) == "bfloat16"
    shared = cfg.shard == "on" and ranks > 1
    each = 12 / ranks + (4 if mixed else 8) if shared else 16 + 2 * mixed  # bytes a weight
    need, there = 2 * d_in * cfg.sae.d_sae * each, memory_of(device)
    remedy = "lower it" if shared else "lower it, or share it out over GPUs: torchrun with shard=on"
    text = f"sae.d_sae={cfg.sae.d_sae}: training needs {need / 1e9:,.1f} GB and {device} has {there / 1e9:,.1f}"
    require(need <= there, f"{text}; {remedy}")


def memory_of(device: torch.device) -> int:
    """All the memory of a device, in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or numpy says with it that a device or the host has no memory left."""
    ran_out = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return ran_out or "can't allocate memory" in str(error)  # what torch says of the host's


class Stopwatch:
    """Seconds spent inside `with` blocks: of the device's time on a GPU, which is read later so that nobody waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.total, self.began = device, 0.0, 0.0
        self.running: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> None:
        self.began = time.monotonic()
        if self.device.type == "cuda":
            self.running.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
            self.running[-1][0].record(torch.cuda.current_stream(self.device))

    def __exit__(self, *error: object) -> None:
        if self.device.type == "cuda":
            self.running[-1][1].record(torch.cuda.current_stream(self.device))
        else:
            self.total += time.monotonic() - self.began

    def seconds(self) -> float:
        """The time of the blocks that the device has finished."""
        while self.running and self.running[0][1].query():
            start, stop = self.running.pop(0)
            self.total += start.elapsed_time(stop) / 1e3
        return self.total


class Late:
    """A tensor on its way to the host, read later, so that nobody waits for the device."""

    def __init__(self, tensor: Tensor) -> None:
        self.event: torch.cuda.Event | None = None
        self.value = tensor
        if tensor.is_cuda:
            self.value = torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record(torch.cuda.current_stream(tensor.device))

    def read(self) -> Tensor:
        """The tensor on the host; waits only if it has not arrived."""
        if self.event is not None:
            self.event.synchronize()
        return self.value


def sent_ahead(batches: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """The batches on `device`, each copied on a stream of its own while the one before is in use.

    They should lie in pinned memory, otherwise the copies wait.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream, waiting = torch.cuda.Stream(device), []
    for batch in batches:
        with torch.cuda.stream(stream):
            waiting.append((batch.to(device, non_blocking=True), stream.record_event()))
        if len(waiting) > 1:
            yield arrived(*waiting.pop(0))
    for item in waiting:
        yield arrived(*item)


def arrived(x: Tensor, copied: torch.cuda.Event) -> Tensor:
    """x, once the current stream waits for its copy."""
    current = torch.cuda.current_stream(x.device)
    current.wait_event(copied)
    x.record_stream(current)
    return x
