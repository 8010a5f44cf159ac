"""Whether a gang fits into memory, and if not, waves of members that do: each kind of member is tried on random activations.

A gang's peak is what all its members hold (parameters, moments, copies, counts) and what the greediest of them needs during a
step (gradients, pre-activations, selection), as members take their steps in turn. What a member holds is counted; what its
step needs is measured by two steps, with DEAD of its latents dead so that AuxK has its part. Ranks that share members out
(shard=on) try them together, as they train them.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from saebench.checks import InputError
from saebench.config import RunConfig, as_dict
from saebench.member import TWINS, Member
from saebench.parallel import SOLO, World, local
from saebench.progress import say
from saebench.saes import Stats
from saebench.store import key_of

DEAD = 0.25  # share of latents that are dead while a step is measured
FULL = 0.9  # share of the free memory that a gang may take
SURE = 10  # a step surely needs no more than so many tensors [n, d_sae], beside twice the gradients
REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class Need(NamedTuple):
    """Bytes of memory: `held` all through training, `passing` during a step."""

    held: int
    passing: int


def kind_of(cfg: RunConfig) -> str:
    """The key of all that the cost of a training step depends on: not the seeds, nor the learning rate."""
    config = as_dict(cfg)
    other = ("lr", "lr_scale", "order_seed", "importance_tokens", "n_tokens", "log_every", "lm_device")
    train = {name: value for name, value in config["train"].items() if name not in other}
    return key_of(
        {
            "sae": config["sae"],
            "sparsity": config["sparsity"],
            "train": train,
            "compile": cfg.compile,
            "shard": cfg.shard,
        }
    )


def held_by(cfg: RunConfig, d_in: int, device: torch.device, world: World = SOLO) -> Need:
    """What a member surely needs at most, from its config alone."""
    weights = 2 * d_in * cfg.sae.d_sae + cfg.sae.d_sae + d_in
    mixed = cfg.train.resolve_precision(device.type) == "bfloat16"
    copies = len(TWINS) * d_in * cfg.sae.d_sae if mixed else 0
    rows = 4 * cfg.train.batch_size * (SURE * cfg.sae.d_sae + 16 * d_in)
    small = 64 * (cfg.sae.d_sae + d_in)
    if cfg.shard == "on" and world.size > 1:
        share = -(-weights // world.size) + 2 * (cfg.sae.d_sae + d_in)  # the first rank's, of rows that do not go even
        return Need(12 * share + small, 24 * weights + rows)  # gathered, with the buffers that they come and go by
    return Need(12 * weights + 2 * copies + small, 8 * weights + rows)


def tried(cfg: RunConfig, stats: Stats, device: torch.device, world: World) -> Need:
    """What a member needs, found by two steps of random activations, as many as this rank has of a batch."""
    rows = world.part(cfg.train.batch_size)
    member = Member(cfg, stats, device, world if cfg.shard == "on" else SOLO)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(rows, len(stats.mean), generator=generator) * stats.variance.sqrt().float()
    x = (stats.mean.float() + noise).to(device)  # [rows, d_in]

    def steps() -> None:
        for _ in range(2):
            member.step(x)
            member.dead = torch.arange(int(DEAD * cfg.sae.d_sae), device=device)

    return Need(sum(t.nbytes for t in kept(member)), peak_of(steps, device))


def kept(member: Member) -> list[Tensor]:
    """The tensors that a member holds between steps."""
    slots = [t for slot in member.optimizer.slots.values() for t in (slot.mean, slot.square)]
    copies = list(member.sae.copies.values())
    weights = [local(slot.parameter) for slot in member.optimizer.slots.values()]
    return [*weights, *member.sae.buffers(), *slots, *copies, member.since_fired]


def peak_of(call: Callable[[], None], device: torch.device) -> int:
    """The most memory that a call takes beyond what is held before it: of the device, or of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    REFS.write_text("5")  # the peak is counted from here
    before = status("VmRSS")
    call()
    return max(0, status("VmHWM") - before)


def status(key: str) -> int:
    """A line of /proc/self/status in bytes."""
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(key)) * 1024


def measurable(device: torch.device) -> bool:
    """Whether `peak_of` can measure here."""
    return device.type == "cuda" or REFS.exists()


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a GPU (what torch keeps for itself among it) or on the host, as far as this process may take it."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    found = []
    if (info := Path("/proc/meminfo")).is_file():
        lines = dict(line.split(":") for line in info.read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdigit():
        found.append(int(limit.read_text()) - int(used.read_text()))
    return min(found) if found else None


def peak(needs: Sequence[Need]) -> int:
    """The bytes of a gang in training."""
    return sum(need.held for need in needs) + max((need.passing for need in needs), default=0)


def waves(configs: Sequence[RunConfig], stats: Stats, device: torch.device, world: World) -> list[list[int]]:
    """Indices of the configs in groups that fit into memory together, one group if all do; memory_gb or what is free counts.

    Says what does not fit before anything is trained. Raises InputError for a config that does not fit alone. Ranks agree.
    """
    given = configs[0].memory_gb
    free = free_bytes(device) if given is None else int(given * 1e9)
    room = None if free is None else int(world.least(torch.tensor(free)) * (FULL if given is None else 1))
    every = list(range(len(configs)))
    if room is None or not configs or peak([held_by(cfg, len(stats.mean), device, world) for cfg in configs]) <= room:
        return [every]
    needs = needs_of(configs, stats, device, world)
    whole = peak(needs)
    if whole <= room:
        return [every]
    for cfg, need in zip(configs, needs, strict=True):
        if peak([need]) > room:
            raise InputError(
                f"sae.d_sae={cfg.sae.d_sae}: training {cfg.sae.name} takes {peak([need]) / 1e9:.2f} GB and {room / 1e9:.2f} GB "
                "are free; lower it or train.batch_size, or raise memory_gb"
            )
    found = packed(needs, room)
    say(
        f"{len(configs)} SAEs take {whole / 1e9:.2f} GB together and {room / 1e9:.2f} GB are free: trained in {len(found)} waves "
        f"of {' and '.join(str(len(wave)) for wave in found)}, each of which reads the batches anew"
    )
    return found


def needs_of(configs: Sequence[RunConfig], stats: Stats, device: torch.device, world: World) -> list[Need]:
    """What each config needs, each kind tried once; where nothing can be measured what it surely needs at most."""
    if not measurable(device):
        return [held_by(cfg, len(stats.mean), device, world) for cfg in configs]
    known: dict[str, Need] = {}
    for cfg in configs:
        if kind_of(cfg) not in known:
            mine = tried(cfg, stats, device, world)
            gc.collect()
            known[kind_of(cfg)] = Need(*(-world.least(-torch.tensor(mine))).tolist())  # the most of any rank
    return [known[kind_of(cfg)] for cfg in configs]


def packed(needs: Sequence[Need], room: int) -> list[list[int]]:
    """Places of needs in few groups whose `peak` is within `room`: the largest first, each into the first group with space."""
    groups: list[list[int]] = []
    for i in sorted(range(len(needs)), key=lambda i: (-sum(needs[i]), i)):
        group = next((g for g in groups if peak([needs[j] for j in (*g, i)]) <= room), None)
        if group is None:
            groups.append([i])
        else:
            group.append(i)
    return [sorted(group) for group in groups]
