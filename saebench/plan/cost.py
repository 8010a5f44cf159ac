"""What the parts of a sweep cost on this machine: the language model on random tokens, an SAE's steps and views on their
activations. A first call warms up and is not counted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saebench.activations import ActivationStats
from saebench.config import RunConfig
from saebench.data import Blocks, TokenStore
from saebench.evaluate import measure, waves
from saebench.heldout import HeldOut, Subject
from saebench.lm import LM
from saebench.member import Member
from saebench.parallel import SOLO
from saebench.progress import Progress
from saebench.room import Need, kind_of, needs_of
from saebench.saes import SAE
from saebench.splice import Clean, logits, lower, upper
from saebench.views import tune_thresholds

VIEWS = 4  # of an SAE's views are timed, spread over their list
SPLICED = 1024  # tokens on which the model's upper half is timed
THINNED = 256  # activations that set how many latents of an SAE that trains dense are active
ACTIVE = 64  # latents per token of such an SAE, if its config does not say


class Kind(NamedTuple):
    """What training one kind of SAE costs: seconds of a step and of encoding a batch; bytes held, needed during a step, saved."""

    step: float
    encode: float
    held: int
    passing: int
    saved: int


class ViewCost(NamedTuple):
    """What evaluating one kind of SAE costs, in seconds: of all held-out tokens in all views, and of a spliced token."""

    views: int
    spliced_views: int
    seconds: float
    per_spliced: float


class RandomTokens(TokenStore):
    """Held-out blocks of random tokens, none of them special."""

    def __init__(self, tokens: int, seq_len: int, vocab_size: int) -> None:
        self.seq_len, self.special_ids, self.keep_special = seq_len, frozenset[int](), False
        shape = (max(1, tokens // seq_len), seq_len)
        self.ids = torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(0))  # [blocks, seq_len]

    def n_blocks(self, split: str) -> int:
        return len(self.ids)

    def blocks(self, split: str, indices: Tensor | Sequence[int]) -> Blocks:
        tokens = self.ids[torch.as_tensor(indices, dtype=torch.int64)]  # [n, seq_len]
        return Blocks(tokens, torch.zeros_like(tokens))


class Silent(Progress):
    """Shows nothing."""

    def __init__(self) -> None:
        pass

    def advance(self, n: int = 1, note: str = "") -> None:
        pass


def seconds(call: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """The median time of a call, after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        began = time.monotonic()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.monotonic() - began)
    return statistics.median(times[1:])


