"""Measure trained SAEs in all their views on held-out tokens: one pass of the language model's lower half serves them all.

Reconstruction metrics run over all held-out tokens, cross-entropy over the first evaluate.ce_tokens of them. Special tokens
are not spliced and not scored. Every view gives a row for `all` tokens and one for the `typical` ones (norm not outlying).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from saebench.activations import DTYPES, ActivationStats
from saebench.config import EvaluateConfig, InputError
from saebench.data import TokenStore
from saebench.lm import LM
from saebench.metrics import Moments, Reconstruction, TokenSums, recovered, rsa
from saebench.progress import Progress
from saebench.saes import SAE
from saebench.saes.base import Normalised
from saebench.sparse import SparseLatents
from saebench.splice import Clean, Lower, logits, lower, upper
from saebench.views import View, kept_latents, latents_of, list_views

GROUPS = ("typical", "outlier")


@dataclass
class Measured:
    """One view of one SAE with the sums measured so far."""

    view: View
    keep: Tensor  # [d_sae] (bool)
    threshold: float | None
    sums: dict[str, Reconstruction] = field(default_factory=dict)  # by group
    sample: list[Tensor] = field(default_factory=list)  # reconstructions of the RSA sample
    ce: dict[str, float] | None = None
    ce_by_group: dict[str, Tensor] = field(default_factory=dict)  # [2] sums of CE and KL
    documents: dict[tuple[int, str], Tensor] = field(default_factory=dict)  # [4] tokens, residual, CE tokens, CE


class Subject:
    """An SAE under evaluation: its importance per latent and thresholds, and its views."""

    def __init__(
        self, name: str, sae: SAE, importance: dict[str, Tensor], thresholds: dict[int, float], cfg: EvaluateConfig
    ) -> None:
        self.name, self.sae = name, sae
        self.views = []
        for view in list_views(sae, cfg):
            keep = kept_latents(view, sae, importance, cfg.seed).to(sae.W_dec.device)
            tuned = view.kind == "budget" and view.mode == "threshold"
            self.views.append(Measured(view, keep, thresholds[view.budget or 0] if tuned else None))
        self.ce_views = choose(self.views, cfg.ce_views)

    def reconstruct(self, x: Tensor, chosen: list[Measured]) -> Iterator[tuple[Measured, Tensor, Any, Any]]:
        """For each chosen view: the reconstruction of x [n, d_in], its latents, and the normalisation of x."""
        seen = self.sae.normalise(x)
        acts = self.sae.acts(seen.x)  # [n, d_sae]
        for measured in chosen:
            latents = latents_of(measured.view, self.sae, acts, measured.keep, measured.threshold)
            yield measured, seen.undo(self.sae.decode(latents)), latents, seen


def choose(views: list[Measured], most: int) -> list[Measured]:
    """At most `most` views for the cross-entropy: the full ones first, then prefixes, budgets and prunings in turn."""
    groups: dict[str, list[Measured]] = {"full": [], "prefix": [], "budget": [], "pruned": []}
    for measured in views:
        groups[measured.view.kind].append(measured)
    turns = zip_longest(groups["prefix"], groups["budget"], groups["pruned"])
    rest = [m for turn in turns for m in turn if m is not None]
    return (groups["full"] + rest)[:most]


class Batch:
    """Activations x [n, d_in] of one batch, cut into groups of tokens, with the document of each."""

    def __init__(self, x: Tensor, outlier: Tensor, documents: Tensor) -> None:
        self.x, self.outlier = x, outlier
        rows = {"typical": (~outlier).nonzero().squeeze(1), "outlier": outlier.nonzero().squeeze(1)}
        self.groups = {name: index for name, index in rows.items() if len(index) > 0}
        keys = documents.to(x.device) * 2 + outlier.long()  # [n]
        found, self.inverse = keys.unique(return_inverse=True)
        self.keys = [(key // 2, GROUPS[key % 2]) for key in found.tolist()]

    def mask(self, group: str) -> Tensor:
        """[n] (bool): the tokens of a group."""
        return self.outlier if group == "outlier" else ~self.outlier

    def add_by_document(self, sums: dict[Any, Any], values: Tensor) -> None:
        """Add per-token values [n] or [n, c] to sums by (document, group)."""
        table = values.new_zeros(len(self.keys), *values.shape[1:]).index_add(0, self.inverse, values)
        for key, row in zip(self.keys, table.cpu(), strict=True):
            add(sums, key, row)


class Evaluation:
    """The held-out tokens and the sums over x that all subjects share."""

    def __init__(self, lm: LM, store: TokenStore, stats: ActivationStats, cfg: EvaluateConfig, dtype: str) -> None:
        self.lm, self.store, self.stats, self.cfg, self.dtype = lm, store, stats, cfg, DTYPES[dtype]
        self.centre = stats.mean.float().to(lm.device)
        self.moments: dict[str, Moments] = {}
        self.totals: dict[tuple[int, str], float] = {}  # by document and group: sum |x - centre|^2
        self.sample: list[Tensor] = []
        self.sample_typical: list[Tensor] = []
        n = store.n_blocks("heldout") * store.seq_len
        generator = torch.Generator().manual_seed(cfg.seed)
        self.sampled = torch.zeros(n, dtype=torch.bool)
        self.sampled[torch.randperm(n, generator=generator)[: cfg.rsa_tokens]] = True
        self.clean: dict[str, Tensor] = {}  # by group: [4] sums of CE clean, zero, mean, and the number of positions

    def batches(self, tokens: int, per_batch: int) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Held-out tokens and documents [b, t] with the position of the first token, for about `tokens` tokens."""
        size = max(1, per_batch // self.store.seq_len)
        last = min(self.store.n_blocks("heldout"), -(-tokens // self.store.seq_len))
        for start in range(0, last, size):
            blocks = self.store.blocks("heldout", range(start, min(start + size, last)))
            yield blocks.tokens, blocks.documents, start * self.store.seq_len

    @torch.no_grad()
    def reconstruction(self, subjects: list[Subject]) -> None:
        """Sum what the reconstruction metrics need, over all held-out tokens."""
        n = len(self.sampled)
        with Progress(n, "tokens", f"evaluating {sum(len(s.views) for s in subjects)} views") as progress:
            for tokens, documents, first in self.batches(n, self.cfg.batch):
                ordinary = ~self.store.special(tokens)  # [b, t]
                x = self.lm.activations(tokens).to(self.dtype).float()[ordinary.to(self.lm.device)]  # [n, d_in]
                sampled = self.sampled[first : first + tokens.numel()].view_as(tokens)[ordinary].to(x.device)
                self.measure(x, documents[ordinary], sampled, subjects)
                progress.advance(tokens.numel())

    def measure(self, x: Tensor, documents: Tensor, sampled: Tensor, subjects: list[Subject]) -> None:
        """Add one batch of activations x [n, d_in] to every sum."""
        batch = Batch(x, self.stats.outliers(x), documents)
        for group, rows in batch.groups.items():
            add(self.moments, group, Moments.of(x[rows] - self.centre))
        batch.add_by_document(self.totals, (x - self.centre).square().sum(1, dtype=torch.float64))
        self.sample.append(x[sampled])
        self.sample_typical.append(~batch.outlier[sampled])
        for subject in subjects:
            for m, x_hat, latents, seen in subject.reconstruct(x, subject.views):
                self.measure_view(batch, m, x_hat, latents, seen)
                m.sample.append(x_hat[sampled])

    def measure_view(self, batch: Batch, m: Measured, x_hat: Tensor, latents: SparseLatents, seen: Normalised) -> None:
        """Add one batch's reconstruction by one view to its sums."""
        error = (batch.x - x_hat).square_().sum(1, dtype=torch.float64)  # [n]
        size = seen.x.square().sum(1, dtype=torch.float64)  # [n]
        tokens = TokenSums(error / seen.scale.double().reshape(-1).square(), size, latents.l0())
        active = latents.values > 0  # [nnz]
        for group, rows in batch.groups.items():
            mine = active if len(batch.groups) == 1 else active & batch.mask(group)[latents.row_of_entry]
            fired = torch.bincount(latents.indices[mine], minlength=latents.d_sae)
            sums = Reconstruction.of(batch.x[rows], x_hat[rows], self.centre, tokens.of_rows(rows), fired)
            add(m.sums, group, sums)
        nothing = torch.zeros_like(error)
        batch.add_by_document(m.documents, torch.stack([nothing + 1, error, nothing, nothing], 1))

    @torch.no_grad()
    def cross_entropy(self, subjects: list[Subject]) -> None:
        """Sum cross-entropy and KL with each reconstruction spliced in, over the first evaluate.ce_tokens tokens."""
        passes = 3 + sum(len(s.ce_views) for s in subjects)
        batches = list(self.batches(self.cfg.ce_tokens, self.cfg.batch))
        total = sum(t.numel() for t, _, _ in batches) * passes
        with Progress(total, "tokens", f"recaptured LM loss of {passes} reconstructions") as progress:
            for tokens, documents, _ in batches:
                self.splice(tokens, documents, subjects, progress)

    def splice(self, tokens: Tensor, documents: Tensor, subjects: list[Subject], progress: Progress) -> None:
        """Add one batch of tokens [b, t] to the cross-entropy sums."""
        low = lower(self.lm, tokens)
        ordinary = (~self.store.special(tokens)).to(self.lm.device)  # [b, t]
        x = low.x.to(self.dtype).float()[ordinary]  # [n, d_in]
        scored = ordinary[:, :-1] & ordinary[:, 1:]  # spliced positions that predict an ordinary token
        outlier = torch.zeros_like(ordinary)
        outlier[ordinary] = self.stats.outliers(x)
        targets = tokens[:, 1:].to(self.lm.device)[scored]
        score = Scored(targets, outlier[:, :-1][scored], documents[:, :-1][scored.cpu()])
        finals = [self.final(low, scored, None), self.final(low, scored, put(low, ordinary, torch.zeros_like(x)))]
        finals.append(self.final(low, scored, put(low, ordinary, self.centre.expand_as(x))))
        progress.advance(3 * tokens.numel())
        chosen: list[Measured] = []
        for subject in subjects:
            for m, x_hat, _, _ in subject.reconstruct(x, subject.ce_views):
                finals.append(self.final(low, scored, put(low, ordinary, x_hat)))
                chosen.append(m)
        self.head(finals, score, chosen, progress, tokens.numel())

    def final(self, low: Lower, scored: Tensor, x_hat: Tensor | None) -> Tensor:
        """Final hidden states at the scored positions: [positions, d_model]."""
        return upper(self.lm, low, x_hat)[:, :-1][scored]

    def head(
        self, finals: list[Tensor], score: Scored, chosen: list[Measured], progress: Progress, tokens: int
    ) -> None:
        """Logits in chunks of positions: the clean ones once, then those of each reconstruction against them."""
        n = len(score.targets)
        tables = torch.zeros(len(finals), n, 2, dtype=torch.float64)  # CE and KL of each position
        for start in range(0, n, self.cfg.logit_chunk):
            part = slice(start, start + self.cfg.logit_chunk)
            clean = Clean(logits(self.lm, finals[0][part]), score.targets[part])
            tables[0, part, 0] = clean.losses.double().cpu()
            for table, final in zip(tables[1:], finals[1:], strict=True):
                table[part] = torch.stack(clean.score(logits(self.lm, final[part])), 1).double().cpu()
            progress.advance(len(chosen) * tokens * min(self.cfg.logit_chunk, n - start) // max(n, 1))
        outlier = score.outlier.cpu()
        for group, rows in {"typical": ~outlier, "outlier": outlier}.items():
            sums = torch.cat([tables[:3, rows, 0].sum(1), rows.sum().double().unsqueeze(0)])  # [4]
            add(self.clean, group, sums)
            for m, table in zip(chosen, tables[3:], strict=True):
                add(m.ce_by_group, group, table[rows].sum(0))
        batch = Batch(tables[0], outlier, score.documents)
        for m, table in zip(chosen, tables[3:], strict=True):
            nothing = torch.zeros(n, dtype=torch.float64)
            batch.add_by_document(m.documents, torch.stack([nothing, nothing, nothing + 1, table[:, 0]], 1))

    def rows(self, subject: Subject) -> list[dict[str, Any]]:
        """The metrics of every view of `subject`: a row for all tokens and one for the typical ones."""
        return [self.row(m, tokens) for m in subject.views for tokens in ("all", "typical")]

    def row(self, m: Measured, tokens: str) -> dict[str, Any]:
        """One row of metrics.csv, without the columns that name the run."""
        groups = [g for g in GROUPS if g in self.moments] if tokens == "all" else ["typical"]
        moments, sums = total([self.moments[g] for g in groups]), total([m.sums[g] for g in groups])
        sample, sample_hat = torch.cat(self.sample), torch.cat(m.sample)  # [rsa_tokens, d_in]
        if tokens == "typical":
            typical = torch.cat(self.sample_typical)
            sample, sample_hat = sample[typical], sample_hat[typical]
        v = m.view
        named = {"view": v.kind, "rule": v.rule, "order": v.order, "m": v.m, "budget": v.budget, "mode": v.mode}
        return {
            **named,
            "tokens": tokens,
            "n_tokens": sums.n,
            **sums.row(moments, m.keep),
            **rsa(sample, sample_hat),
            **self.ce_columns(m, groups),
        }

    def ce_columns(self, m: Measured, groups: list[str]) -> dict[str, float | int]:
        """Cross-entropies in nats per token, the recovered fractions and KL, of a view that was spliced; else nothing."""
        if not m.ce_by_group:
            return {}
        clean, zero, mean, n = (float(v) for v in total([self.clean[g] for g in groups]))
        spliced, divergence = (float(v) for v in total([m.ce_by_group[g] for g in groups]))
        return {
            "ce_tokens": int(n),
            "ce_clean": clean / n,
            "ce_sae": spliced / n,
            "ce_zero": zero / n,
            "ce_mean": mean / n,
            "recovered_zero": recovered(clean, spliced, zero),
            "recovered_mean": recovered(clean, spliced, mean),
            "kl": divergence / n,
        }


@dataclass(frozen=True)
class Scored:
    """The positions whose predictions count: targets, whether the position is an outlier, its document (on the CPU); all [n]."""

    targets: Tensor
    outlier: Tensor
    documents: Tensor


def put(low: Lower, ordinary: Tensor, x_hat: Tensor) -> Tensor:
    """The site's activations with x_hat [n, d_in] at the ordinary positions [b, t]."""
    spliced = low.x.clone()  # [b, t, d_in]
    spliced[ordinary] = x_hat.to(spliced.dtype)
    return spliced


def add(sums: dict[Any, Any], key: Any, value: Any) -> None:
    """Add a value to the sum under `key`."""
    sums[key] = sums[key] + value if key in sums else value


def total(parts: list[Any]) -> Any:
    """The sum of a list that is not empty."""
    result = parts[0]
    for part in parts[1:]:
        result = result + part
    return result


def evaluate(evaluation: Evaluation, subjects: list[Subject]) -> dict[str, list[dict[str, Any]]]:
    """Metrics rows by subject name. Raises InputError if the held-out text is too short to measure anything."""
    evaluation.reconstruction(subjects)
    if "typical" not in evaluation.moments:
        raise InputError("data.eval_tokens: no held-out token is left to measure; raise it")
    if evaluation.cfg.ce_tokens > 0 and any(s.ce_views for s in subjects):
        evaluation.cross_entropy(subjects)
    return {s.name: evaluation.rows(s) for s in subjects}
