"""Time and memory of a full training step of each variant, as a ratio to the encoder product alone (`make bench`).

A step is normalisation, forward, backward, projection, Adam and decoder renormalisation. The floor is the encoder product
into a preallocated output; on a GPU also the optimiser's 28 bytes a parameter at the bandwidth of a copy. Floor and all
cases take turns in one process, so that a slow moment of the machine falls on them all; a ratio is the median of the
rounds'. Memory is measured in processes of their own, peers by tests/peers/speed.py under their own Python. Refuses to
measure while other processes are busy.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CASES: dict[str, list[str]] = {
    "topk": ["sae=topk"],
    "topk, AuxK on 10% dead": ["sae=topk"],
    "batchtopk": ["sae=batchtopk"],
    "matryoshka, 5 prefixes": ["sae=matryoshka"],
    "hierarchical, powers": ["sae=hierarchical", "sae.budgets=powers"],
    "hierarchical, all": ["sae=hierarchical", "sae.budgets=all"],
    "lattice, 4 prefixes": ["sae=lattice", "sae.budgets=powers", "sae.per_step=4", "sae.sort_every=0"],
    "lattice, one drawn and full": ["sae=lattice", "sae.budgets=powers", "sae.per_step=2", "sae.sort_every=0"],
    "the same, sorting after every step": ["sae=lattice", "sae.budgets=powers", "sae.per_step=2", "sae.sort_every=1"],
    "lattice, one random and full": [
        "sae=lattice",
        "sae.budgets=powers",
        "sae.per_step=2",
        "sae.prefix_sampling=random",
        "sae.sort_every=0",
    ],
    "relu": ["sae=relu"],
    "jumprelu": ["sae=jumprelu"],
}
SHAPE = ("n", "d_in", "d_sae", "k", "device", "precision", "compile")


def main() -> None:
    """Measure, print, and write outputs/bench/step.json."""
    args = parse()
    if args.child:
        print(json.dumps(times(args) if args.child == "times" else peak(args)))
        return
    busy = busy_share()
    if busy > 0.1 and not args.anyway:
        sys.exit(f"other processes take {busy:.0%} of the processors: timings would lie; wait, or pass --anyway")
    peaks = {case: child(args, "peak", [case], args.threads[0])["peak_mib"] for case in args.cases}
    rows: list[dict[str, Any]] = []
    for threads in args.threads:
        found = child(args, "times", args.cases, threads) | run_peers(args, threads)
        rows += [{"case": case, "threads": threads, **row, "peak_mib": peaks.get(case)} for case, row in found.items()]
        show(rows[-len(found) :])
    path = ROOT / "outputs" / "bench" / "step.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {name: getattr(args, name) for name in SHAPE}
    path.write_text(json.dumps({"shape": shape, "machine": machine(args.device), "rows": rows}, indent=1) + "\n")
    print(f"written: {path.relative_to(ROOT)}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("n", 2048), ("d_in", 640), ("d_sae", 8192), ("k", 32), ("repeats", 11)):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", default="auto")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--child", choices=("times", "peak"), help="measure in this process and print JSON")
    parser.add_argument("--peers", default=os.environ.get("SAEBENCH_PEERS_PYTHON"), help="a Python with the peers")
    parser.add_argument("--anyway", action="store_true", help="measure although the machine is busy")
    return parser.parse_args()


def busy_share() -> float:
    """The share of all processors' time that is in use, over two seconds."""

    def read() -> tuple[int, int]:
        fields = [int(v) for v in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        return fields[3] + fields[4], sum(fields)

    idle, total = read()
    time.sleep(2)
    now_idle, now_total = read()
    return 1 - (now_idle - idle) / (now_total - total)


def child(args: argparse.Namespace, what: str, cases: list[str], threads: int) -> dict[str, Any]:
    """Times of some cases, or the peak memory of one, from a process of its own."""
    options = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in (*SHAPE, "repeats")]
    command = [sys.executable, "-m", "tests.bench.step", "--child", what, *options, f"--threads={threads}"]
    done = subprocess.run([*command, "--cases", *cases], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def times(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Median milliseconds of the floor and of a step of each case, and the median of their ratios, round by round."""
    import torch

    from saebench.memory import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(args.threads[0])
    device = torch.device(args.device)
    x, members = batch(args, device), {case: member_of(args, case, device) for case in args.cases}
    runs = {case: stepper(case, member, x) for case, member in members.items()}
    floors, rounds = in_turn([floor(args, members, x), *runs.values()], args.repeats, device)
    extra = 28 * next(iter(members.values())).sae.W_enc.numel() * 2 / copy_bandwidth(device) * 1e3 if x.is_cuda else 0.0
    found = {}
    for case, mine in zip(runs, rounds, strict=True):
        ratios = [ms / (least + extra) for ms, least in zip(mine, floors, strict=True)]
        found[case] = {
            "floor_ms": statistics.median(floors) + extra,
            "ms": statistics.median(mine),
            "x_floor": statistics.median(ratios),
        }
    return found


def batch(args: argparse.Namespace, device: Any) -> Any:
    """Activations [n, d_in]."""
    import torch

    return torch.randn(args.n, args.d_in, device=device, generator=torch.Generator(device).manual_seed(0))


def member_of(args: argparse.Namespace, case: str, device: Any) -> Any:
    """A member in training for a case."""
    import torch

    from saebench.compose import load
    from saebench.member import Member
    from saebench.saes import Stats

    target = "target_l0" if case in ("relu", "jumprelu") else "k"
    overrides = [
        *CASES[case],
        f"sae.{target}={args.k}",
        f"sae.d_sae={args.d_sae}",
        f"sae.aux_weight={1 / 32 if 'AuxK' in case else 0}",
        f"train.batch_size={args.n}",
        "train.n_tokens=1_000_000_000",
        "train.log_every=1000000",
        f"train.precision={args.precision}",
        f"compile={args.compile}",
    ]
    return Member(load(overrides), Stats(torch.zeros(args.d_in), 1.0, torch.ones(args.d_in)), device)


def stepper(case: str, member: Any, x: Any) -> Callable[[], object]:
    """One step of a member; for AuxK every tenth latent is given as dead."""
    import torch

    tenth = torch.arange(0, member.sae.d_sae, 10, device=x.device)

    def step() -> None:
        if "AuxK" in case:
            member.silent, member.dead = None, tenth
        member.step(x)

    return step


def floor(args: argparse.Namespace, members: dict[str, Any], x: Any) -> Callable[[], object]:
    """The encoder product into a preallocated output, in the precision of the members' products."""
    import torch

    mixed = next(iter(members.values())).mixed
    left = x.bfloat16() if mixed else x
    right = torch.randn(args.d_in, args.d_sae, device=x.device).to(left.dtype)
    out = torch.empty(args.n, args.d_sae, device=x.device, dtype=left.dtype)
    return lambda: torch.mm(left, right, out=out)


def in_turn(runs: list[Callable[[], object]], repeats: int, device: Any) -> tuple[list[float], list[list[float]]]:
    """Milliseconds of each in every round, after three rounds to warm up: those of the first, and those of the others."""
    import torch

    rounds: list[list[float]] = [[] for _ in runs]
    for i in range(repeats + 3):
        for run, mine in zip(runs, rounds, strict=True):
            began = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if i >= 3:
                mine.append((time.perf_counter() - began) * 1e3)
    return rounds[0], rounds[1:]


def copy_bandwidth(device: Any) -> float:
    """Bytes per second, read and written, of a copy of 1 GiB."""
    import torch

    source = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    into = torch.empty_like(source)
    return 2 * source.numel() / statistics.median(in_turn([lambda: into.copy_(source)], 9, device)[0]) * 1e3


def peak(args: argparse.Namespace) -> dict[str, float]:
    """The memory that a step adds at its peak to parameters, moments and batch; on a CPU the first step of the process."""
    import torch

    torch.set_num_threads(args.threads[0])
    device = torch.device(args.device)
    member = member_of(args, args.cases[0], device)
    run = stepper(args.cases[0], member, batch(args, device))
    if device.type == "cuda":
        run()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return {"peak_mib": (torch.cuda.max_memory_allocated(device) - before) / 2**20}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    return {"peak_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10}


def run_peers(args: argparse.Namespace, threads: int) -> dict[str, dict[str, float]]:
    """The peers' steps at the same shape, if a Python that has them is known."""
    if not args.peers:
        print("peers: none (make peers installs them)")
        return {}
    names = ("n", "d_in", "d_sae", "k", "repeats", "device")
    options = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in names]
    command = [args.peers, "-m", "tests.peers.speed", *options, f"--threads={threads}"]
    done = json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)
    least = done.pop("floor")
    return {case: {"floor_ms": least, "ms": ms, "x_floor": ms / least} for case, ms in done.items()}


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows."""
    for row in rows:
        memory = f"{row['peak_mib']:8.0f} MiB" if row["peak_mib"] is not None else ""
        print(
            f"{row['threads']} threads  {row['case']:26s} {row['ms']:8.1f} ms {row['x_floor']:6.2f} x floor {memory}",
            flush=True,
        )


def machine(device: str) -> dict[str, Any]:
    """Processor or GPU, and versions."""
    import platform

    import torch

    from saebench.store import versions

    name = torch.cuda.get_device_name(device) if device != "cpu" else cpu_name()
    return {"device": name, "processors": os.cpu_count(), "system": platform.platform(), "versions": versions()}


def cpu_name() -> str:
    """The processor as Linux names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
