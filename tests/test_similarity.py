"""Similarity of representations: by hand, against numpy, invariances, and the bias that the plain estimate of CKA has."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from saebench.pipeline import run
from saebench.seeds import write_seeds
from saebench.similarity import Dissimilarities, Gram, cka_unbiased, load_gram, pearson, ranks, save_gram, u_centred
from saebench.sparse import SparseLatents
from saebench.tables import write_tables
from tests.configs import synthetic
from tests.test_pipeline import rows_of, small


def latents(n: int, d_sae: int, seed: int = 0) -> Tensor:
    """Sparse latents [n, d_sae], a tenth of them active."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.rand(n, d_sae, generator=generator)
    return torch.where(torch.rand(n, d_sae, generator=generator) < 0.1, z, 0.0)


def gram(z: Tensor, parts: int = 2) -> Gram:
    return Gram.of([SparseLatents.from_dense(part) for part in z.chunk(parts)])


def test_ranks_share_ties() -> None:
    assert ranks(torch.tensor([10.0, 20.0, 20.0, 5.0])).tolist() == [2, 3.5, 3.5, 1]
    assert pearson(torch.ones(4), torch.arange(4.0)) == 0


def test_rsa_against_numpy_and_invariance() -> None:
    x, y = synthetic(40), synthetic(40, seed=2)
    upper = np.triu_indices(40, 1)
    a, b = (1 - np.corrcoef(v.numpy())[upper] for v in (x, y))
    row = Dissimilarities.of(x).rsa(Dissimilarities.of(y))
    assert row["rsa_pearson"] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-5)
    order = [np.argsort(np.argsort(v)) for v in (a, b)]
    assert row["rsa_spearman"] == pytest.approx(np.corrcoef(order[0], order[1])[0, 1], abs=1e-4)
    moved = Dissimilarities.of(x * 3 + 2).rsa(Dissimilarities.of(x))  # of each token's own scale and shift
    assert moved["rsa_pearson"] == pytest.approx(1, abs=1e-6)


def test_rsa_of_latents_is_that_of_their_dense_rows() -> None:
    z, w = latents(30, 50), latents(30, 80, seed=1)
    expected = Dissimilarities.of(z).rsa(Dissimilarities.of(w))
    found = gram(z).similarity(gram(w, parts=3))
    assert found["rsa_latents_pearson"] == pytest.approx(expected["rsa_pearson"], abs=1e-6)
    assert found["rsa_latents_spearman"] == pytest.approx(expected["rsa_spearman"], abs=1e-4)


def test_a_token_without_active_latents_correlates_zero() -> None:
    z = latents(6, 20)
    z[2] = 0
    values = gram(z).dissimilarities().values  # pairs (0, 1), (0, 2), ...
    assert values[1] == 1
    assert bool(values.isfinite().all())


def test_unbiased_cka_against_its_definition_by_sums() -> None:
    x, y = synthetic(12).double(), synthetic(12, seed=4).double()
    k, m = (v @ v.T for v in (x, y))

    def hsic(a: Tensor, b: Tensor) -> float:
        """Song et al. 2012, equation 5."""
        n = len(a)
        a, b = a - torch.diag(a.diagonal()), b - torch.diag(b.diagonal())
        crossed = (a.sum() * b.sum()) / ((n - 1) * (n - 2)) - 2 * (a.sum(0) @ b.sum(0)) / (n - 2)
        return float(((a * b).sum() + crossed) / (n * (n - 3)))

    assert cka_unbiased(k, m) == pytest.approx(hsic(k, m) / (hsic(k, k) * hsic(m, m)) ** 0.5, rel=1e-9)
    assert u_centred(k).sum(0).abs().max() < 1e-9 * k.abs().max()


def test_unbiased_cka_is_invariant_and_near_zero_for_unrelated_latents() -> None:
    z, w = latents(200, 4000), latents(200, 4000, seed=1)
    shuffled = z[:, torch.randperm(4000, generator=torch.Generator().manual_seed(0))] * 3
    assert gram(z).similarity(gram(shuffled))["cka_latents"] == pytest.approx(1, abs=1e-5)
    assert abs(gram(z).similarity(gram(w))["cka_latents"]) < 0.05
    centring = torch.eye(200, dtype=torch.float64) - 1 / 200
    a, b = (centring @ gram(v).inner @ centring for v in (z, w))
    assert float((a * b).sum() / (a.norm() * b.norm())) > 0.8  # the plain estimate, for latents that share nothing
    assert math.isnan(cka_unbiased(torch.eye(3), torch.eye(3)))
    assert cka_unbiased(torch.ones(5, 5), torch.eye(5)) == 0


def test_grams_of_some_tokens_and_on_disk(tmp_path: Path) -> None:
    z = latents(10, 40)
    chosen = torch.arange(10) % 3 > 0
    part, alone = gram(z).of_tokens(chosen), gram(z[chosen])
    torch.testing.assert_close(part.inner, alone.inner)
    torch.testing.assert_close(part.total, alone.total)
    save_gram(tmp_path / "g.safetensors", gram(z), chosen)
    back, typical = load_gram(tmp_path / "g.safetensors")
    assert (typical == chosen).all()
    assert back.similarity(gram(z))["cka_latents"] == pytest.approx(1, abs=1e-6)


def test_views_are_compared_with_the_full_dictionary_and_seeds_with_each_other(tmp_path: Path) -> None:
    folders = run([small(tmp_path, f"seed={seed}") for seed in (0, 1, 2)])
    rows = [row for row in rows_of(folders[0]) if row["tokens"] == "all"]
    cka = {(row["view"], row["order"], row["m"]): float(row["cka_latents"]) for row in rows}
    assert cka["full", "", "64"] == pytest.approx(1, abs=1e-9)
    assert -0.1 < cka["pruned", "select_then_prune", "16"] < 0.999
    write_tables(tmp_path)
    (path,) = write_seeds(tmp_path)
    seeds = pd.read_csv(path)
    assert list(zip(seeds["seed_a"], seeds["seed_b"], strict=True)) == [(0, 1)] * 2 + [(0, 2)] * 2 + [(1, 2)] * 2
    assert (seeds.loc[seeds["tokens"] == "typical", "n_tokens"] < seeds["n_tokens"].max()).all()
    assert seeds["cka_latents"].between(0.05, 0.999).all()


def test_one_seed_has_nothing_to_compare(tmp_path: Path) -> None:
    run([small(tmp_path)])
    write_tables(tmp_path)
    assert write_seeds(tmp_path) == []
