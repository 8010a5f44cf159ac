"""An SAE in training whose weights, gradients and moments ranks share out by torch's fully_shard (FSDP2, shard=on).

Between steps a rank holds its latents alone. For its own step the weights are gathered, in the precision of the products, and
afterwards the gradients' means are scattered; so of a gang only one member at a time is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from saebench.parallel import local, own, peers_within, whole
from saebench.saes import SAE, Step
from saebench.saes.base import Tables

TWINS = ("W_enc", "W_dec")  # parameters that are multiplied in bfloat16 in mixed precision


class Rows(nn.Module):
    """Parameters of an SAE by name, each latent by latent and contiguous, as fully_shard wants them."""

    def __init__(self, rows: dict[str, Tensor]) -> None:
        super().__init__()
        for name, value in rows.items():
            self.register_parameter(name, nn.Parameter(value))


class LossOf(nn.Module):
    """An SAE's loss as a module's forward, so that functional_call can give it other weights."""

    def __init__(self, sae: SAE) -> None:
        super().__init__()
        self.sae = sae

    def forward(self, x: Tensor, factor: float) -> Step:
        return self.sae.loss(x, factor)


class Sharded(nn.Module):
    """The parameters of `sae` shared out over its ranks; the SAE itself is left without any between steps.

    W_enc and W_dec are gathered apart from the others, in bfloat16 if `mixed`, in which their gradients are rounded, too;
    means over ranks, moments and weights are float32.
    """

    def __init__(self, sae: SAE, device: torch.device, mixed: bool) -> None:
        super().__init__()
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        named = dict(sae.named_parameters())
        self.by_column = {name for name, p in named.items() if p.dim() == 2 and not p.is_contiguous()}
        rows = {name: self.laid(name, p.detach()).to(device) for name, p in named.items()}
        self.tables = nn.ModuleList([Rows({name: rows.pop(name)}) for name in TWINS])
        self.others = Rows(rows)
        self.loss_of = (LossOf(sae),)  # in a tuple, as its parameters are not this module's
        self.mixed, self.aux = mixed, torch.zeros((), device=device)
        self.drop()
        mesh = init_device_mesh(device.type, (sae.world.size,))
        half = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if mixed else MixedPrecisionPolicy()
        for table in self.tables:
            fully_shard(table, mesh=mesh, mp_policy=half)
        fully_shard(self, mesh=mesh)

    @property
    def sae(self) -> SAE:
        """The SAE whose parameters these are."""
        return self.loss_of[0].sae

    def laid(self, name: str, weights: Tensor) -> Tensor:
        """A parameter, as the SAE has it, latent by latent; and the other way round."""
        return weights.T if name in self.by_column else weights

    def shared(self) -> dict[str, nn.Parameter]:
        """The parameters by name, latent by latent, as far as this rank holds them between steps."""
        return {name: p for part in (*self.tables, self.others) for name, p in part.named_parameters()}

    def gathered(self) -> dict[str, Tensor]:
        """The parameters, whole and as the SAE has them, with what gives their gradients back to the ranks."""
        for table in self.tables:
            table.unshard()  # pyright: ignore[reportCallIssue]
        return {name: self.laid(name, p) for name, p in self.shared().items()}

    def forward(self, x: Tensor, factor: float, dead: Tensor | None) -> Step:
        """The SAE's loss, whose backward adds the gradients of AuxK for the latents `dead` [n_dead], its value then in `aux`."""
        sae, weights = self.sae, self.gathered()
        add = Added(sae, x, dead, self.mixed) if dead is not None and sae.cfg.aux_weight > 0 else None
        if add is not None:
            add.weights = Tables(**{name: weights[name].detach() for name in Tables._fields})
            names = ("W_enc", "b_enc", "W_dec")
            weights |= zip(names, AddLater.apply(add, *(weights[name] for name in names)), strict=True)  # pyright: ignore[reportArgumentType]
        if self.mixed:
            sae.copies = {name: weights[name].detach() for name in TWINS}
        step = torch.func.functional_call(
            self.loss_of[0], {f"sae.{name}": w for name, w in weights.items()}, (x, factor)
        )
        sae.copies = {}
        if add is not None:
            add.x_hat, add.value = step.x_hat, self.aux
        return step

    def step(self, x: Tensor, factor: float, dead: Tensor | None) -> Step:
        """Loss and gradients, those of AuxK among them, averaged over ranks in `.grad` of the `shared` parameters."""
        self.aux.zero_()
        with peers_within():
            step = self(x, factor, dead)
            step.loss.backward()
        return step._replace(loss=step.loss + self.aux)

    @torch.no_grad()
    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Each parameter whole and as the SAE has it, float32, one at a time; every rank must go through them."""
        for name, p in self.shared().items():
            yield name, self.laid(name, whole(local(p), p))

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor]) -> None:
        """Take over this rank's part of parameters as `items` gives them."""
        for name, p in self.shared().items():
            local(p).copy_(own(self.laid(name, weights[name]), p))

    @contextmanager
    def opened(self) -> Iterator[SAE]:
        """The SAE with its parameters, whole, for use without gradients; every rank must ask."""
        for name, value in self.items():
            setattr(self.sae, name, nn.Parameter(value))
        try:
            yield self.sae
        finally:
            self.drop()

    def drop(self) -> None:
        """Leave the SAE without parameters."""
        for name, p in list(self.sae.named_parameters()):
            setattr(self.sae, name, nn.Parameter(p.detach().new_empty(0)))


class Added:
    """AuxK as what is added to the gradients of a loss on their way back."""

    weights: Tables
    x_hat: Tensor
    value: Tensor

    def __init__(self, sae: SAE, x: Tensor, dead: Tensor, mixed: bool) -> None:
        self.sae, self.x, self.dead, self.mixed = sae, x, dead, mixed

    def __call__(self, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor) -> None:
        """Add to the gradients, and set `value`."""
        into = Tables(W_enc, b_enc, W_dec, self.weights.b_dec)
        with torch.autocast(self.x.device.type, torch.bfloat16, enabled=self.mixed):
            self.value.copy_(self.sae.add_aux(self.x, self.x_hat, self.dead, self.weights, into))


class AddLater(torch.autograd.Function):
    """Tensors as they are; `add` gets their gradients, on the way back, to add to them in place."""

    @staticmethod
    def forward(ctx: Any, add: Callable[..., None], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.add = add
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ctx.add(*grads)
        return None, *grads
