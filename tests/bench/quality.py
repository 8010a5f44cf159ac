"""Held-out normalised MSE of our TopK and BatchTopK beside sparsify's and SAELens', on the same cached activations.

    python -m tests.bench.quality --peers PYTHON [--lrs ...] [--seeds ...] -- OVERRIDES

OVERRIDES are those of `saebench train` (model, data, sae.d_sae, sae.k, train.batch_size, train.n_tokens, outputs). Every SAE
sees the same batches, normalised the same way, for as many steps, under the same schedule; each library and variant gets the
best of the rates by the NMSE of the first seed, then the other seeds. AuxK never begins. BatchTopK reconstructs by
selecting within batches of BATCH held-out tokens. Writes outputs/bench/quality.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from saebench.compose import load
from saebench.config import RunConfig
from saebench.heldout import HeldOut
from saebench.member import Member
from saebench.memory import keep_freed_memory
from saebench.progress import say
from saebench.saes import build
from saebench.schedules import lr_factor
from saebench.stream import Stream, open_batches, open_stream

ROOT = Path(__file__).parents[2]
BATCH = 2048
CASES = [
    ("saebench", "topk"),
    ("saebench", "batchtopk"),
    ("sparsify", "topk"),
    ("sae-lens", "topk"),
    ("sae-lens", "batchtopk"),
]
COLUMNS = ["library", "variant", "lr", "seed", "nmse"]


def config(args: argparse.Namespace, variant: str, lr: float, seed: int) -> RunConfig:
    """Our run."""
    return load(
        [*args.overrides, f"sae={variant}", f"train.lr={lr}", f"seed={seed}", "sae.dead_tokens=1_000_000_000_000"]
    )


def write_problem(cfg: RunConfig, stream: Stream, folder: Path) -> None:
    """Normalised batches, held-out tokens, and the schedule of the rate, for every library."""
    sae = build(cfg.sae, stream.stats, 0)
    steps = cfg.train_tokens // cfg.train.batch_size
    batches = np.lib.format.open_memmap(
        folder / "batches.npy", "w+", np.float32, (steps, cfg.train.batch_size, len(stream.stats.mean))
    )
    for i, x in enumerate(open_batches(cfg, stream).between(0, steps)):
        batches[i] = sae.normalise(x.float()).x.numpy()
    np.save(folder / "rates.npy", np.array([lr_factor(cfg.train, i, steps) for i in range(steps)]))
    heldout = HeldOut(stream.lm(), stream.store, stream.stats, cfg.evaluate, cfg.data.dtype)
    np.save(folder / "heldout.npy", torch.cat([sae.normalise(b.x).x for b in heldout.batches]).numpy())


def ours(cfg: RunConfig, stream: Stream, folder: Path) -> float:
    """Train ours on the same batches, and its NMSE."""
    member = Member(cfg, stream.stats, torch.device("cpu"))
    steps = cfg.train_tokens // cfg.train.batch_size
    for x in open_batches(cfg, stream).between(0, steps):
        member.step(x)
    heldout = torch.from_numpy(np.load(folder / "heldout.npy"))

    def reconstruct(x: Tensor) -> Tensor:
        mode = "batch" if cfg.sae.name == "batchtopk" else None
        return member.sae.decode(member.sae.own_rule(member.sae.acts(x), mode=mode))

    with torch.no_grad():
        error = sum(float((x - reconstruct(x)).double().square().sum()) for x in heldout.split(BATCH))
    return error / float(heldout.double().square().sum())


def theirs(args: argparse.Namespace, library: str, cfg: RunConfig, folder: Path) -> float:
    """Train a peer's SAE by its own Python, and its NMSE."""
    options = {
        "library": library,
        "variant": cfg.sae.name,
        "d-sae": cfg.sae.d_sae,
        "lr": cfg.train.lr,
        "seed": cfg.seed,
    }
    options |= {"k": getattr(cfg.sae, "k", None), "threads": torch.get_num_threads()}
    given = [f"--{name}={value}" for name, value in options.items()]
    command = [args.peers, "-m", "tests.peers.quality", str(folder), *given]
    command += ["--betas", str(cfg.train.beta1), str(cfg.train.beta2)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])["nmse"]  # SAELens prints above it


def main() -> None:
    """Train all, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="a Python that has sae-lens and eai-sparsify; without it only ours")
    parser.add_argument("--lrs", type=float, nargs="+", default=[0.002, 0.004, 0.008])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("overrides", nargs="*", help="after --")
    args = parser.parse_args()
    keep_freed_memory()
    first = config(args, "topk", args.lrs[0], args.seeds[0])
    stream = open_stream(first)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_problem(first, stream, folder)
        for library, variant in CASES:
            if library != "saebench" and not args.peers:
                continue

            def one(lr: float, seed: int, library: str = library, variant: str = variant) -> float:
                cfg = config(args, variant, lr, seed)
                nmse = ours(cfg, stream, folder) if library == "saebench" else theirs(args, library, cfg, folder)
                rows.append({"library": library, "variant": variant, "lr": lr, "seed": seed, "nmse": nmse})
                say(f"{library} {variant}, lr {lr:g}, seed {seed}: held-out NMSE {nmse:.5f}")
                return nmse

            found = {lr: one(lr, args.seeds[0]) for lr in args.lrs}
            best = min(found, key=found.__getitem__)
            values = [found[best], *(one(best, seed) for seed in args.seeds[1:])]
            spread = statistics.stdev(values) if len(values) > 1 else float("nan")
            print(
                f"{library:9} {variant:10} lr {best:<7g} NMSE {statistics.mean(values):.5f} ± {spread:.5f} ({len(values)} seeds)"
            )
    path = ROOT / "outputs" / "bench" / "quality.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
