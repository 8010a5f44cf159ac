"""Selection is exact: the values are those of the plain definition for every input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saebench.select import (
    batch_topk_latents,
    by_partition,
    by_topk,
    flat_topk,
    ranked_latents,
    row_topk,
    threshold_latents,
    top_mask,
    topk_latents,
)

HARD = {
    "equal": lambda n, f: torch.ones(n, f),
    "zero": lambda n, f: torch.zeros(n, f),
    "one row has all": lambda n, f: torch.cat([torch.rand(1, f) + 1, torch.zeros(n - 1, f)]),
    "few positives": lambda n, f: torch.relu(torch.randn(n, f) - 3.5),
    "inf": lambda n, f: torch.where(torch.rand(n, f) > 0.99, torch.inf, torch.rand(n, f)),
    "some NaN": lambda n, f: torch.where(torch.rand(n, f) > 0.999, torch.nan, torch.rand(n, f)),
    "a row of NaN": lambda n, f: torch.cat([torch.full((1, f), torch.nan), torch.rand(n - 1, f)]),
    "two values": lambda n, f: (torch.rand(n, f) > 0.9).float(),
    "negative": lambda n, f: -torch.rand(n, f),
    "-inf": lambda n, f: torch.where(torch.rand(n, f) > 0.01, -torch.inf, torch.rand(n, f)),
    "bf16 ties": lambda n, f: torch.rand(n, f).bfloat16().relu(),
    "rising": lambda n, f: torch.arange(n * f, dtype=torch.float32).view(n, f),
}


def same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors hold the same values, NaN equal to itself."""
    return torch.equal(left.nan_to_num(nan=-7.0), right.nan_to_num(nan=-7.0))


def check(acts: Tensor, k: int) -> None:
    values, indices = row_topk(acts, k)
    assert same(values.sort(1, descending=True).values, acts.topk(k, dim=1).values)
    assert same(acts.gather(1, indices), values)
    assert bool((indices.diff(dim=1) > 0).all()), "indices rise, so they are distinct"
    found, flat = flat_topk(acts, len(acts) * k)
    assert same(found.sort(descending=True).values, acts.reshape(-1).topk(len(acts) * k).values)
    assert same(acts.reshape(-1)[flat], found)
    assert bool((flat.diff() > 0).all()), "positions rise, so they are distinct"
    assert torch.equal(row_topk(acts, k)[1], indices), "the same input gives the same result"
    mask = top_mask(acts, k)
    assert bool((mask.sum(1) == k).all())
    assert same(acts[mask].view(len(acts), k).sort(1, descending=True).values, acts.topk(k, dim=1).values)


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("shape", [(3, 7, 2), (1, 1, 1), (4, 1000, 3), (8, 2081, 5), (2, 4096, 64), (5, 640, 1)])
def test_hard_cases(name: str, shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    n, f, k = shape
    check(HARD[name](n, f), k)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 6), f=st.integers(1, 700), levels=st.integers(1, 50), data=st.data())
def test_any_shape_with_ties(n: int, f: int, levels: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, min(f, 20)))
    seed = data.draw(st.integers(0, 100))
    check(torch.randint(0, levels, (n, f), generator=torch.Generator().manual_seed(seed)).float(), k)


def test_latents() -> None:
    acts = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 5.0]])
    assert topk_latents(acts, 1).dense().tolist() == [[0, 3, 0], [0, 0, 5]]
    assert batch_topk_latents(torch.tensor([[0.0, 3.0, 4.0], [2.0, 0.0, 1.0]]), 1).dense().tolist() == [
        [0, 3, 4],
        [0, 0, 0],
    ]
    assert threshold_latents(acts, 2.0).dense().tolist() == [[0, 3, 0], [0, 0, 5]]
    ragged = batch_topk_latents(torch.tensor([[1.0, 3.0, 4.0], [0.0, 0.0, 0.0], [5.0, 0.0, 0.0]]), 1)
    assert ragged.offsets.tolist() == [0, 2, 2, 3]
    ranked = ranked_latents(torch.tensor([[1.0, -2.0, 4.0], [-1.0, -3.0, 2.0]]), 2)
    assert ranked.indices.tolist() == [2, 0, 2, 0]
    assert ranked.values.tolist() == [4, 1, 2, 0], "a latent below 0 stands as an entry of value 0"


@pytest.mark.parametrize("rows", [1, 3])
def test_torch_and_numpy_select_the_same_values(rows: int) -> None:
    values = torch.randint(0, 9, (rows, 301), generator=torch.Generator().manual_seed(0)).float()
    for k in (1, 7, 300, 301):
        by_numpy, by_torch = by_partition(values, k), by_topk(values, k)
        assert by_numpy.shape == by_torch.shape == (rows, k)
        assert same(values.gather(1, by_numpy).sort(1).values, values.gather(1, by_torch).sort(1).values)
