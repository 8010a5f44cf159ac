"""A gang's memory in a process of its own: what is estimated before it, or the peak that training it adds (bytes, printed)."""

from __future__ import annotations

import sys

import torch

from saebench.member import Member
from saebench.memory import keep_freed_memory
from saebench.parallel import SOLO
from saebench.room import DEAD, REFS, needs_of, peak, status
from tests.configs import run_config, stats_of

ROWS, D_IN = 512, 192
SIZES = {"topk": 8192, "batchtopk": 6144, "matryoshka": 4096, "hierarchical": 8192, "relu": 4096}


def main(what: str) -> None:
    """Print the bytes."""
    torch.set_num_threads(1)
    keep_freed_memory()
    x = torch.randn(ROWS, D_IN)
    stats, cpu = stats_of(x), torch.device("cpu")
    configs = [
        run_config(f"sae={name}", f"sae.d_sae={d}", f"train.batch_size={ROWS}", "train.n_tokens=4096")
        for name, d in SIZES.items()
    ]
    Member(configs[0], stats, cpu).step(x[:8])  # what torch loads when it is first used
    if what == "estimate":
        print(peak(needs_of(configs, stats, cpu, SOLO)))
        return
    REFS.write_text("5")
    before = status("VmRSS")
    members = [Member(cfg, stats, cpu) for cfg in configs]
    for _ in range(3):
        for member in members:
            member.dead = torch.arange(int(DEAD * member.cfg.sae.d_sae))
            member.step(x)
    print(status("VmHWM") - before)


if __name__ == "__main__":
    main(sys.argv[1])
