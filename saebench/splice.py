"""Put a reconstruction in place of the activations at a site and run the rest of the language model.

The lower half runs once (`lower`), the upper half once per reconstruction (`upper`), and the output embedding in chunks
that the caller cuts (`logits`). The model's own forward loop runs the upper half, so masks and positions are its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saebench.lm import LM, Site


@dataclass(frozen=True)
class Lower:
    """A forward pass that stopped at the site."""

    x: Tensor  # [b, t, d_model], activations at the site
    hidden: (
        Tensor  # [b, t, d_model], where the pass resumes: x itself, or the input of the layer that holds an inner site
    )

    def row(self, i: int) -> Lower:
        """Sequence i of the batch, alone and on the host: [t, d_model]."""
        x = self.x[i].cpu()
        return Lower(x, x if self.hidden is self.x else self.hidden[i].cpu())


def stacked(rows: Sequence[Lower], device: torch.device) -> Lower:
    """Sequences as one batch on a device; the inverse of `row`."""
    x = torch.stack([row.x for row in rows]).to(device)  # [b, t, d_model]
    inner = rows[0].hidden is not rows[0].x
    return Lower(x, torch.stack([row.hidden for row in rows]).to(device) if inner else x)


def is_inner(lm: LM) -> bool:
    """Whether the site lies within a layer, which then runs again from its input."""
    return lm.module is not lm.entry


def lower(lm: LM, tokens: Tensor) -> Lower:
    """Run the model on `tokens` [b, t] up to the site. Raises InputError if t exceeds the model's positions."""
    before = [Site(lm.layer, "resid_pre")] if is_inner(lm) else []
    found = lm.activations_at(tokens, [*before, lm.at])  # [b, t, d_model] each
    return Lower(found[-1], found[0])


@torch.no_grad()
def upper(lm: LM, low: Lower, x_hat: Tensor | None) -> Tensor:
    """Hidden states [b, t, d_model] after the final norm, with x_hat [b, t, d_model] in place of low.x (None: clean).

    Only the layers above the site run, and the layer of an inner site. The model is as it was afterwards, also after an
    exception.
    """
    start = lm.layer + (lm.site == "resid_post")
    spliced = low.x if x_hat is None else x_hat.to(low.x)
    hidden = low.hidden if is_inner(lm) else spliced
    resumed_at = lm.layers[start] if start < lm.n_layers else lm.norm
    with ExitStack() as stack:
        stack.enter_context(skipped(lm.layers, start))
        stack.enter_context(resumed_at.register_forward_pre_hook(lambda _, args: (hidden, *args[1:])))
        if is_inner(lm):
            stack.enter_context(lm.module.register_forward_hook(lambda _, __, output: put(spliced, output)))
        # of inputs_embeds only shape, dtype and device matter: its values do not reach `resumed_at`
        return lm.base(inputs_embeds=hidden, use_cache=False).last_hidden_state


def put(x: Tensor, output: Any) -> Any:
    """`output` of a submodule (a tensor, or a tuple that begins with it) with x as the tensor."""
    return (x, *output[1:]) if isinstance(output, tuple) else x


class Skipped(nn.Module):
    """Stands in for a decoder layer that has already run.

    It shows what a model's loop reads of a layer, and returns a tuple because some versions of transformers take item 0
    of a layer's output; its value is never used.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.attention_type = getattr(layer, "attention_type", None)

    def forward(self, *_args: Any, **_kwargs: Any) -> tuple[None]:
        return (None,)


@contextmanager
def skipped(layers: nn.ModuleList, n: int) -> Iterator[None]:
    """Replace the first n layers by stubs."""
    kept = list(layers[:n])
    try:
        for i, layer in enumerate(kept):
            layers[i] = Skipped(layer)
        yield
    finally:
        for i, layer in enumerate(kept):
            layers[i] = layer


@torch.no_grad()
def logits(lm: LM, hidden: Tensor) -> Tensor:
    """Float32 next-token logits [n, vocab_size] of final hidden states [n, d_model], soft-capped if the model's are."""
    out = lm.model.get_output_embeddings()(hidden).float()  # [n, vocab_size]
    cap = getattr(lm.model.config, "final_logit_softcapping", None)
    return out if cap is None else out.div_(cap).tanh_().mul_(cap)


class Clean:
    """The clean model's predictions at some positions, against which reconstructions' logits are scored."""

    def __init__(self, logits: Tensor, targets: Tensor) -> None:
        """From clean logits [n, vocab_size] and the token ids that follow, targets [n]."""
        log_p = logits.log_softmax(-1)  # [n, vocab_size]
        self.p, self.targets = log_p.exp(), targets
        self.negentropy = torch.linalg.vecdot(self.p, log_p)  # [n]
        self.losses = -log_p.gather(1, targets.unsqueeze(1)).squeeze(1)  # [n]

    def score(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy and KL(clean || spliced) of spliced logits [n, vocab_size], in nats: [n] each.

        KL = sum p log p - sum p logit + logsumexp: two passes over the vocabulary and nothing of its size is written.
        """
        normaliser = logits.logsumexp(-1)  # [n]
        losses = normaliser - logits.gather(1, self.targets.unsqueeze(1)).squeeze(1)
        return losses, self.negentropy - torch.linalg.vecdot(self.p, logits) + normaliser
