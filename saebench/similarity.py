"""Representational similarity on a fixed sample of tokens: between x and x_hat, between the latents of views, between runs.

Everything rests on inner products between tokens: two representations of the same tokens are compared whatever their
widths and whichever latents they use.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from saebench.sparse import SparseLatents
from saebench.store import write_tensors


class Dissimilarities:
    """1 - Pearson correlation between the representations of every pair of tokens, `values` [n (n - 1) / 2], float64.

    A token whose representation does not vary (no latent active) correlates 0 with every other.
    """

    def __init__(self, correlation: Tensor) -> None:
        upper = torch.triu_indices(*correlation.shape, offset=1, device=correlation.device)
        self.values = 1 - correlation[upper[0], upper[1]]

    @staticmethod
    def of(x: Tensor) -> Dissimilarities:
        """Between the rows of x [n, d]."""
        rows = x.double() - x.double().mean(1, keepdim=True)
        return Dissimilarities(normalised(rows @ rows.T))

    @cached_property
    def ranks(self) -> Tensor:
        """The ranks of the values, ties sharing their mean rank."""
        return ranks(self.values)

    def rsa(self, other: Dissimilarities) -> dict[str, float]:
        """Representational similarity analysis: Pearson and Spearman correlation with another's (Kriegeskorte et al. 2008)."""
        return {
            "rsa_pearson": pearson(self.values, other.values),
            "rsa_spearman": pearson(self.ranks, other.ranks),
        }


@dataclass(frozen=True)
class Gram:
    """Inner products of the latents of n tokens: `inner` [n, n], the sum of each token's latents `total` [n], float64."""

    inner: Tensor
    total: Tensor
    d_sae: int

    @staticmethod
    def of(latents: list[SparseLatents]) -> Gram:
        """Of the tokens of several batches, [n, d_sae] held once."""
        z = torch.cat([part.dense() for part in latents]).float()  # [n, d_sae]
        return Gram((z @ z.T).double(), z.sum(1, dtype=torch.float64), z.shape[1])

    def of_tokens(self, tokens: Tensor) -> Gram:
        """Of some of the tokens, an index or a mask [n]."""
        return Gram(self.inner[tokens][:, tokens], self.total[tokens], self.d_sae)

    def dissimilarities(self) -> Dissimilarities:
        """1 - Pearson correlation over all d_sae latents, those that are not active counting as 0."""
        return Dissimilarities(normalised(self.inner - torch.outer(self.total, self.total) / self.d_sae))

    def similarity(self, other: Gram) -> dict[str, float]:
        """cka_latents (see `cka_unbiased`) and rsa_latents_*, of two sets of latents of the same tokens."""
        rsa = self.dissimilarities().rsa(other.dissimilarities())
        named = {name.replace("rsa_", "rsa_latents_"): value for name, value in rsa.items()}
        return {"cka_latents": cka_unbiased(self.inner, other.inner), **named}


def save_gram(path: Path, gram: Gram, typical: Tensor) -> None:
    """Write a Gram (inner products in float32) with the mask [n] of the tokens of typical norm."""
    tensors = {"inner": gram.inner.float(), "total": gram.total, "typical": typical, "d_sae": torch.tensor(gram.d_sae)}
    write_tensors(path, {name: tensor.cpu().contiguous() for name, tensor in tensors.items()})


def load_gram(path: Path) -> tuple[Gram, Tensor]:
    """What `save_gram` wrote."""
    read = load_file(path)
    return Gram(read["inner"].double(), read["total"], int(read["d_sae"])), read["typical"]


def normalised(products: Tensor) -> Tensor:
    """Inner products [n, n] of centred rows as correlations; 0 with a row that does not vary."""
    square = products.diagonal().clamp_min(0)
    inverse = torch.where(square > square.max() * 1e-12, square.clamp_min(1e-300).rsqrt(), 0.0)  # [n]
    return inverse.unsqueeze(1) * products * inverse


def cka_unbiased(a: Tensor, b: Tensor) -> float:
    """Linear CKA from Gram matrices a, b [n, n] with the unbiased estimate of HSIC; at most 1, about 0 if unrelated.

    HSIC(a, b) = <A, B> / (n (n - 3)), A and B the U-centred matrices (Song et al. 2012, equation 5; Szekely and Rizzo 2014);
    CKA = HSIC(a, b) / sqrt(HSIC(a, a) HSIC(b, b)). The plain estimate nears 1 for any two representations with many more
    dimensions than tokens. nan for fewer than 4 tokens, 0 if either does not vary.
    """
    if len(a) < 4:
        return float("nan")
    a, b = u_centred(a), u_centred(b)
    aa, bb, ab = (float((x * y).sum()) for x, y in ((a, a), (b, b), (a, b)))
    return ab / (aa * bb) ** 0.5 if aa > 0 and bb > 0 else 0.0


def u_centred(a: Tensor) -> Tensor:
    """A Gram matrix [n, n] U-centred: zero diagonal, rows and columns that sum to zero."""
    n = len(a)
    off = a - torch.diag(a.diagonal())
    rows = off.sum(1)  # [n]
    centred = off - (rows.unsqueeze(1) + rows) / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
    return centred - torch.diag(centred.diagonal())


def ranks(values: Tensor) -> Tensor:
    """Ranks of values [n], float64, ties sharing their mean rank."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts.double() - 1) / 2)[inverse]


def pearson(a: Tensor, b: Tensor) -> float:
    """Pearson correlation of a and b [n]; 0 if either does not vary."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    scale = torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b)
    return float(a @ b / scale) if scale > 0 else 0.0
