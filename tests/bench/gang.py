"""What a gang costs beyond its SAEs: waiting for data, passes of the language model, caching, evaluation; and what it saves.

    python -m tests.bench.gang [--members 8] [--steps 100] [--folder outputs/bench/gang] [-- OVERRIDES]

On any model (OVERRIDES, such as model=local model.path=DIR data=text data.path=FILE); five parts, each in this process:

- waiting: the share of a gang's training time, from a cache on disk, that is spent waiting for its next batch;
- company: the gang's time against that of its members one after another, and whether their weights have the same bits,
  from the cache and streamed (where the model then runs once instead of once for each member);
- streaming: tokens that the model runs on while a gang streams, against those that one of its members alone needs;
- caching: tokens a second of writing a cache against the bare forward pass up to the site, in turns;
- evaluation: time of V views spliced, against one forward pass and V passes above the site.

Prints the table and writes gang.json into the folder.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saebench.activations import Batches
from saebench.caching import cache_of, write_caches
from saebench.compose import load
from saebench.config import RunConfig
from saebench.heldout import HeldOut, Subject
from saebench.lm import LM
from saebench.member import Member
from saebench.memory import keep_freed_memory
from saebench.parallel import SOLO
from saebench.recapture import ABLATIONS, Recapture
from saebench.saes import SAE
from saebench.splice import Clean, logits, lower, upper
from saebench.store import partial_of
from saebench.stream import Stream, open_batches, open_stream
from saebench.train import train

VARIANTS = ("topk", "batchtopk", "matryoshka", "hierarchical")  # in turn, each with its own seeds
ROUNDS = 5
CACHED = 16_384  # tokens
Row = tuple[str, str, float]  # what, of what, the number


class Timed:
    """Batches that know how long their reader waited for them."""

    def __init__(self, batches: Batches) -> None:
        self.batches, self.batch_size, self.waited = batches, batches.batch_size, 0.0

    def between(self, start: int, stop: int) -> Iterator[Tensor]:
        """The same batches."""
        source = self.batches.between(start, stop)
        while True:
            began = time.monotonic()
            batch = next(source, None)
            self.waited += time.monotonic() - began
            if batch is None:
                return
            yield batch


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--folder", type=Path, default=Path("outputs/bench/gang"))
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    keep_freed_memory()
    configs = members_of(args)
    stream = open_stream(configs[0])
    rows: list[Row] = []
    for part in (waiting, company, streaming, caching, evaluation):
        rows += part(configs, stream)
    width = max(len(name) for name, _, _ in rows)
    text = "\n".join(f"{name:{width}}  {number:10.4g}  {of}" for name, of, number in rows)
    shape = {"device": str(stream.device), "threads": torch.get_num_threads(), "steps": args.steps}
    shape |= {"d_in": len(stream.stats.mean), "d_sae": configs[0].sae.d_sae, "batch": configs[0].train.batch_size}
    print(f"{shape}\n{text}")
    (args.folder / "gang.json").write_text(json.dumps({"shape": shape, "rows": rows}, indent=2) + "\n")


def members_of(args: argparse.Namespace) -> list[RunConfig]:
    """The configs of the gang."""
    probe = load(args.overrides)
    n = args.steps * probe.train.batch_size
    shared = [f"outputs={args.folder}", f"train.n_tokens={n}", *args.overrides]
    return [load([*shared, f"sae={VARIANTS[i % len(VARIANTS)]}", f"seed={i}"]) for i in range(args.members)]


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """How long a call takes."""
    began = time.monotonic()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic() - began


def fresh(configs: list[RunConfig], stream: Stream) -> list[Member]:
    """Untrained members."""
    return [Member(cfg, stream.stats, stream.device) for cfg in configs]


def warm(configs: list[RunConfig], stream: Stream) -> None:
    """Two steps of each, so that kernels are made and the cache is in the system's memory."""
    batches = open_batches(configs[0], stream)
    for member in fresh(configs, stream):
        for batch in batches.between(0, 2):
            member.step(batch.to(stream.device))


def waiting(configs: list[RunConfig], stream: Stream) -> list[Row]:
    """The share of training that is waiting."""
    warm(configs, stream)
    timed: Any = Timed(open_batches(configs[0], stream))
    members = fresh(configs, stream)
    took = seconds(lambda: train(members, timed), stream.device)
    return [
        (f"waiting of a gang of {len(configs)}", f"of {took:.1f} s of training, from a warm cache", timed.waited / took)
    ]


def company(configs: list[RunConfig], stream: Stream) -> list[Row]:
    """A gang against its members one after another."""
    found: list[Row] = []
    streamed = open_stream(load_as(configs[0], "stream"))
    for name, source in (("from the cache", stream), ("streamed", streamed)):
        together, alone = fresh(configs, source), fresh(configs, source)
        gang = seconds(lambda m=together, s=source: train(m, open_batches(configs[0], s)), source.device)
        single = [seconds(lambda m=m, s=source: train([m], open_batches(configs[0], s)), source.device) for m in alone]
        same = all(equal(a.sae, b.sae) for a, b in zip(together, alone, strict=True))
        of = f"{sum(single):.1f} s one after another, {gang:.1f} s as a gang; weights {'equal' if same else 'DIFFER'}"
        found.append((f"one after another / gang, {name}", of, sum(single) / gang))
    return found


