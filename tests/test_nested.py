"""The nested loss and the encoder's gradients against their plain definitions, in values and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from saebench import nested
from saebench.nested import NestedLoss, attach_encoder, nested_loss, nested_loss_reference
from saebench.saes import build
from saebench.sparse import SparseLatents
from tests.configs import sae_config, stats_of, synthetic

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


def graded(
    function: Callable[..., NestedLoss],
    e: dict[str, Tensor],
    latents: SparseLatents,
    segments: Tensor,
    scale: float,
    groups: int | None = None,
) -> tuple[NestedLoss, list[Tensor | None]]:
    """The loss by `function`, and the gradients of `scale` times it in values, W_dec and b_dec."""
    leaves = [t.clone().requires_grad_() for t in (latents.values, e["W_dec"], e["b_dec"])]
    n_levels = (len(segments) - 1) // latents.rows
    shape = (n_levels,) if groups is None else (groups, n_levels)
    weights = torch.linspace(0.5, 1.5, n_levels * (groups or 1), dtype=e["x"].dtype).view(shape)
    result = function(latents.with_values(leaves[0]), segments, weights, leaves[1], leaves[2], e["x"])
    (scale * result.loss).backward()
    return result, [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_levels", [1, 2, 6])
@pytest.mark.parametrize("chunk", [1, 1 << 25])
def test_nested_loss_equals_its_definition(
    shape: tuple[int, int, int, int], n_levels: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nested, "MAX_LEVEL_ELEMENTS", chunk * shape[0] * n_levels)
    e = example(*shape)
    latents = SparseLatents.from_dense(e["z"])
    segments = random_segments(latents, n_levels)
    for scale in (1.0, 3.0):
        fast, fast_grads = graded(nested_loss, e, latents, segments, scale)
        plain, plain_grads = graded(nested_loss_reference, e, latents, segments, scale)
        torch.testing.assert_close(tuple(fast), tuple(plain), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(fast_grads, plain_grads, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("n_levels", [1, 4])
@pytest.mark.parametrize("groups", [1, 3])
def test_groups_of_rows_have_weights_of_their_own(n_levels: int, groups: int) -> None:
    e = example(6, 5, 11, 3)
    latents = SparseLatents.from_dense(e["z"])
    segments = random_segments(latents, n_levels)
    fast, fast_grads = graded(nested_loss, e, latents, segments, 1.0, groups)
    plain, plain_grads = graded(nested_loss_reference, e, latents, segments, 1.0, groups)
    assert fast.levels.shape == (groups, n_levels)
    torch.testing.assert_close(tuple(fast), tuple(plain), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fast_grads, plain_grads, rtol=1e-11, atol=1e-11)
    weights = torch.linspace(0.5, 1.5, n_levels * groups, dtype=torch.float64).view(groups, n_levels)
    size = 6 // groups
    apart = 0.0
    for g in range(groups):
        dense = {"z": e["z"][g * size :][:size], "x": e["x"][g * size :][:size]}
        mine = SparseLatents.from_dense(dense["z"])
        ends = segments[g * size * n_levels : (g + 1) * size * n_levels + 1]
        part = nested_loss_reference(mine, ends - ends[0], weights[g], e["W_dec"], e["b_dec"], dense["x"])
        apart += part.loss.item()
    assert fast.loss.item() == pytest.approx(apart, rel=1e-12)


@pytest.mark.parametrize("d_in", [576, 640, 768, 896, 2304])
@pytest.mark.parametrize(("rows", "k", "n_levels"), [(1, 1, 1), (33, 7, 3), (20, 8, 8)])
def test_float32_stays_within_rounding_of_float64(d_in: int, rows: int, k: int, n_levels: int) -> None:
    exact = example(rows, d_in, 1001, k)
    rough = {name: t.float() for name, t in exact.items()}
    wide, narrow = SparseLatents.from_dense(exact["z"]), SparseLatents.from_dense(rough["z"])
    segments = random_segments(wide, n_levels)
    truth, truth_grads = graded(nested_loss_reference, exact, wide, segments, 1.0)
    found, found_grads = graded(nested_loss, rough, narrow, segments, 1.0)
    torch.testing.assert_close(found.loss.double(), truth.loss, rtol=2e-6, atol=0)
    for fast, plain in zip(found_grads, truth_grads, strict=True):
        assert fast is not None
        assert plain is not None
        torch.testing.assert_close(fast.double(), plain, rtol=0, atol=2e-6 * float(plain.abs().max()))


def test_gradcheck() -> None:
    e = example(3, 5, 7, 3)
    latents = SparseLatents.from_dense(e["z"])
    segments = random_segments(latents, 4)
    weights = torch.tensor([0.5, 0.0, 2.0, 1.0], dtype=torch.float64)

    def loss(values: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
        return nested_loss(latents.with_values(values), segments, weights, W_dec, b_dec, e["x"]).loss

    inputs = [t.clone().requires_grad_() for t in (latents.values, e["W_dec"], e["b_dec"])]
    assert torch.autograd.gradcheck(loss, inputs)


def test_rows_without_entries_and_latents_without_rows() -> None:
    e = example(4, 6, 9, 2)
    e["z"][1] = 0
    e["z"][:, 3:] = 0
    latents = SparseLatents.from_dense(e["z"])
    segments = random_segments(latents, 3)
    fast, fast_grads = graded(nested_loss, e, latents, segments, 1.0)
    plain, plain_grads = graded(nested_loss_reference, e, latents, segments, 1.0)
    torch.testing.assert_close(tuple(fast), tuple(plain))
    torch.testing.assert_close(fast_grads, plain_grads)
    assert fast_grads[1] is not None
    assert bool((fast_grads[1][3:] == 0).all())


def test_the_same_input_gives_the_same_bits() -> None:
    e = {name: t.float() for name, t in example(64, 96, 50, 8).items()}
    latents = SparseLatents.from_dense(e["z"])
    segments = random_segments(latents, 3)
    first, second = (graded(nested_loss, e, latents, segments, 1.0) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True) if a is not None and b is not None)


@pytest.mark.parametrize("variant", ["topk", "batchtopk", "matryoshka", "hierarchical", "lattice"])
def test_nothing_dense_is_kept_for_backward(variant: str) -> None:
    """d_sae is far above d_in, so that any [n, d_sae] would outweigh every parameter's gradient."""
    sae = build(sae_config(variant, d_sae=4000), stats_of(synthetic(64, 8)), 0)
    saved: list[int] = []

    def note(t: Tensor) -> Tensor:
        saved.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        sae.loss(sae.normalise(synthetic(512, 8)).x, 1.0)
    assert max(saved) == 4000 * 8, "the decoder's gradient is the largest thing kept"


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
            values = attach_encoder(latents, e["x"] - b_dec.detach(), W_enc, b_enc, b_dec).values.view(rows, k)
        else:
            values = acts.gather(1, where)
        (values * upstream).sum().backward()
        grads.append([values.detach(), W_enc.grad, b_enc.grad, b_dec.grad])
    for fast, plain in zip(grads[0], grads[1], strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-11, atol=1e-11)
