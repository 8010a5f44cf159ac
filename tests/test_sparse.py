"""The sparse latents and the nested loss against their plain definitions, in values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saebench import sparse
from saebench.sparse import SparseLatents, attach_encoder, nested_loss, nested_loss_reference

SHAPES = [(1, 1, 1, 1), (7, 5, 11, 3), (16, 640, 33, 4), (9, 577, 129, 5)]  # rows, d_in, d_sae, k


def example(rows: int, d_in: int, d_sae: int, k: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Seeded dense activations with exactly k positive entries a row, and weights."""
    g = torch.Generator().manual_seed(rows * 1000 + d_in)
    scores = torch.rand(rows, d_sae, generator=g, dtype=dtype)
    values, where = scores.topk(k, dim=1)
    return {
        "z": torch.zeros_like(scores).scatter(1, where, values + 0.1),
        "W_dec": torch.randn(d_sae, d_in, generator=g, dtype=dtype),
        "b_dec": torch.randn(d_in, generator=g, dtype=dtype),
        "x": torch.randn(rows, d_in, generator=g, dtype=dtype),
    }


def random_segments(latents: SparseLatents, n_levels: int) -> Tensor:
    """Cut each row into levels at random places, some of them empty."""
    g = torch.Generator().manual_seed(0)
    counts = latents.offsets.diff()
    cuts = (torch.rand(latents.rows, n_levels - 1, generator=g) * (counts + 1).unsqueeze(1)).long().sort(1).values
    starts = torch.cat([torch.zeros(latents.rows, 1, dtype=torch.long), cuts], 1) + latents.offsets[:-1, None]
    return torch.cat([starts.reshape(-1), latents.offsets[-1:]])


@pytest.mark.parametrize("shape", SHAPES)
def test_dense_round_trip(shape: tuple[int, int, int, int]) -> None:
    z = example(*shape)["z"]
    latents = SparseLatents.from_dense(z)
    assert torch.equal(latents.dense(), z)
    assert torch.equal(latents.l0(), (z > 0).sum(1))
    assert torch.equal(latents.fired(), (z > 0).any(0))
    keep = torch.arange(z.shape[1]) % 2 == 0
    assert torch.equal(latents.kept(keep).dense(), torch.where(keep, z, 0.0))
    W_dec = example(*shape)["W_dec"]
    torch.testing.assert_close(latents.decode(W_dec), z @ W_dec)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_levels", [1, 2, 6])
@pytest.mark.parametrize("chunk", [1, 1 << 25])
def test_nested_loss_equals_its_definition(
    shape: tuple[int, int, int, int], n_levels: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse, "MAX_LEVEL_ELEMENTS", chunk * shape[0] * n_levels)
    e = example(*shape)
    latents = SparseLatents.from_dense(e["z"])
    segments = random_segments(latents, n_levels)
    weights = torch.linspace(0.5, 1.5, n_levels, dtype=torch.float64)
    results, grads = [], []
    for function in (nested_loss, nested_loss_reference):
        leaves = [latents.values.clone(), e["W_dec"].clone(), e["b_dec"].clone()]
        for leaf in leaves:
            leaf.requires_grad_()
        result = function(latents.with_values(leaves[0]), segments, weights, leaves[1], leaves[2], e["x"])
        (3 * result.loss).backward()
        results.append(result)
        grads.append([leaf.grad for leaf in leaves])
    for fast, plain in zip(results[0], results[1], strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-12)
    for fast, plain in zip(grads[0], grads[1], strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-11, atol=1e-11)


def test_nested_loss_by_hand() -> None:
    """One row, two latents along the axes, two levels: |x|^2 pieces can be counted on fingers."""
    latents = SparseLatents(torch.tensor([0, 2]), torch.tensor([0, 1]), torch.tensor([1.0, 2.0]), 2)
    result = nested_loss(
        latents,
        torch.tensor([0, 1, 2]),
        torch.tensor([1.0, 10.0]),
        torch.eye(2),
        torch.zeros(2),
        torch.tensor([[3.0, 4.0]]),
    )
    assert result.levels.tolist() == [4 + 16, 4 + 4]
    assert result.loss.item() == 20 + 80
    assert result.x_hat.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("shape", SHAPES)
def test_attached_encoder_has_relus_gradients(shape: tuple[int, int, int, int]) -> None:
    rows, d_in, d_sae, k = shape
    e = example(*shape)
    g = torch.Generator().manual_seed(1)
    parameters = [torch.randn(d_in, d_sae, generator=g).double(), torch.randn(d_sae, generator=g).double(), e["b_dec"]]
    upstream = torch.randn(rows, k, generator=g).double()
    grads = []
    for fast in (True, False):
        W_enc, b_enc, b_dec = (p.clone().requires_grad_() for p in parameters)
        acts = torch.relu((e["x"] - b_dec) @ W_enc + b_enc)
        where = acts.detach().topk(k, dim=1).indices
        if fast:
            latents = SparseLatents.from_rows(acts.detach().gather(1, where), where, d_sae)
            values = attach_encoder(latents, e["x"], W_enc, b_enc, b_dec).values.view(rows, k)
        else:
            values = acts.gather(1, where)
        (values * upstream).sum().backward()
        grads.append([values.detach(), W_enc.grad, b_enc.grad, b_dec.grad])
    for fast, plain in zip(grads[0], grads[1], strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-11, atol=1e-11)
