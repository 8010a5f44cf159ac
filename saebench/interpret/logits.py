"""The tokens whose logits a latent raises and lowers most, read off the weights (the logit lens of its decoder row).

direction_i = W_dec[i] * scale, in the model's own space;  logits_i = ((direction_i - its mean) * gain) W_U,  in which the mean is
taken off only if the final norm does so

gain is the final norm's, W_U [d_model, vocab] the unembedding. What lies between the site and the end is left out: later
layers, the norm's division by each token's own size, biases, soft-capping (which keeps the order). For an SAE that
normalises each token by itself (sae.input=token) the scale is 1: only its direction is fixed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from saebench.lm import LM
from saebench.progress import Progress
from saebench.saes import SAE
from saebench.select import row_topk

MOST = 10  # tokens each way
AT_ONCE = 1 << 26  # logits held at once, 4 bytes each
LARGE = 1024  # a norm's epsilon is nothing beside its square


class LatentLogits(NamedTuple):
    """By falling effect: token ids and the logits added per unit of activation, [d_sae, most] each, on the host."""

    promoted: Tensor
    promoted_logits: Tensor
    suppressed: Tensor
    suppressed_logits: Tensor


@torch.no_grad()
def latent_logits(sae: SAE, lm: LM, most: int = MOST, progress: Progress | None = None) -> LatentLogits:
    """The `most` promoted and suppressed tokens of every latent, some latents at a time; `progress` counts latents."""
    unembed = lm.model.get_output_embeddings().weight.float()  # [vocab, d_model]
    directions = through_norm(sae.W_dec * sae.scale, lm).to(unembed.device)  # [d_sae, d_model]
    parts: list[tuple[Tensor, ...]] = []
    for part in directions.split(max(1, AT_ONCE // len(unembed))):
        logits = part @ unembed.T  # [latents, vocab]
        up, down = largest(logits, most), largest(logits.neg_(), most)
        parts.append(tuple(tensor.cpu() for tensor in (up[1], up[0], down[1], -down[0])))
        if progress is not None:
            progress.advance(len(part))
    return LatentLogits(*(torch.cat(column) for column in zip(*parts, strict=True)))


def largest(logits: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The `most` largest of each row and where they are, falling: [latents, most] each."""
    values, indices = row_topk(logits, most)
    values, order = values.sort(dim=1, descending=True, stable=True)
    return values, indices.gather(1, order)


def through_norm(directions: Tensor, lm: LM) -> Tensor:
    """What the final norm makes of directions [n, d_model], but for its division by each token's size: [n, d_model]."""
    signs = torch.ones(lm.d_model, device=lm.device, dtype=lm.dtype)
    signs[1::2] = -1  # mean 0, mean square 1: the norm multiplies it by its gain, and adds its bias
    gain = odd_part(lm, signs) * signs.float()  # [d_model]
    constant = odd_part(lm, torch.ones_like(signs))  # 0 if the mean is taken off, else the gain
    if constant.abs().max() < 0.5 * gain.abs().max():
        directions = directions - directions.mean(1, keepdim=True)
    return directions * gain.to(directions.device)


def odd_part(lm: LM, vector: Tensor) -> Tensor:
    """(norm(v) - norm(-v)) / 2 for v = LARGE * vector, free of the final norm's bias: [d_model]."""
    large = vector * LARGE
    return (lm.norm(large).float() - lm.norm(-large).float()) / 2
