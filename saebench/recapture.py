"""Recaptured LM loss: the cross-entropy and KL of the language model with each reconstruction spliced in."""

from __future__ import annotations

import torch
from torch import Tensor

from saebench.heldout import SUMS, Batch, HeldOut, Measured, Subject, add
from saebench.metrics import recovered
from saebench.progress import Progress
from saebench.splice import Clean, Lower, logits, stacked, upper

ABLATIONS = 3  # passes that all views share: clean, zero in place of x, the training mean in place of x


class Recapture:
    """Sums over the first evaluate.ce_tokens held-out tokens; predictions of special tokens are not scored."""

    def __init__(self, heldout: HeldOut) -> None:
        self.heldout, self.lm, self.chunk = heldout, heldout.lm, heldout.cfg.logit_chunk
        self.clean: dict[str, Tensor] = {}  # by group: [4] sums of CE clean, zero and mean, and the number of positions

    @torch.no_grad()
    def run(self, subjects: list[Subject]) -> None:
        """Measure the ce_views of every subject: the upper half once per view from where `heldout` stopped, logits in chunks."""
        passes = ABLATIONS + sum(len(s.ce_views) for s in subjects)
        chosen = self.heldout.spread(self.heldout.cfg.ce_tokens)
        total = len(chosen) * self.heldout.store.seq_len * passes
        with Progress(total, "tokens", f"recaptured LM loss of {passes} reconstructions") as progress:
            for numbers, tokens, documents in self.heldout.blocks(chosen):
                low = stacked([self.heldout.lows[i] for i in numbers], self.lm.device)
                self.splice(low, tokens, documents, subjects, progress)

    def splice(
        self, low: Lower, tokens: Tensor, documents: Tensor, subjects: list[Subject], progress: Progress
    ) -> None:
        """Add one batch of tokens [b, t] to the sums."""
        special = self.heldout.store.special(tokens).to(self.lm.device)  # [b, t]
        kept = (~self.heldout.store.excluded(tokens)).to(self.lm.device)
        x = low.x.to(self.heldout.dtype).float()[kept]  # [n, d_in]
        scored = kept[:, :-1] & ~special[:, 1:]  # spliced positions that predict an ordinary token
        targets = tokens[:, 1:].to(self.lm.device)[scored]  # [positions]
        group = torch.zeros_like(tokens, device=self.lm.device)
        group[kept] = self.heldout.group_of(x, special[kept])
        ablations = (torch.zeros_like(x), self.heldout.centre.expand_as(x))
        finals = [self.final(low, scored, None), *(self.final(low, scored, put(low, kept, a)) for a in ablations)]
        chosen: list[Measured] = []
        for subject in subjects:
            for m, x_hat, _, _ in subject.reconstruct(x, subject.ce_views):
                finals.append(self.final(low, scored, put(low, kept, x_hat)))
                chosen.append(m)
        table = self.head(finals, targets, progress, tokens.numel())
        nothing = torch.zeros(len(targets), 1, dtype=torch.bool)
        of_scored = group[:, :-1][scored].cpu()
        self.sum_up(table, chosen, Batch(nothing, of_scored, documents[:, :-1][scored.cpu()], nothing.squeeze(1)))

    def final(self, low: Lower, scored: Tensor, x_hat: Tensor | None) -> Tensor:
        """Final hidden states at the scored positions: [positions, d_model]."""
        return upper(self.lm, low, x_hat)[:, :-1][scored]

    def head(self, finals: list[Tensor], targets: Tensor, progress: Progress, tokens: int) -> Tensor:
        """Cross-entropy and KL to the clean model at every position: [reconstructions, positions, 2], the clean ones first."""
        n = len(targets)
        table = torch.zeros(len(finals), n, 2, dtype=torch.float64)
        for start in range(0, n, self.chunk):
            part = slice(start, start + self.chunk)
            clean = Clean(logits(self.lm, finals[0][part]), targets[part])
            table[0, part, 0] = clean.losses.double().cpu()
            for row, final in zip(table[1:], finals[1:], strict=True):
                row[part] = torch.stack(clean.score(logits(self.lm, final[part])), 1).double().cpu()
            done = tokens * min(start + self.chunk, n) // n - tokens * start // n
            progress.advance(done * len(finals))
        return table

    def sum_up(self, table: Tensor, chosen: list[Measured], batch: Batch) -> None:
        """Add the losses of one batch to the sums by group and by document."""
        for group, rows in batch.groups.items():
            count = torch.tensor([len(rows)], dtype=torch.float64)
            add(self.clean, group, torch.cat([table[:ABLATIONS, rows, 0].sum(1), count]))
            for m, losses in zip(chosen, table[ABLATIONS:], strict=True):
                add(m.ce, group, losses[rows].sum(0))
        for m, losses in zip(chosen, table[ABLATIONS:], strict=True):
            nothing = torch.zeros(len(losses), dtype=torch.float64)
            columns = {"ce_tokens": nothing + 1, "ce_sae": losses[:, 0], "ce_clean": table[0, :, 0]}
            batch.add_by_document(m.documents, torch.stack([columns.get(name, nothing) for name in SUMS], 1))

    def columns(self, m: Measured, groups: list[str]) -> dict[str, float | int]:
        """Mean cross-entropies in nats per token, the recovered fractions and KL, of a view that was spliced; else nothing."""
        if not m.ce:
            return {}
        present = [g for g in groups if g in self.clean]
        clean, zero, mean, n = torch.stack([self.clean[g] for g in present]).sum(0).tolist()
        spliced, divergence = torch.stack([m.ce[g] for g in present]).sum(0).tolist()
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


def put(low: Lower, kept: Tensor, x_hat: Tensor) -> Tensor:
    """The site's activations with x_hat [n, d_in] at the positions kept [b, t]."""
    spliced = low.x.clone()  # [b, t, d_in]
    spliced[kept] = x_hat.to(spliced.dtype)
    return spliced