class Bench:
    """Times the parts of a gang's work, given its model and its first config."""

    def __init__(self, lm: LM, cfg: RunConfig) -> None:
        self.lm, self.cfg, self.device = lm, cfg, lm.device
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(lm.vocab_size, (cfg.model.batch, cfg.data.seq_len), generator=generator)
        self.lower = seconds(lambda: lm.activations(self.ids), self.device) / self.ids.numel()  # a token
        self.x = lm.activations(self.ids).float().flatten(0, 1)  # [n, d_in]
        self.stats = stats_of(self.x.cpu())
        self.members: dict[str, tuple[Member, Kind]] = {}
        self.heldouts: dict[tuple[int, int], list[HeldOut]] = {}

    def rows(self, n: int) -> Tensor:
        """n activations, again from the first when there are no more: [n, d_in]."""
        return self.x[torch.arange(n, device=self.device) % len(self.x)]

    def kind(self, cfg: RunConfig) -> Kind:
        """The cost of training `cfg`, in the middle of its schedules and without dead latents; measured once for each kind."""
        return self.trained(cfg)[1]

    def trained(self, cfg: RunConfig) -> tuple[Member, Kind]:
        """A member with a few steps behind it, and its cost."""
        key = kind_of(cfg)
        if key not in self.members:
            member = Member(cfg, self.stats, self.device)
            member.done = member.steps // 2
            x = self.rows(cfg.train.batch_size)
            step = seconds(lambda: member.step(x), self.device)
            if member.sae.dense:
                thin(member.sae, x[:THINNED], getattr(cfg.sae, "target_l0", None) or ACTIVE)
            encode = seconds(lambda: member.sae.encode(x), self.device, 1)
            saved = sum(t.nbytes for t in (*member.sae.parameters(), *member.sae.buffers()))
            self.members[key] = member, Kind(step, encode, *self.need(cfg), saved)
        return self.members[key]

    def need(self, cfg: RunConfig) -> Need:
        """The memory of a member, measured where that is possible."""
        (need,) = needs_of([cfg], self.stats, self.device, SOLO)
        return need

    def held_out(self, cfg: RunConfig) -> list[HeldOut]:
        """Held-out tokens of two sizes: what costs the same for any number of them is what both have in common."""
        e, size = cfg.evaluate, cfg.data.seq_len
        key = (e.batch, e.rsa_tokens)
        if key not in self.heldouts:
            small = max(size, e.rsa_tokens)
            sizes = (small, max(2 * small, min(e.batch, cfg.data.eval_tokens)))
            stores = [RandomTokens(-(-n // size) * size, size, self.lm.vocab_size) for n in sizes]
            self.heldouts[key] = [HeldOut(self.lm, store, self.stats, e, cfg.data.dtype) for store in stores]
        return self.heldouts[key]

    @torch.no_grad()
    def views(self, cfg: RunConfig, tokens: int) -> ViewCost:
        """The cost of evaluating `cfg` on so many held-out tokens, from VIEWS of its views."""
        subject, tuning = self.subject(cfg)
        sae, e = subject.sae, cfg.evaluate
        some = subject.views[:: -(-len(subject.views) // VIEWS)]
        small, large = self.held_out(cfg)
        x = large.batches[0].x
        acts = seconds(lambda: sae.acts(sae.normalise(x).x), self.device, 1) / len(x)
        few, many = (seconds(lambda h=h: measure(h, subject, some, Silent()), self.device, 1) for h in (small, large))
        whole = max(0.0, many - few) / (large.tokens - small.tokens)  # a token in some views
        view = max(0.0, whole - acts) / len(some)
        fixed = max(0.0, few - whole * small.tokens) / len(some)
        n, passes = len(subject.views), len(list(waves(subject.views, sae.d_in)))
        total = tokens * (acts * passes + view * n) + fixed * n + tuning * e.threshold_tokens
        return ViewCost(n, len(subject.ce_views), total, acts + view * len(subject.ce_views))

    def subject(self, cfg: RunConfig) -> tuple[Subject, float]:
        """An SAE with its views, and the seconds a token that tuning the thresholds of its budgets takes."""
        sae, e = self.trained(cfg)[0].sae, cfg.evaluate
        x = self.rows(min(e.batch, e.threshold_tokens))
        budgets = [j for j in e.budgets if j <= sae.d_sae]
        tuning = seconds(lambda: tune_thresholds(sae, x, budgets, e.batch), self.device, 1) if budgets else 0.0
        generator = torch.Generator().manual_seed(0)
        names = ("frequency", "energy", "decoder_norm")
        importance = {name: torch.rand(sae.d_sae, generator=generator, dtype=torch.float64) for name in names}
        thresholds = tune_thresholds(sae, x, budgets, e.batch)
        return Subject(cfg.sae.name, sae, importance, thresholds, e), tuning / len(x)

    @torch.no_grad()
    def spliced(self) -> float:
        """Seconds that a token takes from the site up to its logits and their score."""
        ids = self.ids[: max(1, SPLICED // self.ids.shape[1])]
        low = lower(self.lm, ids)
        above = seconds(lambda: upper(self.lm, low, low.x), self.device) / ids.numel()
        final = upper(self.lm, low, low.x).flatten(0, 1)[: self.cfg.evaluate.logit_chunk]  # [n, d_model]
        clean = Clean(logits(self.lm, final), ids.to(self.device).flatten()[: len(final)])
        return above + seconds(lambda: clean.score(logits(self.lm, final)), self.device) / len(final)


def stats_of(x: Tensor) -> ActivationStats:
    """Statistics of activations x [n, d_in]; one in a thousand is called an outlier."""
    variance, mean = torch.var_mean(x.double(), 0, correction=0)  # [d_in]
    norm = float(torch.linalg.vector_norm(x, dim=1).quantile(0.999))
    return ActivationStats(mean, float(variance.mean().sqrt()), variance, norm, {})


@torch.no_grad()
def thin(sae: SAE, x: Tensor, active: float) -> None:
    """Lower b_enc until no more than about so many latents of a token are active; before training up to half of them are."""
    acts = sae.acts(sae.normalise(x).x)  # [n, d_sae]
    values, wanted = acts[acts > 0], round(active * len(x))
    if len(values) > wanted:
        sae.b_enc.sub_(values.kthvalue(len(values) - wanted).values - values.min())
