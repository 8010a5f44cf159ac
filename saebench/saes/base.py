"""What every variant shares: parameters, input normalisation, decoding, AuxK; a variant selects latents and has a loss.

x_n = (x - shift) / scale;  pre_acts = (x_n - b_dec) W_enc + b_enc;  z = select(relu(pre_acts))
x_hat_n = z W_dec + b_dec;  x_hat = x_hat_n * scale + shift
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saebench.nested import attach_encoder, nested_loss
from saebench.optim import normalise_rows
from saebench.parallel import SOLO, World
from saebench.sae_configs import SAEConfig
from saebench.select import top_mask
from saebench.sparse import SparseLatents

ENCODER_NORM = 3**-0.5  # of the encoder's columns at the start: what torch's Linear, and so the published codes, have


@dataclass(frozen=True)
class Stats:
    """Statistics of the training activations: `mean` [d_in], `scale` = sqrt(mean |x - mean|^2 / d_in), `variance` [d_in]."""

    mean: Tensor
    scale: float
    variance: Tensor


class Normalised(NamedTuple):
    """x [n, d_in] as the SAE sees it, with what undoes it: shift and scale, broadcastable to [n, d_in]."""

    x: Tensor
    shift: Tensor
    scale: Tensor

    def undo(self, x_hat: Tensor) -> Tensor:
        """A reconstruction in the model's own space: [n, d_in]."""
        return x_hat * self.scale + self.shift


class Step(NamedTuple):
    """One training loss.

    `loss` [] with gradients; `x_hat` [n, d_in] in the normalised space, detached; `fired` [d_sae] (bool), the latents active
    in any token; `l0` [], the mean number of active latents of a token; `errors`, of nested losses, the mean squared error of
    each view.
    """

    loss: Tensor
    x_hat: Tensor
    fired: Tensor
    l0: Tensor
    errors: Tensor | None = None


class Tables(NamedTuple):
    """The weights that AuxK computes with, or their gradients."""

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor


