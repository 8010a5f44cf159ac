"""What every variant shares: parameters, input normalisation, decoding, AuxK; a variant selects latents and has a loss.

x_n = (x - shift) / scale;  pre_acts = (x_n - b_dec) W_enc + b_enc;  z = select(relu(pre_acts))
x_hat_n = z W_dec + b_dec;  x_hat = x_hat_n * scale + shift
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saebench.optim import normalise_rows
from saebench.sae_configs import SAEConfig
from saebench.select import row_topk
from saebench.sparse import SparseLatents, attach_encoder, nested_loss


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
    """One training loss: `loss` [] with gradients, latents, x_hat [n, d_in] in the normalised space (detached)."""

    loss: Tensor
    latents: SparseLatents
    x_hat: Tensor


class SAE(nn.Module):
    """An abstract sparse autoencoder; a variant defines `own_rule` (inference) and `loss` (training).

    W_enc [d_in, d_sae] is stored column by column, so that W_enc.T is a contiguous table of latents like W_dec [d_sae, d_in].
    The decoder's rows have unit norm and the encoder starts as its transpose (Gao et al. 2024, appendix A.1).
    """

    modes: tuple[str, ...] = ("threshold",)  # how `own_rule` may set the number of active latents, the default first

    def __init__(self, cfg: SAEConfig, stats: Stats, seed: int) -> None:
        super().__init__()
        self.cfg, self.d_in, self.d_sae = cfg, len(stats.mean), cfg.d_sae
        generator = torch.Generator().manual_seed(seed)
        W_dec = torch.randn(cfg.d_sae, self.d_in, generator=generator)  # [d_sae, d_in]
        normalise_rows(W_dec)
        self.W_dec = nn.Parameter(W_dec)
        self.W_enc = nn.Parameter(W_dec.clone().T)
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(self.d_in) if cfg.input != "none" else stats.mean.float().clone())
        self.centre: Tensor
        self.scale: Tensor
        self.register_buffer("centre", stats.mean.float() if cfg.input == "dataset" else torch.zeros(self.d_in))
        self.register_buffer("scale", torch.tensor(stats.scale if cfg.input == "dataset" else 1.0))

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

    def acts(self, x: Tensor) -> Tensor:
        """The candidates that selection chooses from, relu(pre_acts) unless the variant says otherwise: [n, d_sae]."""
        return self.pre_acts(x).relu_()

    def own_rule(self, acts: Tensor, k: int | None = None, mode: str | None = None) -> SparseLatents:
        """The latents that this variant keeps at inference; `k` and `mode` replace its own where it has them."""
        raise NotImplementedError

    def loss(self, x: Tensor, factor: float, dead: Tensor | None) -> Step:
        """The training loss on normalised x [n, d_in]: mean squared error over tokens and dimensions, plus penalties.

        `factor` multiplies the sparsity knob (schedules.py); `dead` [n_dead] lists latents for AuxK, None if there are none.
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
        """z W_dec + b_dec in the normalised space: [n, d_in]."""
        return latents.decode(self.W_dec) + self.b_dec

    def nested_step(
        self, x: Tensor, latents: SparseLatents, segments: Tensor, weights: Tensor, dead: Tensor | None
    ) -> Step:
        """The step of the top-k family: the nested loss of selected latents, with the encoder's gradients and AuxK."""
        latents = attach_encoder(latents, x, self.W_enc, self.b_enc, self.b_dec)
        result = nested_loss(latents, segments, weights, self.W_dec, self.b_dec, x)
        return self.with_aux(Step(result.loss, latents, result.x_hat), x, dead)

    def knob(self, k: int, factor: float) -> int:
        """k times the schedule's factor, at least 1 and at most d_sae."""
        return min(self.d_sae, max(1, round(k * factor)))

    def with_aux(self, step: Step, x: Tensor, dead: Tensor | None) -> Step:
        """`step` with AuxK added: the aux_k most active of the dead latents reconstruct the detached residual.

        aux_weight * mean over tokens and dimensions of |(x - x_hat) - z_dead W_dec|^2 (Gao et al. 2024, section A.2).
        """
        if dead is None or self.cfg.aux_weight == 0:
            return step
        residual = x - step.x_hat  # [n, d_in]
        z = torch.addmm(self.b_enc[dead], x - self.b_dec.detach(), self.W_enc[:, dead]).relu()  # [n, n_dead]
        if len(dead) > self.cfg.aux_k:
            values, where = row_topk(z, self.cfg.aux_k)
            z = torch.zeros_like(z).scatter(1, where, values)
        aux = (residual - z @ self.W_dec[dead]).square().mean()
        return step._replace(loss=step.loss + self.cfg.aux_weight * aux)

    @torch.no_grad()
    def describe(self) -> dict[str, Any]:
        """What sae.json holds: all that is needed beside the tensors to use this SAE on raw activations."""
        return {"config": dict(vars(self.cfg)), "d_in": self.d_in, "modes": list(self.modes)}
