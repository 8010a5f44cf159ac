"""Sparse latents against their dense counterpart, and what is refused of latents made elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saebench.checks import InputError
from saebench.sparse import SparseLatents
from tests.test_nested import SHAPES, example


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


@pytest.mark.parametrize(
    ("offsets", "indices", "message"),
    [
        ([0, 2, 1, 3], [0, 1, 2], "offsets must rise"),
        ([0, 1, 2], [0, 1, 2], "offsets must rise from 0 to the number of entries, 3"),
        ([1, 2, 3], [0, 1, 2], "offsets must rise"),
        ([0, 1, 3], [0, 5, 2], "indices run from 0 to 5; they must lie in"),
        ([0, 1, 3], [0, -1, 2], "indices run from -1 to 2"),
    ],
)
def test_latents_made_elsewhere_are_checked(offsets: list[int], indices: list[int], message: str) -> None:
    latents = SparseLatents(torch.tensor(offsets), torch.tensor(indices), torch.ones(3), 5)
    with pytest.raises(InputError, match=message):
        latents.check()


def test_right_latents_pass_the_check() -> None:
    nothing: Tensor = torch.zeros(0, dtype=torch.int64)
    SparseLatents(torch.zeros(4, dtype=torch.int64), nothing, torch.zeros(0), 5).check()
    SparseLatents.from_dense(torch.eye(3)).check()
