"""Time of a full training step of each variant, as a ratio to the encoder product alone (`make bench`).

A step is normalisation, forward, backward, projection, fused Adam and decoder renormalisation, AuxK off. The floor is the
encoder product into a preallocated output, measured in the same run. Refuses to measure while other processes are busy.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from saebench.compose import load
from saebench.member import Member
from saebench.saes import REGISTRY, Stats
from saebench.store import versions, write_json


def median_ms(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Median milliseconds of `run` after two warm-up calls."""
    times = []
    for i in range(repeats + 2):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if i >= 2:
            times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


def floor_ms(x: torch.Tensor, d_sae: int, repeats: int) -> float:
    """Median milliseconds of the encoder product alone, for x [n, d_in]."""
    weights, out = x.new_empty(x.shape[1], d_sae).normal_(), x.new_empty(len(x), d_sae)
    return median_ms(lambda: torch.mm(x, weights, out=out), repeats, x.device)


def measure(args: argparse.Namespace, threads: int) -> dict[str, float]:
    """Median milliseconds of the floor and of every variant's step."""
    torch.set_num_threads(threads)
    device = torch.device(args.device)
    x = torch.randn(args.n, args.d_in, device=device)
    times = {"floor": floor_ms(x, args.d_sae, args.repeats)}
    stats = Stats(torch.zeros(args.d_in), 1.0, torch.ones(args.d_in))
    for variant in REGISTRY:
        knob = [f"sae.k={args.k}"] if hasattr(load([f"sae={variant}"]).sae, "k") else [f"sae.target_l0={args.k}"]
        sizes = [
            f"sae.d_sae={args.d_sae}",
            f"train.batch_size={args.n}",
            "train.n_tokens=1_000_000_000",
            "train.log_every=1000000",
        ]
        member = Member(load([f"sae={variant}", "sae.aux_weight=0", *knob, *sizes]), stats, device)
        times[variant] = median_ms(lambda m=member: m.step(x), args.repeats, device)
        print(
            f"threads {threads}  {variant:13s} {times[variant]:8.1f} ms  {times[variant] / times['floor']:5.2f} x floor"
        )
    return times


def main() -> None:
    """Measure, print, and write outputs/bench/step.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("n", 2048), ("d_in", 640), ("d_sae", 8192), ("k", 32), ("repeats", 9)):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--anyway", action="store_true", help="measure although the machine is busy")
    args = parser.parse_args()
    busy = os.getloadavg()[0]
    if busy > 0.5 and not args.anyway:
        sys.exit(f"the machine is busy (load {busy:.1f}): timings would lie; wait, or pass --anyway")
    cores = os.cpu_count() or 1
    counts = [1] if args.device != "cpu" or cores == 1 else [1, min(2, cores)]
    result = {f"threads {n}": measure(args, n) for n in counts}
    path = Path("outputs/bench/step.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"shape": vars(args), "ms": result, "versions": versions()})
    print(json.dumps({"written": str(path)}))


if __name__ == "__main__":
    main()