def load_as(cfg: RunConfig, cache: str) -> RunConfig:
    """The config with another way to read activations."""
    from dataclasses import replace

    return replace(cfg, cache=cache)


def equal(a: SAE, b: SAE) -> bool:
    """Whether all weights have the same bits."""
    ours, theirs = a.state_dict(), b.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def streaming(configs: list[RunConfig], stream: Stream) -> list[Row]:
    """Tokens the model runs on, for a gang and for one member."""
    streamed, counts = open_stream(load_as(configs[0], "stream")), []
    for some in (configs, configs[:1]):
        seen: list[int] = []
        hook = streamed.lm().base.register_forward_pre_hook(
            lambda _, __, given, seen=seen: seen.append(given["input_ids"].numel()), with_kwargs=True
        )
        train(fresh(some, streamed), open_batches(configs[0], streamed))
        hook.remove()
        counts.append(sum(seen))
    of = f"{counts[0]:,} against {counts[1]:,} tokens"
    return [(f"passes of the model, gang of {len(configs)} / one", of, counts[0] / counts[1])]


def caching(configs: list[RunConfig], stream: Stream) -> list[Row]:
    """Writing a cache against the bare forward pass, in turns over the same tokens."""
    cfg, lm, shares = configs[0], stream.lm(), []
    cache = cache_of(cfg, stream.inputs)
    shards = open_stream(load_as(cfg, "stream")).shards
    shards.lm = lambda: lm
    shards.order = shards.order[: -(-CACHED // cfg.data.seq_len)]
    tokens = stream.store.blocks("train", shards.order).tokens
    folder = partial_of(cache.path)
    for _ in range(ROUNDS):
        bare = seconds(lambda: [lm.activations(part) for part in tokens.split(cfg.model.batch)], lm.device)
        folder.mkdir()
        written = seconds(lambda: write_caches([cache], shards, lm.d_model, SOLO), lm.device)
        probe = seconds(lambda: [lm.activations(tokens[: cfg.model.batch]) for _ in range(2)], lm.device)
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        shares.append(bare / (written - probe))  # the probe that announces how long it will take is not writing
    of = f"tokens a second written / bare, {tokens.numel():,} tokens, {ROUNDS} rounds"
    return [("caching", of, statistics.median(shares))]


def evaluation(configs: list[RunConfig], stream: Stream) -> list[Row]:
    """The cross-entropy of V views against what the model alone needs for them."""
    from dataclasses import replace

    lm, cfg = stream.lm(), configs[0]
    members = fresh(configs, stream)
    train(members, open_batches(cfg, stream))
    saes = [member.sae.to(lm.device) for member in members]
    few = replace(cfg.evaluate, ce_views=4, ce_tokens=min(cfg.evaluate.ce_tokens, cfg.data.eval_tokens))
    limited = replace(few, rsa_tokens=min(few.rsa_tokens, few.ce_tokens))
    heldout = HeldOut(lm, stream.store, stream.stats, limited, cfg.data.dtype)
    subjects = [subject(f"{i}", sae, limited) for i, sae in enumerate(saes)]
    views = ABLATIONS + sum(len(s.ce_views) for s in subjects)
    took = seconds(lambda: Recapture(heldout).run(subjects), lm.device)
    chosen = list(heldout.blocks(heldout.spread(limited.ce_tokens)))
    floor = seconds(lambda: [passes(lm, tokens, views, limited.logit_chunk) for _, tokens, _ in chosen], lm.device)
    below = seconds(lambda: [lm.activations(tokens) for _, tokens, _ in chosen], lm.device)
    of = f"{took + below:.1f} s against {floor:.1f} s: one lower pass, {views} above the site; encoding is the rest"
    return [(f"evaluation of {views - ABLATIONS} views", of, (took + below) / floor)]


def subject(name: str, sae: SAE, cfg: Any) -> Subject:
    """An SAE with its views, its latents of equal importance."""
    one = torch.ones(sae.d_sae, dtype=torch.float64)
    budgets = {j: 0.1 for j in cfg.budgets if j <= sae.d_sae}
    return Subject(name, sae, {"energy": one, "frequency": one, "decoder_norm": one}, budgets, cfg)


@torch.no_grad()
def passes(lm: LM, tokens: Tensor, n: int, chunk: int) -> None:
    """One lower pass and n passes above the site, each with logits and their score."""
    low = lower(lm, tokens)
    for _ in range(n):
        final = upper(lm, low, low.x)[:, :-1].flatten(0, 1)  # [positions, d_model]
        targets = tokens[:, 1:].flatten().to(lm.device)
        for start in range(0, len(final), chunk):
            part = slice(start, start + chunk)
            Clean(logits(lm, final[part]), targets[part])


if __name__ == "__main__":
    main()
