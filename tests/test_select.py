"""Selection is exact: the values are those of the plain definition for every input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saebench.select import batch_topk_latents, flat_topk, row_topk, threshold_latents, topk_latents

HARD = {
    "equal": lambda n, f: torch.ones(n, f),
    "zero": lambda n, f: torch.zeros(n, f),
    "one row has all": lambda n, f: torch.cat([torch.rand(1, f) + 1, torch.zeros(n - 1, f)]),
    "few positives": lambda n, f: torch.relu(torch.randn(n, f) - 3.5),
    "inf": lambda n, f: torch.where(torch.rand(n, f) > 0.99, torch.inf, torch.rand(n, f)),
    "bf16 ties": lambda n, f: torch.rand(n, f).bfloat16().relu(),
    "rising": lambda n, f: torch.arange(n * f, dtype=torch.float32).view(n, f),
}


def check(acts: Tensor, k: int) -> None:
    values, indices = row_topk(acts, k)
    assert torch.equal(values, acts.topk(k, dim=1).values)
    assert torch.equal(acts.gather(1, indices), values)
    assert all(len(set(row)) == k for row in indices.tolist())
    found, flat = flat_topk(acts, len(acts) * k)
    assert torch.equal(found.sort(descending=True).values, acts.reshape(-1).topk(len(acts) * k).values)
    assert torch.equal(acts.reshape(-1)[flat], found)
    assert bool((flat.diff() > 0).all()), "positions rise, so they are distinct"


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("shape", [(3, 7, 2), (4, 1000, 3), (8, 2081, 5), (2, 4096, 64)])
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
