"""The held-out tokens as evaluation sees them, and the SAEs under evaluation with their views."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from saebench.activations import DTYPES, ActivationStats
from saebench.checks import InputError
from saebench.config import EvaluateConfig
from saebench.data import TokenStore
from saebench.lm import LM
from saebench.metrics import Moments
from saebench.progress import Progress
from saebench.saes import SAE
from saebench.saes.base import Normalised
from saebench.similarity import Dissimilarities, Gram
from saebench.sparse import SparseLatents
from saebench.splice import Lower, lower
from saebench.views import View, kept_latents, latents_of, list_views, prefixes_of

SUMS = (  # of a document, in one view
    "tokens", "residual", "residual_std", "residual_trained", "total_trained", "ce_tokens", "ce_sae", "ce_clean"
)  # fmt: skip
GROUPS = ("typical", "outlier", "special")  # ordinary tokens by norm, and special ones if kept; together all tokens


def groups_of(tokens: str, present: Any) -> list[str]:
    """The groups that make up `all` or `typical` tokens, of those present."""
    return [g for g in GROUPS if g in present and (tokens == "all" or g == "typical")]


def add(sums: dict[Any, Any], key: Any, value: Any) -> None:
    """Add a value to the sum under `key`."""
    sums[key] = sums[key] + value if key in sums else value


class Batch:
    """Some tokens, each with its group (a place in GROUPS), its document and whether it is in the RSA sample."""

    def __init__(self, x: Tensor, group: Tensor, documents: Tensor, sampled: Tensor) -> None:
        self.stored, self.group, self.sampled = x, group, sampled  # [n, d_in], [n], [n]
        rows = {name: (group == i).nonzero().squeeze(1) for i, name in enumerate(GROUPS)}
        self.groups = {name: index for name, index in rows.items() if len(index) > 0}
        keys = documents.to(group.device) * len(GROUPS) + group  # [n]
        found, self.inverse = keys.unique(return_inverse=True)
        self.keys = [(key // len(GROUPS), GROUPS[key % len(GROUPS)]) for key in found.tolist()]

    @property
    def x(self) -> Tensor:
        """The activations in float32: [n, d_in]."""
        return self.stored.float()

    def mask(self, group: str) -> Tensor:
        """[n] (bool): the tokens of a group."""
        return self.group == GROUPS.index(group)

    def add_by_document(self, sums: dict[Any, Any], values: Tensor) -> None:
        """Add per-token values [n] or [n, c] to sums by (document, group)."""
        table = values.new_zeros(len(self.keys), *values.shape[1:]).index_add(0, self.inverse, values)
        for key, row in zip(self.keys, table.cpu(), strict=True):
            add(sums, key, row)


class HeldOut:
    """The held-out tokens, their activations (kept in the cache's dtype), and the sums over x that all views share."""

    def __init__(self, lm: LM, store: TokenStore, stats: ActivationStats, cfg: EvaluateConfig, dtype: str) -> None:
        self.lm, self.store, self.stats, self.cfg, self.dtype = lm, store, stats, cfg, DTYPES[dtype]
        self.centre = stats.mean.float().to(lm.device)
        self.tokens = store.n_blocks("heldout") * store.seq_len
        self.lows: dict[int, Lower] = {}  # by block, on the host: the passes that cross-entropy goes on from
        self.batches = list(self.collect())
        self.moments: dict[str, Moments] = {}
        self.totals: dict[
            tuple[int, str], Tensor
        ] = {}  # by document and group: [2] sums of |x - centre|^2, plain and std
        for batch in self.batches:
            for group, rows in batch.groups.items():
                add(self.moments, group, Moments.of(batch.x[rows] - self.centre))
        if "typical" not in self.moments:
            raise InputError("data.eval_tokens: no held-out token is left to measure; raise it")
        variance = self.moments_of("all").variance()  # [d_in]
        self.precision = torch.where(variance > 0, 1 / variance, 0.0) / (variance > 0).sum()  # [d_in]
        for batch in self.batches:
            batch.add_by_document(self.totals, self.two_sums((batch.x - self.centre).square()))
        sample = torch.cat([b.x[b.sampled] for b in self.batches])  # [n, d_in]
        typical = torch.cat([b.mask("typical")[b.sampled] for b in self.batches])  # [n] (bool)
        self.sampled = {"all": torch.ones_like(typical), "typical": typical}  # of the sampled tokens, those that count
        self.dissimilarities = {name: Dissimilarities.of(sample[chosen]) for name, chosen in self.sampled.items()}

    def moments_of(self, tokens: str) -> Moments:
        """Those of `all` or `typical` tokens."""
        groups = groups_of(tokens, self.moments)
        return reduce(operator.add, (self.moments[group] for group in groups))

    def group_of(self, x: Tensor, special: Tensor) -> Tensor:
        """The group, as a place in GROUPS, of tokens with activations x [n, d_in] of which some are special [n]: [n]."""
        return torch.where(special.to(x.device), GROUPS.index("special"), self.stats.outliers(x).long())

    def two_sums(self, squares: Tensor) -> Tensor:
        """The sum of squares [n, d_in] over dimensions, and the mean with each dimension scaled to unit variance: [n, 2]."""
        return torch.stack([squares.sum(1, dtype=torch.float64), squares.double() @ self.precision], 1)

    def spread(self, tokens: int) -> list[int]:
        """Held-out blocks of about `tokens` tokens, spread evenly over the text to come from as many documents as can be."""
        every = self.store.n_blocks("heldout")
        wanted = min(every, -(-tokens // self.store.seq_len))
        return [i * every // wanted for i in range(wanted)]

    def blocks(self, chosen: list[int]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Some held-out blocks in batches: their numbers, their tokens and documents [b, t]."""
        size = max(1, self.cfg.batch // self.store.seq_len)
        for start in range(0, len(chosen), size):
            numbers = chosen[start : start + size]
            blocks = self.store.blocks("heldout", numbers)
            yield numbers, blocks.tokens, blocks.documents

    @torch.no_grad()
    def collect(self) -> Iterator[Batch]:
        """Run the language model's lower half over every held-out token, once; `lows` keeps what is spliced later."""
        generator = torch.Generator().manual_seed(self.cfg.seed)
        sampled = torch.zeros(self.tokens, dtype=torch.bool)
        sampled[torch.randperm(self.tokens, generator=generator)[: self.cfg.rsa_tokens]] = True
        spliced = {*self.spread(self.cfg.ce_tokens)}
        with Progress(self.tokens, "tokens", "held-out activations") as progress:
            for numbers, tokens, documents in self.blocks(self.spread(self.tokens)):
                first = numbers[0] * self.store.seq_len
                kept = ~self.store.excluded(tokens)  # [b, t]
                low = lower(self.lm, tokens)
                self.lows |= {i: low.row(row) for row, i in enumerate(numbers) if i in spliced}
                x = low.x.to(self.dtype)[kept.to(self.lm.device)]  # [n, d_in]
                if not bool(x.isfinite().all()):
                    last = first + tokens.numel()
                    raise InputError(
                        f"activations: NaN or inf among held-out tokens {first} to {last}; try model.dtype=float32"
                    )
                chosen = sampled[first : first + tokens.numel()].view_as(tokens)[kept]
                group = self.group_of(x, self.store.special(tokens[kept]))
                yield Batch(x, group, documents[kept], chosen.to(x.device))
                progress.advance(tokens.numel())


@dataclass
class Measured:
    """One view of one SAE with what was measured of it."""

    view: View
    keep: Tensor  # [d_sae] (bool)
    threshold: float | None
    rows: dict[str, dict[str, float]] = field(
        default_factory=dict
    )  # reconstruction metrics, for all and typical tokens
    ce: dict[str, Tensor] = field(default_factory=dict)  # by group: [2] sums of cross-entropy and KL
    documents: dict[tuple[int, str], Tensor] = field(default_factory=dict)  # sums named in SUMS
    l0: dict[str, Tensor] = field(default_factory=dict)  # by group: histogram of active latents per token


class Subject:
    """An SAE under evaluation and its views, given its importance per latent and the thresholds of its budgets."""

    def __init__(
        self, name: str, sae: SAE, importance: dict[str, Tensor], thresholds: dict[int, float], cfg: EvaluateConfig
    ) -> None:
        self.name, self.sae = name, sae
        self.views: list[Measured] = []
        self.gram: Gram | None = None  # of the sampled tokens' latents in the first full view
        for view in list_views(sae, cfg):
            keep = kept_latents(view, sae, importance, cfg.seed).to(sae.W_dec.device)
            tuned = view.kind == "budget" and view.mode == "threshold"
            self.views.append(Measured(view, keep, thresholds[view.budget or 0] if tuned else None))
        self.ce_views = choose(self.views, cfg.ce_views, bool(prefixes_of(sae)))

    def reconstruct(
        self, x: Tensor, views: list[Measured]
    ) -> Iterator[tuple[Measured, Tensor, SparseLatents, Normalised]]:
        """For each view: the reconstruction of x [n, d_in], its latents, and the normalisation of x."""
        seen = self.sae.normalise(x)
        acts = self.sae.acts(seen.x)  # [n, d_sae]
        for measured in views:
            latents = latents_of(measured.view, self.sae, acts, measured.keep, measured.threshold)
            yield measured, seen.undo(self.sae.decode(latents)), latents, seen


def choose(views: list[Measured], most: int, nested: bool = True) -> list[Measured]:
    """At most `most` views for the cross-entropy: the full ones, then prefixes, budgets and prunings in turn.

    Within each kind all sizes come in one order and mode before the next: select_then_prune and the token's largest first.
    Prefixes of an SAE that is not `nested` come last.
    """
    kinds: dict[str, list[Measured]] = {"full": [], "prefix": [], "budget": [], "pruned": []}
    for measured in views:
        kinds[measured.view.kind].append(measured)
    rules = list(dict.fromkeys(m.view.rule for m in views))
    for kind in ("prefix", "budget", "pruned"):
        kinds[kind].sort(
            key=lambda m: (rules.index(m.view.rule), m.view.order != "select_then_prune", m.view.mode != "topk")
        )
    last = [] if nested else kinds.pop("prefix")
    turns = zip_longest(kinds.get("prefix", []), kinds["budget"], kinds["pruned"])
    rest = [m for turn in turns for m in turn if m is not None]
    return (kinds["full"] + rest + last)[:most]