class SAE(nn.Module):
    """An abstract sparse autoencoder; a variant defines `own_rule` (inference) and `loss` (training).

    W_enc [d_in, d_sae] is stored column by column, so that W_enc.T is a contiguous table of latents like W_dec [d_sae, d_in].
    The decoder's rows have unit norm and the encoder starts along its transpose (Gao et al. 2024, appendix A.1), with columns of
    norm ENCODER_NORM; of norm 1 in dense variants, whose thresholds are set for pre-activations of unit variance.
    """

    modes: tuple[str, ...] = ("threshold",)  # how `own_rule` may set the number of active latents, the default first
    generator: torch.Generator | None = None  # of what training draws, if it draws anything
    world: World = SOLO  # the ranks that share the batches of training
    dense = False  # whether training computes with all latents, in tensors that torch.compile can fuse

    def __init__(self, cfg: SAEConfig, stats: Stats, seed: int) -> None:
        super().__init__()
        self.cfg, self.d_in, self.d_sae = cfg, len(stats.mean), cfg.d_sae
        generator = torch.Generator().manual_seed(seed)
        W_dec = torch.randn(cfg.d_sae, self.d_in, generator=generator)  # [d_sae, d_in]
        normalise_rows(W_dec)
        self.W_dec = nn.Parameter(W_dec)
        self.W_enc = nn.Parameter(W_dec.T * (1.0 if self.dense else ENCODER_NORM))
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(self.d_in) if cfg.input != "none" else stats.mean.float().clone())
        self.centre: Tensor
        self.scale: Tensor
        self.register_buffer("centre", stats.mean.float() if cfg.input == "dataset" else torch.zeros(self.d_in))
        self.register_buffer("scale", torch.tensor(stats.scale if cfg.input == "dataset" else 1.0))
        self.copies: dict[str, Tensor] = {}  # bfloat16 twins of W_enc and W_dec while training in that precision

    def lr_factors(self) -> dict[str, float]:
        """Parameters, by name, that learn at a multiple of the learning rate."""
        return {}

    def normalise(self, x: Tensor) -> Normalised:
        """Activations x [n, d_in] as this SAE sees them: float32, centred and scaled as sae.input says."""
        x = x.float()
        if self.cfg.input == "token":  # BatchTopK paper: each token's mean removed, divided by its std
            shift, scale = x.mean(1, keepdim=True), x.std(1, keepdim=True).clamp_min(1e-6)
        else:
            shift, scale = self.centre, self.scale
        return Normalised((x - shift) / scale, shift, scale)

    def pre_acts(self, x: Tensor) -> Tensor:
        """(x - b_dec) W_enc + b_enc for normalised x: [n, d_sae]."""
        return torch.addmm(self.b_enc, x - self.b_dec, self.W_enc)

    @torch.no_grad()
    def scores(self, x: Tensor) -> Tensor:
        """pre_acts without gradients, from which training selects: [n, d_sae], in the precision of training."""
        W_enc = self.copies.get("W_enc", self.W_enc)
        return torch.addmm(self.b_enc.to(W_enc.dtype), (x - self.b_dec).to(W_enc.dtype), W_enc)

    def acts(self, x: Tensor) -> Tensor:
        """The candidates that selection chooses from, relu(pre_acts) unless the variant says otherwise: [n, d_sae]."""
        return self.pre_acts(x).relu_()

    def own_rule(self, acts: Tensor, k: int | None = None, mode: str | None = None) -> SparseLatents:
        """The latents that this variant keeps at inference; `k` and `mode` replace its own where it has them."""
        raise NotImplementedError

    def loss(self, x: Tensor, factor: float) -> Step:
        """The training loss on normalised x [n, d_in]: mean squared error over tokens and dimensions, plus penalties.

        `factor` multiplies the sparsity knob (schedules.py); dense variants take it as a tensor, too. AuxK is apart.
        """
        raise NotImplementedError

    @torch.no_grad()
    def encode(self, x: Tensor) -> SparseLatents:
        """Inference: activations x [n, d_in] or [..., d_in] of the model to SparseLatents, one row a token."""
        return self.own_rule(self.acts(self.normalise(x.reshape(-1, self.d_in)).x))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Inference: the reconstruction x_hat of activations x [..., d_in], in the model's own space."""
        seen = self.normalise(x.reshape(-1, self.d_in))
        latents = self.own_rule(self.acts(seen.x))
        return seen.undo(self.decode(latents)).reshape(x.shape)

    def decode(self, latents: SparseLatents) -> Tensor:
        """z W_dec + b_dec in the normalised space: [n, d_in]. Raises InputError for latents that are not in order."""
        latents.check()
        return latents.decode(self.W_dec) + self.b_dec

    def nested_step(self, x: Tensor, latents: SparseLatents, segments: Tensor, weights: Tensor) -> Step:
        """The step of the top-k family: the nested loss of selected latents, with the encoder's gradients."""
        attached = attach_encoder(latents, x - self.b_dec.detach(), self.W_enc, self.b_enc, self.b_dec)
        table = self.copies.get("W_dec")
        result = nested_loss(attached, segments, weights, self.W_dec, self.b_dec, x, table)
        l0 = (latents.values > 0).sum() / len(x)
        return Step(result.loss, result.x_hat, latents.fired(), l0, result.levels / self.d_in)

    def order_after(self, step: int) -> Tensor | None:
        """The order [d_sae] into which training puts the latents after a step (counted from 1), if it does."""
        return None

    def knob(self, k: int, factor: float) -> int:
        """k times the schedule's factor, at least 1 and at most d_sae."""
        return min(self.d_sae, max(1, round(k * factor)))

    def aux_backward(self, x: Tensor, x_hat: Tensor, dead: Tensor) -> Tensor:
        """AuxK of the latents `dead` [n_dead], its gradients added to `.grad`, after the loss's own; its value []."""
        W_enc, b_enc, W_dec = self.W_enc.grad, self.b_enc.grad, self.W_dec.grad
        assert W_enc is not None and b_enc is not None and W_dec is not None, "AuxK comes after the loss's backward"  # noqa: PT018
        weights = Tables(self.W_enc, self.b_enc, self.W_dec, self.b_dec)
        return self.add_aux(x, x_hat, dead, weights, Tables(W_enc, b_enc, W_dec, self.b_dec))

    @torch.no_grad()
    def add_aux(self, x: Tensor, x_hat: Tensor, dead: Tensor, weights: Tables, grads: Tables) -> Tensor:
        """AuxK of an SAE with these weights: its value [], and its gradients added to `grads` (b_dec has none).

        The aux_k most active of the dead latents [n_dead] reconstruct the detached residual of x [n, d_in]:
        aux_weight * mean over tokens and dimensions of |(x - x_hat) - z_dead W_dec|^2 (Gao et al. 2024, section A.2).
        Written out because autograd would make gradients of all latents, nearly all of them zero, and add them up.
        """
        E, D = weights.W_enc.T.index_select(0, dead), weights.W_dec.index_select(0, dead)  # [n_dead, d_in]
        seen = x - weights.b_dec  # [n, d_in]
        pre = torch.addmm(weights.b_enc[dead], seen, E.T)  # [n, n_dead]
        z = pre.relu()
        if len(dead) > self.cfg.aux_k:
            z *= top_mask(pre, self.cfg.aux_k)
        error = (x - x_hat) - z @ D  # [n, d_in]
        slope = error * (-2 * self.cfg.aux_weight / error.numel())
        grad = (slope @ D.T) * (z > 0)  # [n, n_dead]
        for into, rows in ((grads.W_dec, z.T @ slope), (grads.W_enc.T, grad.T @ seen), (grads.b_enc, grad.sum(0))):
            into.index_add_(0, dead, rows.to(into.dtype))
        return self.cfg.aux_weight * error.square().mean()

    @torch.no_grad()
    def describe(self) -> dict[str, Any]:
        """What sae.json holds: all that is needed beside the tensors to use this SAE on raw activations."""
        return {"config": dict(vars(self.cfg)), "d_in": self.d_in, "modes": list(self.modes)}
