"""Measure trained SAEs in all their views on held-out tokens; the language model's lower half runs once for them all.

Reconstruction metrics run over all held-out tokens, cross-entropy over the first evaluate.ce_tokens of them. Every view gives
a row for `all` ordinary tokens and one for the `typical` ones (norm not outlying).
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from saebench.heldout import SUMS, Batch, HeldOut, Measured, Subject, add, groups_of
from saebench.metrics import Reconstruction, TokenSums
from saebench.progress import Progress
from saebench.recapture import Recapture
from saebench.saes.base import Normalised
from saebench.similarity import Dissimilarities, Gram
from saebench.sparse import SparseLatents

WAVE_BYTES = 4 << 30  # the sums of so many views are held at once; each has four [d_in, d_in] matrices in float64


def evaluate(heldout: HeldOut, subjects: list[Subject]) -> dict[str, list[dict[str, Any]]]:
    """The metrics rows of every subject, by its name, without the columns that name the run."""
    total = heldout.tokens * sum(len(s.views) for s in subjects)
    with Progress(total, "tokens", f"evaluating {total // heldout.tokens} views") as progress:
        for subject in subjects:
            for views in waves(subject.views, len(heldout.centre)):
                measure(heldout, subject, views, progress)
    recapture = Recapture(heldout)
    if heldout.cfg.ce_tokens > 0 and any(s.ce_views for s in subjects):
        recapture.run(subjects)
    return {s.name: [row(m, t, recapture) for m in s.views for t in ("all", "typical")] for s in subjects}


def waves(views: list[Measured], d_in: int) -> Iterator[list[Measured]]:
    """The views in parts whose sums fit into WAVE_BYTES."""
    size = max(1, WAVE_BYTES // (4 * d_in * d_in * 8))
    for start in range(0, len(views), size):
        yield views[start : start + size]


@torch.no_grad()
def measure(heldout: HeldOut, subject: Subject, views: list[Measured], progress: Progress) -> None:
    """Reconstruct every held-out token in each view, and keep the metrics."""
    sums: list[dict[str, Reconstruction]] = [{} for _ in views]  # by group
    samples: list[list[Tensor]] = [[] for _ in views]  # reconstructions of the sampled tokens
    fired: list[list[SparseLatents]] = [[] for _ in views]  # latents of the sampled tokens
    for batch in heldout.batches:
        x = batch.x  # [n, d_in]
        for i, (m, x_hat, latents, seen) in enumerate(subject.reconstruct(x, views)):
            add_view(heldout, sums[i], m, batch, x_hat, latents, seen)
            samples[i].append(x_hat[batch.sampled])
            fired[i].append(latents.of_rows(batch.sampled))
            progress.advance(len(x), subject.sae.cfg.name)
    progress.advance((heldout.tokens - sum(len(b.group) for b in heldout.batches)) * len(views))  # special tokens
    for m, mine, sample, sampled in zip(views, sums, samples, fired, strict=True):
        gram = Gram.of(sampled)
        subject.gram = subject.gram or gram  # the first view is a full one
        m.l0 = {group: total.l0 for group, total in mine.items()}
        for tokens in ("all", "typical"):
            m.rows[tokens] = metrics(heldout, m, mine, tokens)
            m.rows[tokens] |= similarity(heldout, torch.cat(sample), gram, subject.gram, tokens)


def add_view(
    heldout: HeldOut, sums: dict[str, Reconstruction], m: Measured, batch: Batch, x_hat: Tensor, latents: SparseLatents,
    seen: Normalised,
) -> None:  # fmt: skip
    """Add one batch's reconstruction by one view to its sums, by group and by document."""
    x = batch.x
    by_dimension = (x - x_hat).square_()  # [n, d_in]
    error = by_dimension.sum(1, dtype=torch.float64)  # [n]
    size = seen.x.square().sum(1, dtype=torch.float64)  # [n]
    trained = error / seen.scale.double().reshape(-1).square()  # [n]
    tokens = TokenSums(trained, size, latents.l0())
    active = latents.values > 0  # [nnz]
    for group, rows in batch.groups.items():
        mine = active if len(batch.groups) == 1 else active & batch.mask(group)[latents.row_of_entry]
        fired = torch.bincount(latents.indices[mine], minlength=latents.d_sae)
        add(sums, group, Reconstruction.of(x[rows], x_hat[rows], heldout.centre, tokens.of_rows(rows), fired))
    nothing = torch.zeros_like(error)
    std = by_dimension.double() @ heldout.precision  # [n]
    columns = {"tokens": nothing + 1, "residual": error, "residual_std": std}
    columns |= {"residual_trained": trained, "total_trained": size}
    batch.add_by_document(m.documents, torch.stack([columns.get(name, nothing) for name in SUMS], 1))


def metrics(heldout: HeldOut, m: Measured, sums: dict[str, Reconstruction], tokens: str) -> dict[str, float]:
    """The reconstruction metrics of one view over `all` or `typical` tokens."""
    mine: Reconstruction = reduce(operator.add, (sums[group] for group in groups_of(tokens, sums)))
    return {"n_tokens": mine.n, **mine.row(heldout.moments_of(tokens), m.keep)}


def similarity(heldout: HeldOut, sample: Tensor, gram: Gram, full: Gram, tokens: str) -> dict[str, float]:
    """RSA between x and x_hat, CKA and RSA between the latents of a view and of the full SAE, on the sampled tokens."""
    chosen = heldout.sampled[tokens]
    between = Dissimilarities.of(sample[chosen]).rsa(heldout.dissimilarities[tokens])
    return between | gram.of_tokens(chosen).similarity(full.of_tokens(chosen))


def row(m: Measured, tokens: str, recapture: Recapture) -> dict[str, Any]:
    """One row of metrics.csv: the view, its reconstruction metrics, its cross-entropies."""
    v = m.view
    named = {"view": v.kind, "rule": v.rule, "order": v.order, "m": v.m, "budget": v.budget, "mode": v.mode}
    return {**named, "tokens": tokens, **m.rows[tokens], **recapture.columns(m, groups_of(tokens, recapture.clean))}


def document_rows(heldout: HeldOut, subject: Subject) -> Iterator[dict[str, Any]]:
    """Per-document sums of every view, for the bootstrap: SUMS, and the totals that its squares are shares of."""
    for measured in subject.views:
        for (document, group), sums in measured.documents.items():
            total, total_std = (float(v) for v in heldout.totals[document, group])
            named = {"view": measured.view.name(), "document": document, "group": group}
            yield named | dict(zip(SUMS, sums.tolist(), strict=True)) | {"total": total, "total_std": total_std}


def l0_rows(subject: Subject) -> Iterator[dict[str, Any]]:
    """For the full views and the budgets: how many tokens of each group have how many active latents."""
    for measured in subject.views:
        if measured.view.kind in ("full", "budget"):
            for group, histogram in measured.l0.items():
                for l0 in histogram.nonzero().squeeze(1).tolist():
                    named = {"view": measured.view.kind, "budget": measured.view.budget, "mode": measured.view.mode}
                    yield named | {"group": group, "l0": l0, "tokens": int(histogram[l0])}
