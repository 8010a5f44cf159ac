"""Adam over an SAE's parameters, with decoder rows of unit norm.

The gradient's part along a decoder row is removed before the step and the row's norm restored after it, in one pass over
blocks of rows (on a GPU one kernel). Every matrix is seen latent by latent, [d_sae, d_in], whatever the parameter's shape.

Parameters that ranks share out (sharded.py) are stepped, each rank its rows, with moments of these rows alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from saebench import kernels
from saebench.config import TrainConfig
from saebench.parallel import local, own, whole

EPS = 1e-8
BLOCK = 512  # rows in a pass on a CPU, so that parameter, gradient and moments stay in cache


@dataclass
class Slot:
    """A parameter with its moments; `unit` says that its rows keep unit norm, `factor` multiplies the learning rate.

    Of a parameter that ranks share out all of this is about the rows held here.
    """

    parameter: nn.Parameter
    factor: float
    unit: bool

    def __post_init__(self) -> None:
        held = local(self.parameter)
        self.by_column = held.dim() == 2 and not held.is_contiguous()  # W_enc is stored so
        rows = self.rows(self.parameter)
        assert rows.data_ptr() == held.data_ptr(), "the rows of a parameter must be seen, not copied"
        self.mean, self.square = torch.zeros_like(rows), torch.zeros_like(rows)

    def rows(self, t: Tensor) -> Tensor:
        """What is held here of a tensor of the parameter's shape, latent by latent and contiguous."""
        held = local(t)
        return (held.T if self.by_column else held).contiguous()

    def own(self, rows: Tensor) -> Tensor:
        """Of a tensor latent by latent the rows held here."""
        return own(rows, self.parameter)

    def whole(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, given those held here; each rank must ask."""
        return whole(rows, self.parameter)


class Adam:
    """Adam (Kingma and Ba 2015, with their bias correction; eps 1e-8) for named parameters of an SAE.

    A parameter named in `factors` learns at that multiple of the learning rate; those named in `unit` [d_sae, d_in] keep
    rows of unit norm. `copies` are bfloat16 twins of parameters, by name, brought up to date by each step.
    """

    def __init__(
        self, named: Mapping[str, nn.Parameter], cfg: TrainConfig, factors: dict[str, float], unit: Sequence[str] = ("W_dec",)
    ) -> None:  # fmt: skip
        self.betas, self.steps = (cfg.beta1, cfg.beta2), 0
        self.slots = {name: Slot(p, factors.get(name, 1.0), name in unit) for name, p in named.items()}
        self.copies: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One step at this learning rate from the gradients in `.grad`, which are used up. No gradient means no step."""
        self.steps += 1
        for name, slot in self.slots.items():
            if slot.parameter.grad is None:
                continue
            copy = self.copies.get(name)
            seen = None if copy is None else slot.rows(copy)
            self.advance(slot, slot.rows(slot.parameter), slot.rows(slot.parameter.grad), lr * slot.factor, seen)

    def advance(self, slot: Slot, p: Tensor, grad: Tensor, lr: float, copy: Tensor | None) -> None:
        """Step the rows p of one parameter, given their gradient and their copy, all latent by latent."""
        if p.dim() == 2 and p.dtype == torch.float32 and kernels.usable(p):
            from saebench.kernels.rows import adam_rows_

            b1, b2 = self.betas
            adam_rows_(
                p, grad, slot.mean, slot.square, lr=lr, beta1=b1, beta2=b2, eps=EPS, step=self.steps, unit=slot.unit, copy=copy
            )  # fmt: skip
            return
        size = BLOCK if slot.unit and not p.is_cuda else len(p)
        parts = (t.split(size) for t in (p, grad, slot.mean, slot.square))
        for block, its_grad, mean, square in zip(*parts, strict=True):
            self.plain(block, its_grad, mean, square, lr, slot.unit)
        if copy is not None:
            copy.copy_(p)

    def moments(self) -> Iterator[tuple[str, Tensor]]:
        """mean.NAME and square.NAME of every parameter, of all ranks, one at a time; each rank must go through them."""
        for name, slot in self.slots.items():
            yield f"mean.{name}", slot.whole(slot.mean)
            yield f"square.{name}", slot.whole(slot.square)

    def plain(self, p: Tensor, grad: Tensor, mean: Tensor, square: Tensor, lr: float, unit: bool) -> None:
        """The update in torch: projection, fused Adam, renormalisation."""
        if unit:
            remove_parallel(grad, p)
        before = [torch.tensor(float(self.steps - 1), device=p.device)]
        b1, b2 = self.betas
        adam(
            [p], [grad], [mean], [square], [], before, fused=True, amsgrad=False, beta1=b1, beta2=b2, lr=lr,
            weight_decay=0.0, eps=EPS, maximize=False,
        )  # fmt: skip
        if unit:
            normalise_rows(p)


@torch.no_grad()
def remove_parallel(grad: Tensor, rows: Tensor) -> None:
    """Remove, in place, from each gradient row its part along the unit row of `rows`; both [d_sae, d_in]."""
    along = torch.linalg.vecdot(grad, rows).unsqueeze(1)  # [d_sae, 1]
    grad.addcmul_(rows, along, value=-1)


@torch.no_grad()
def normalise_rows(rows: Tensor) -> None:
    """Scale, in place, each row [d_sae, d_in] to unit norm; a zero row stays zero."""
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    rows.div_(torch.where(norm > 0, norm, 1.0))
