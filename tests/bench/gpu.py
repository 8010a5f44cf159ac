"""Everything about the inner loop that only a GPU shows, in one command: python -m tests.bench.gpu [--peers PYTHON].

1. that no training step waits for the device, for every variant (torch's synchronisation debug mode);
2. that 30 steps on the GPU in float32 give the losses that the CPU gives, and the same steps of an SAE shared out by
   fully_shard (shard=on, over one rank) those of one that is not;
3. every kernel against plain torch, and its speed (gpu_kernels);
4. the step of every variant in bfloat16 and float32 at the shape of a paper, against the floor: the encoder product plus
   28 bytes a parameter at the bandwidth of a copy; relu and jumprelu also with compile=off.
Prints tables; step times also go to outputs/bench/step.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import tempfile

import torch
import torch.distributed as dist

from saebench.compose import load
from saebench.member import Member
from saebench.optim import Adam
from saebench.sae_configs import SAE_VARIANTS
from saebench.saes import REGISTRY, Stats
from saebench.sharded import Sharded


def member_of(variant: str, device: str, precision: str) -> Member:
    """A small member of a variant, in training."""
    knob = "sae.k=8" if any(f.name == "k" for f in dataclasses.fields(SAE_VARIANTS[variant])) else "sae.target_l0=8"
    sizes = [
        "sae.d_sae=4096",
        "train.batch_size=512",
        "train.n_tokens=51200",
        "train.log_every=1",
        "sae.dead_tokens=2048",
    ]
    cfg = load([f"sae={variant}", knob, *sizes, "compile=off", f"train.precision={precision}"])
    return Member(cfg, Stats(torch.zeros(320), 1.0, torch.ones(320)), torch.device(device))


def batches(steps: int) -> list[torch.Tensor]:
    """Seeded activations: sparse sums of fixed directions."""
    g = torch.Generator().manual_seed(0)
    directions = torch.randn(1024, 320, generator=g)
    return [torch.relu(torch.randn(512, 1024, generator=g) - 1.5) @ directions / 8 for _ in range(steps)]


def check_waiting(variant: str) -> str:
    """Whether any of 40 steps after the first 3 waits for the device; AuxK begins within them."""
    member = member_of(variant, "cuda", "bfloat16")
    on_device = [x.cuda() for x in batches(8)]
    for step in range(43):
        if step == 3:
            torch.cuda.set_sync_debug_mode("error")
        try:
            member.step(on_device[step % 8])
        except RuntimeError as error:
            torch.cuda.set_sync_debug_mode("default")
            return f"WAITS at step {step}: {str(error).splitlines()[0]}"
    torch.cuda.set_sync_debug_mode("default")
    return "never waits"


def losses(member: Member) -> list[float]:
    """Of 30 steps."""
    for x in batches(30):
        member.step(x.to(member.device))
    member.settle()
    return [row["loss"] for row in member.log]


def worst(one: Member, other: Member) -> str:
    """The largest relative difference between the losses of two members."""
    return f"{max(abs(a / b - 1) for a, b in zip(losses(one), losses(other), strict=True)):.1e}"


def check_losses(variant: str) -> str:
    """Float32 steps on the CPU and on the GPU."""
    return f"the CPU's losses: {worst(*(member_of(variant, device, 'float32') for device in ('cpu', 'cuda')))}"


def check_shared(variant: str, device: str = "cuda", precision: str = "bfloat16") -> str:
    """Steps of a whole SAE and of one shared out over this process alone."""
    if not dist.is_initialized():
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{tempfile.mkdtemp()}/met", rank=0, world_size=1)
    whole, shared = (member_of(variant, device, precision) for _ in range(2))
    shared.sae.copies = {}
    shared.sharded = Sharded(shared.sae, shared.device, shared.mixed)
    shared.optimizer = Adam(shared.sharded.shared(), shared.cfg.train, shared.sae.lr_factors())
    return f"shared out: {worst(whole, shared)}"


def main() -> None:
    """Run all parts; a part that fails says so and the next goes on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", help="a Python with the peers")
    args = parser.parse_args()
    for variant in REGISTRY:
        print(f"{variant:13s} {check_waiting(variant)}; {check_losses(variant)}; {check_shared(variant)}", flush=True)
    torch.cuda.empty_cache()
    shape = ["--n=4096", "--d-in=2304", "--d-sae=65536", "--k=64", "--device=cuda", "--threads", "8", "--anyway"]
    peers = ["--peers", args.peers] if args.peers else []
    dense = ["--cases", "relu", "jumprelu"]
    for module, options in (
        ("gpu_kernels", []),
        ("step", [*shape, *dense, "--compile=off"]),
        ("step", [*shape, "--precision=float32"]),
        ("step", [*shape, *peers]),
    ):
        print(f"\n{module} {' '.join(options)}", flush=True)
        if subprocess.run([sys.executable, "-m", f"tests.bench.{module}", *options], check=False).returncode != 0:
            print(f"{module} FAILED", flush=True)


if __name__ == "__main__":
    main()
