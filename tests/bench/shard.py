"""What ranks hold of a member and what its step takes beside that, with shard=off and on, in bytes a weight.

    python -m tests.bench.shard [--ranks 4] [--d-in 640] [--d-sae 16384] [--rows 256] [--device cpu]

Starts the ranks itself, fresh ones for each; they measure as `saebench` does before it trains a gang (room.py), and rank 0
prints a line. `rows` are one rank's of a batch; pre-activations [rows, d_sae] are part of a step.
"""

from __future__ import annotations

import argparse
import sys

import torch

from saebench.parallel import World, join, leave
from saebench.room import tried
from saebench.saes import Stats
from tests.configs import run_config
from tests.ranks import started


def measure(args: argparse.Namespace, world: World) -> None:
    """Held between steps, beside it in a step, and both; rank 0 prints."""
    stats = Stats(torch.zeros(args.d_in), 1.0, torch.ones(args.d_in))
    device = world.device(torch.device(args.device), args.device)
    shape = (f"sae.d_sae={args.d_sae}", "sae.k=32", f"train.batch_size={args.rows * world.size}")
    need = tried(run_config("sae=topk", f"shard={args.shard}", *shape), stats, device, world)
    if world.leads:
        weights = 2 * args.d_in * args.d_sae
        numbers = "  ".join(f"{n / weights:>6.1f}" for n in (need.held, need.passing, sum(need)))
        print(f"{world.size:>5}  {args.shard:>5}  {numbers}", flush=True)


def main() -> int:
    """Start the ranks, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("ranks", 4), ("d-in", 640), ("d-sae", 16384), ("rows", 256)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shard", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.shard:
        measure(args, join())
        leave()
        return 0
    print("ranks  shard    held    step    peak")
    worst = 0
    for shard in ("off", "on"):
        ranks = started(["-m", "tests.bench.shard", *sys.argv[1:], "--shard", shard], args.ranks)
        for printed, errors in [p.communicate() for p in ranks]:
            print(printed, end="", flush=True)
            print(errors, end="", file=sys.stderr)
        worst = max(worst, *(abs(p.returncode) for p in ranks))
    return worst


if __name__ == "__main__":
    sys.exit(main())
