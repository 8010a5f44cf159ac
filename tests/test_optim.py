"""Our Adam against torch's, with the projection and the renormalisation around it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from saebench import optim
from saebench.optim import Adam, normalise_rows, remove_parallel
from tests.configs import run_config


class Matrices(nn.Module):
    """An encoder stored column by column, a decoder, a bias."""

    def __init__(self, d_in: int, d_sae: int) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.W_dec = nn.Parameter(torch.randn(d_sae, d_in, generator=g))
        normalise_rows(self.W_dec)
        self.W_enc = nn.Parameter(self.W_dec.detach().clone().T)
        self.b_enc = nn.Parameter(torch.randn(d_sae, generator=g))


def gradients(module: Matrices, step: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(100 + step)
    return [torch.randn(p.shape, generator=g) for p in module.parameters()]


@pytest.mark.parametrize("block", [4, 512])
@pytest.mark.parametrize(("d_in", "d_sae"), [(5, 11), (1, 3), (24, 1), (33, 64)])
def test_adam_is_torchs_with_projection_and_unit_rows(
    d_in: int, d_sae: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim, "BLOCK", block)
    cfg = run_config("train.beta1=0.8", "train.beta2=0.95").train
    ours, theirs = Matrices(d_in, d_sae), Matrices(d_in, d_sae)
    mine = Adam(dict(ours.named_parameters()), cfg, {"b_enc": 10.0})
    mine.copies = {"W_enc": ours.W_enc.detach().bfloat16(), "W_dec": ours.W_dec.detach().bfloat16()}
    groups = [{"params": [p], "lr": 0.1 if name == "b_enc" else 0.01} for name, p in theirs.named_parameters()]
    reference = torch.optim.Adam(groups, betas=(0.8, 0.95))
    for step in range(6):
        for module in (ours, theirs):
            for p, grad in zip(module.parameters(), gradients(module, step), strict=True):
                p.grad = grad.clone()
        mine.step(0.01)
        assert theirs.W_dec.grad is not None
        remove_parallel(theirs.W_dec.grad, theirs.W_dec)
        reference.step()
        normalise_rows(theirs.W_dec)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=2e-6, atol=2e-7)
    for name, copy in mine.copies.items():
        assert torch.equal(copy, getattr(ours, name).bfloat16())


def test_a_zero_row_stays_zero_and_a_parameter_without_gradient_stays_put() -> None:
    module = Matrices(4, 3)
    with torch.no_grad():
        module.W_dec[1] = 0
    before = module.b_enc.detach().clone()
    module.W_dec.grad = torch.zeros_like(module.W_dec)
    Adam(dict(module.named_parameters()), run_config().train, {}).step(0.1)
    assert bool((module.W_dec[1] == 0).all())
    assert torch.equal(module.b_enc, before)
