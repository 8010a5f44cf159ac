"""Two processes that train together: started as `python -m tests.ranks OUT` with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

Each trains every case of OUT/configs.json on its part of the batches and writes what it has to OUT/<case>-<rank>.json and
.safetensors; the tests train the same cases alone and compare.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from saebench.checkpoint import Saver
from saebench.config import RunConfig, as_dict, from_dict
from saebench.member import Member
from saebench.parallel import SOLO, World, join, leave, local
from saebench.room import held_by, needs_of
from saebench.sae_configs import SAE_VARIANTS
from saebench.select import flat_topk, ranks_topk
from saebench.train import train
from tests.configs import run_config, stats_of, synthetic

BATCH, STEPS = 128, 18
BEGUN = "matryoshka-begun"  # goes on from a checkpoint in OUT/matryoshka-begun
CASES: dict[str, tuple[str, ...]] = dict.fromkeys(SAE_VARIANTS, ()) | {
    "hierarchical-relative": ("sae.weights=relative",),
    "lattice-batch": ("sae.selection=batch", "sae.prefix_sampling=random"),
    "lattice-sorted": ("sae.sort_every=5", "sae.weights=relative"),
    "matryoshka-random": ("sae.prefix_sampling=random",),
    "relu-steered": ("sae.target_l0=4",),
    "gated-steered": ("sae.target_l0=4",),
    "jumprelu-unsteered": ("sae.target_l0=null",),
    "topk-clipped": ("train.clip=0.01",),
    "batchtopk-warmup": ("sparsity=warmup", "sae.input=token"),
    "topk-shared": ("shard=on", "train.clip=0.01"),
    "topk-uneven": ("shard=on", "sae.d_sae=97"),
    "topk-halved": ("shard=on", "train.precision=bfloat16"),
    "jumprelu-shared": ("shard=on",),
    "gated-shared": ("shard=on",),
    "lattice-shared": ("shard=on", "sae.sort_every=5"),
    "batchtopk-shared": ("shard=on",),
    BEGUN: ("shard=on",),
}
STOPPED, STOP = "batchtopk-shared", 5  # a case stopped by a signal after so many steps
SELECTIONS = 40


@dataclass
class Source:
    """Batches of synthetic activations whose last rows are the largest, so that ranks get unlike shares of a selection."""

    world: World = SOLO
    batch_size: int = BATCH

    def between(self, start: int, stop: int) -> Iterator[Tensor]:
        """This rank's rows of the batches start .. stop - 1."""
        for s in range(start, stop):
            x = synthetic(BATCH, seed=s + 1)
            x = x.mean(0) + (x - x.mean(0)) * torch.linspace(0.5, 2, BATCH).unsqueeze(1)
            yield x[self.world.own(torch.arange(BATCH), BATCH)]


@cache
def config(case: str) -> RunConfig:
    """A small run in which latents die."""
    variant = case.partition("-")[0]
    small = ["sae.d_sae=96", f"train.batch_size={BATCH}", f"train.n_tokens={BATCH * STEPS}", "train.log_every=1"]
    small += ["train.lr=0.002", "sae.dead_tokens=128"]
    if any(field.name == "k" for field in dataclasses.fields(SAE_VARIANTS[variant])):
        small.append("sae.k=4")
    return run_config(f"sae={variant}", *small, *CASES[case])


def fresh(cfg: RunConfig, world: World = SOLO) -> Member:
    """A member before its first step."""
    return Member(cfg, stats_of(synthetic(4096)), torch.device("cpu"), world)


def trained(cfg: RunConfig, world: World = SOLO, checkpoints: Path | None = None) -> Member:
    """A member trained on the batches, from the checkpoint in a folder if there is one."""
    member = fresh(cfg, world)
    if checkpoints is not None:
        Saver({checkpoints: member}, 0, world)
    train([member], Source(world))  # pyright: ignore[reportArgumentType]
    return member


def held_bytes(member: Member) -> int:
    """The memory that holds weights and Adam's moments between steps."""
    slots = member.optimizer.slots.values()
    held = [t for slot in slots for t in (local(slot.parameter), slot.mean, slot.square)]
    held += [p for p in member.sae.parameters() if all(p is not slot.parameter for slot in slots)]
    return sum(t.untyped_storage().nbytes() for t in held)


