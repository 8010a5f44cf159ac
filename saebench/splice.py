"""Put a reconstruction in place of the activations at a site and run the rest of the language model.

The lower half runs once (`lower`), the upper half once per reconstruction (`upper`), and the output embedding in chunks
that the caller cuts (`logits`). The model's own forward loop runs the upper half, so masks and positions are its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy as mean_cross_entropy

from saebench.lm import LM


@dataclass(frozen=True)
class Lower:
    """A forward pass that stopped at the site."""

    x: Tensor  # [b, t, d_model], activations at the site
    hidden: (
        Tensor  # [b, t, d_model], where the pass resumes: x itself, or the input of the layer that holds an inner site
    )


def is_inner(lm: LM) -> bool:
    """Whether the site lies within a layer, which then runs again from its input."""
    return lm.module is not lm.entry


def lower(lm: LM, tokens: Tensor) -> Lower:
    """Run the model on `tokens` [b, t] up to the site. Raises InputError if t exceeds the model's positions."""
    entering, x = lm.run_to_site(tokens)  # [b, t, d_model] both
    return Lower(x, entering if is_inner(lm) else x)


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


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy [n] in nats of `logits` [n, vocab_size] against the token ids `targets` [n]."""
    return mean_cross_entropy(logits, targets, reduction="none")


def kl(clean: Tensor, logits: Tensor) -> Tensor:
    """KL(clean || spliced) [n] in nats from logits [n, vocab_size] of both; rounding may leave it a hair below 0."""
    log_p, log_q = clean.log_softmax(-1), logits.log_softmax(-1)  # [n, vocab_size]
    p = log_p.exp()  # [n, vocab_size]
    return torch.linalg.vecdot(p, log_p.sub_(log_q))
