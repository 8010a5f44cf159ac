"""Metrics as streamed float64 sums, divided once at the end: what a number is does not depend on how its tokens were batched.

`Moments` of x are shared by all views; `Reconstruction` holds the sums of one view. Both hold the sums of one group of
tokens (typical, or of outlying norm), and groups are added with `+`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple, Self

import torch
from torch import Tensor

MAX_L0 = 8192  # the per-token L0 histogram's last bin holds everything above


@dataclass
class Sums:
    """Sums that add field by field."""

    def __add__(self, other: Self) -> Self:
        pairs = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return type(self)(**pairs)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a^T b in float64 [d, d], of float32 products within one batch (the terms are already shifted by the mean)."""
    return (a.T @ b).double()


@dataclass
class Moments(Sums):
    """Sums over tokens of shifted activations x - centre: count, first and second moments."""

    n: int
    total: Tensor  # [d_in]
    cross: Tensor  # [d_in, d_in]

    @staticmethod
    def of(x: Tensor) -> Moments:
        """Of shifted activations x [n, d_in], float32."""
        return Moments(len(x), x.sum(0, dtype=torch.float64), product(x, x))

    def covariance(self) -> Tensor:
        """[d_in, d_in], with n in the denominator."""
        return centred(self.cross, self.total, self.total, self.n)

    def variance(self) -> Tensor:
        """[d_in]. Raises ValueError where it is undefined or nothing varies."""
        if self.n == 0:
            raise ValueError("the variance of no tokens is undefined")
        variance = self.covariance().diagonal().clamp_min(0)
        if not bool((variance > 0).any()):
            raise ValueError("x does not vary, so its FVU is undefined")
        return variance


class TokenSums(NamedTuple):
    """What is known of each token's reconstruction, [n] each: |x_n - x_hat_n|^2 and |x_n|^2 in the trained space, L0."""

    trained: Tensor
    seen: Tensor
    l0: Tensor

    def of_rows(self, rows: Tensor) -> TokenSums:
        """Those of some tokens."""
        return TokenSums(*(values[rows] for values in self))


@dataclass
class Reconstruction(Sums):
    """Sums over tokens that compare x_hat with x, both shifted by the same centre."""

    n: int
    residual: Tensor  # [d_in] sum of (x - x_hat)^2
    trained: Tensor  # [2] sums of |x_n - x_hat_n|^2 and |x_n|^2 in the space the SAE was trained in
    cosine: Tensor  # [] sum of cos(x, x_hat), unshifted
    total: Tensor  # [d_in] sum of x_hat
    cross: Tensor  # [d_in, d_in] x^T x_hat
    square: Tensor  # [d_in, d_in] x_hat^T x_hat
    active: Tensor  # [] sum over tokens of active latents
    l0: Tensor  # [MAX_L0 + 1] histogram of latents active per token
    fired: Tensor  # [d_sae] tokens on which each latent was active

    @staticmethod
    def of(x: Tensor, x_hat: Tensor, centre: Tensor, tokens: TokenSums, fired: Tensor) -> Reconstruction:
        """Of x and x_hat [n, d_in] (unshifted, float32), what is known of each token, and fired [d_sae]."""
        a, b = x - centre, x_hat - centre  # [n, d_in]
        return Reconstruction(
            n=len(x),
            residual=(x - x_hat).square_().sum(0, dtype=torch.float64),
            trained=torch.stack([tokens.trained.sum(), tokens.seen.sum()]),
            cosine=torch.cosine_similarity(x, x_hat, dim=1).double().sum(),
            total=b.sum(0, dtype=torch.float64),
            cross=product(a, b),
            square=product(b, b),
            active=tokens.l0.sum(),
            l0=torch.bincount(tokens.l0.clamp(max=MAX_L0), minlength=MAX_L0 + 1),
            fired=fired,
        )

    def row(self, x: Moments, kept: Tensor) -> dict[str, float]:
        """The metrics of the view, given the moments of x over the same tokens and the latents kept [d_sae] (bool)."""
        variance = x.variance()
        varies = variance > 0
        levels = (self.l0.cumsum(0) / self.n).double()
        return {
            "l0": float(self.active / self.n),
            "l0_p05": int((levels < 0.05).sum()),
            "l0_p95": int((levels < 0.95).sum()),
            "mse": float(self.residual.sum() / (self.n * len(variance))),
            "nmse": float(self.trained[0] / self.trained[1]),
            "fvu": float(self.residual.sum() / (variance.sum() * self.n)),
            "fvu_std": float((self.residual[varies] / (variance[varies] * self.n)).mean()),
            "cosine": float(self.cosine / self.n),
            **self.similarity(x, variance),
            "dead_fraction": float(((self.fired == 0) & kept).sum() / kept.sum()),
        }

    def similarity(self, x: Moments, variance: Tensor) -> dict[str, float]:
        """Linear CKA of x and x_hat, plain and with every dimension scaled by the standard deviation of x."""
        a = x.covariance()
        b = centred(self.square, self.total, self.total, self.n)
        c = centred(self.cross, x.total, self.total, self.n)
        inverse = torch.where(variance > 0, variance, torch.inf).rsqrt()  # [d_in]; 0 where x is constant
        scaled = [inverse.unsqueeze(1) * m * inverse for m in (a, b, c)]
        return {"cka": cka(a, b, c), "cka_std": cka(*scaled)}


def centred(cross: Tensor, left: Tensor, right: Tensor, n: int) -> Tensor:
    """Covariance [d, e] from the sum of products [d, e] and the sums [d], [e]."""
    return cross / n - torch.outer(left / n, right / n)


def cka(xx: Tensor, yy: Tensor, xy: Tensor) -> float:
    """Linear CKA |cov(x, y)|_F^2 / (|cov(x, x)|_F |cov(y, y)|_F), in [0, 1]; 0 if y is constant.

    Kornblith et al. 2019, section 3.
    """
    scale = torch.linalg.matrix_norm(xx) * torch.linalg.matrix_norm(yy)
    return float(torch.linalg.matrix_norm(xy).square() / scale) if scale > 0 else 0.0


def recovered(clean: float, spliced: float, ablated: float) -> float:
    """(ablated - spliced) / (ablated - clean) of mean cross-entropies: 1 is lossless, 0 no better than the ablation."""
    return (ablated - spliced) / (ablated - clean) if ablated != clean else float("nan")