def acts_of(seed: int) -> tuple[Tensor, int]:
    """Pre-activations [16, m] of all ranks, and how many each rank should keep on average: plain, tied or in one rank only."""
    g = torch.Generator().manual_seed(seed)
    width = (5, 64, 300)[seed % 3]
    acts = torch.randn(16, width, generator=g)
    if seed % 4 == 1:
        acts = (acts * 2).round()  # many ties
    elif seed % 4 == 2:
        acts[8:] += 9  # all from rank 1
    elif seed % 4 == 3:
        acts = acts.bfloat16()
    return acts, int(torch.randint(1, 8 * min(width, 20) + 1, (), generator=g))


def selections(world: World) -> list[bool]:
    """Whether the ranks together keep the values that one process keeps, of equal ones as many as can be of the first rank."""
    right = []
    for seed in range(SELECTIONS):
        acts, count = acts_of(seed)
        own = acts[world.own(torch.arange(16), 16)]
        values, flat = ranks_topk(own, count, world)
        assert torch.equal(values, own.reshape(-1)[flat])
        assert bool((flat.diff() > 0).all())
        wanted = flat_topk(acts, world.size * count)[0]
        least = wanted.min()
        mine = torch.cat([wanted[wanted > least], wanted[wanted == least]])
        total = world.sum(values.double().sum())
        n = int(world.sum(torch.tensor(len(values))))
        ties = int((values == least).sum())
        kept = int(world.sum(torch.tensor(ties if world.leads else 0)))
        there = int(world.sum(torch.tensor(int((own == least).sum()) if world.leads else 0)))
        spare = int((wanted == least).sum())
        right.append(n == len(mine) and float(total) == float(mine.double().sum()) and kept == min(there, spare))
    return right


def stopped(cfg: RunConfig, world: World, checkpoints: Path) -> int:
    """Train until rank 1 gets a signal after step STOP; the steps that this rank took."""
    member = fresh(cfg, world)
    saver = Saver({checkpoints: member}, 0, world)

    def after_step() -> None:
        if member.done == STOP and world.rank == 1:
            signal.raise_signal(signal.SIGTERM)
        saver.after_step()

    with saver.watching(), suppress(KeyboardInterrupt):
        train([member], Source(world), after_step)  # pyright: ignore[reportArgumentType]
    return member.done


def write_configs(out: Path) -> None:
    """Compose the cases' configs once for all."""
    (out / "configs.json").write_text(json.dumps({case: as_dict(config(case)) for case in CASES}))


def main(out: Path) -> None:
    """Train every case on this rank's rows, and one until a signal comes."""
    world = join()
    assert world.size == 2
    torch.set_num_threads(1)
    configs = {case: from_dict(values) for case, values in json.loads((out / "configs.json").read_text()).items()}
    for case, cfg in configs.items():
        member = trained(cfg, world, out / case)
        tensors, record = member.state()
        save_file(tensors, out / f"{case}-{world.rank}.safetensors")
        (out / f"{case}-{world.rank}.json").write_text(json.dumps(record["log"]))
        (out / f"{case}-{world.rank}-bytes.json").write_text(json.dumps(held_bytes(member)))
    (out / f"stopped-{world.rank}.json").write_text(json.dumps(stopped(configs[STOPPED], world, out / "stopped")))
    shared = configs["topk-shared"]
    stats, cpu = stats_of(synthetic(64)), torch.device("cpu")
    (need,), bound = needs_of([shared], stats, cpu, world), held_by(shared, len(stats.mean), cpu, world)
    (out / f"needs-{world.rank}.json").write_text(json.dumps([need, bound]))
    (out / f"selections-{world.rank}.json").write_text(json.dumps(selections(world)))
    leave()


def started(command: Sequence[str], size: int = 2) -> list[subprocess.Popen[str]]:
    """`size` ranks of a command, without torchrun."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    met = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, *command], env=os.environ | met | {"RANK": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(size)
    ]  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
