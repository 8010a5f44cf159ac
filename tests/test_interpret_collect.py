"""The pass that collects what latents mean: every field against a dense pass in plain Python, order, memory, logits."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from saebench.checks import InputError
from saebench.interpret import collect as collecting
from saebench.interpret import files, reservoir
from saebench.interpret.collect import SAMPLE, TOP, Collected, bytes_needed, collect, state_bytes, tokens_to_read
from saebench.interpret.draws import drawn, is_shown
from saebench.interpret.logits import latent_logits
from saebench.interpret.settings import CollectConfig
from saebench.interpret.stats import EDGES
from saebench.interpret.windows import windows
from saebench.progress import Progress
from saebench.saes import Stats, build
from tests.configs import sae_config, stats_of, synthetic
from tests.dense_contexts import (
    BLOCKS,
    CFG,
    D_SAE,
    VIEWS,
    VOCABULARY,
    Blocks,
    T,
    dense,
    exact_sae,
    keeps,
    no_logits,
    passed,
    passed_once,
    plain_examples,
    write_views,
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files of every view."""
    return write_views(tmp_path_factory.mktemp("views"))


@pytest.mark.parametrize("view", range(len(VIEWS)))
def test_contexts_are_those_of_a_dense_pass(view: int, folders: list[Path]) -> None:
    shards = Blocks(torch.arange(BLOCKS))
    z = dense(view, shards)
    rows = pq.read_table(folders[view] / files.EXAMPLES).to_pylist()
    expected = [row for latent in range(D_SAE) for row in plain_examples(shards, z, latent)]
    assert len(expected) > 50
    assert [{k: v for k, v in row.items() if k != "quantile"} for row in rows] == [
        {k: row[k] for k in files.EXAMPLE_FIELDS if k != "quantile"} for row in expected
    ]
    for row in rows:  # the histogram's quantile is off by less than the share of the centre's bin
        acts = z[:, :, row["latent"]].flatten()
        acts = acts[acts > 0].double()
        place = np.searchsorted(EDGES, math.log2(row["act"]), side="right") - 1
        low, high = 2 ** EDGES[place], 2 ** EDGES[place + 1]
        share = float(((acts >= low) & (acts < high)).double().mean())
        assert abs(row["quantile"] - float((acts < row["act"]).double().mean())) < share
        assert row["acts"][row["centre"]] == row["act"] > 0


@pytest.mark.parametrize("view", range(len(VIEWS)))
def test_counts_are_those_of_a_dense_pass(view: int, folders: list[Path]) -> None:
    shards = Blocks(torch.arange(BLOCKS))
    z = dense(view, shards)[~shards.excluded].double()  # [n, d_sae]
    table = pq.read_table(folders[view] / files.LATENTS)
    metadata = table.schema.metadata
    assert json.loads(metadata[b"histogram_edges"]) == EDGES
    rows = table.to_pylist()
    assert [row["latent"] for row in rows] == list(range(D_SAE))
    ranks = (-z).argsort(dim=1, stable=True).argsort(dim=1).double()  # of equal activations the lower latent first
    dead = 0
    for i, row in enumerate(rows):
        active = z[:, i] > 0
        acts = z[active, i]
        assert row["n_active"] == int(active.sum())
        assert row["frequency"] == int(active.sum()) / len(z)
        counts = np.histogram(np.log2(acts.numpy()), EDGES)[0]
        assert row["histogram"] == counts.tolist()
        assert sum(row["histogram"]) == row["n_active"]
        assert row["promoted"] == no_logits().promoted[i].tolist()
        if not bool(active.any()):
            dead += 1
            assert row["mean_act"] == row["max_act"] == 0
            assert math.isnan(row["mean_rank"])
            continue
        assert row["max_act"] == float(acts.max())
        assert row["mean_act"] == pytest.approx(float(acts.mean()), rel=1e-6)
        assert row["mean_rank"] == pytest.approx(float(ranks[active, i].mean()), rel=1e-6)
    assert 1 <= dead < D_SAE - 5


def test_nothing_depends_on_batch_size_or_order(tmp_path: Path) -> None:
    """The pool apart, which is the first blocks of the order."""
    permuted = torch.randperm(BLOCKS, generator=torch.Generator().manual_seed(9))
    runs = {"base": passed_once(), "single": passed(batch=1), "large": passed(batch=100 * T), "order": passed(permuted)}
    texts: dict[tuple[int, str], set[bytes]] = {}
    for name, found in runs.items():
        for i, one in enumerate(found):
            folder = tmp_path / f"{name}{i}"
            folder.mkdir()
            files.write(folder, one, no_logits(), VOCABULARY)
            for file in (files.LATENTS, files.EXAMPLES, files.POOL):
                if (name, file) != ("order", files.POOL):
                    texts.setdefault((i, file), set()).add((folder / file).read_bytes())
    assert {key: len(different) for key, different in texts.items() if len(different) != 1} == {}
    other = passed(seed=4)
    assert not torch.equal(other[0].contexts[SAMPLE].keys, runs["base"][0].contexts[SAMPLE].keys)


def test_samples_are_uniform_over_activations() -> None:
    """Each of 30 activations is kept as often as any other: 3 by each of 1200 latents, from blocks offered in any order."""
    n, latents = 30, torch.arange(1200)
    kept = reservoir.Reservoir(len(latents), 3, 1, torch.device("cpu"))
    at = torch.arange(n).expand(len(latents), n)  # [latents, n]
    keys = drawn(0, latents.unsqueeze(1).expand_as(at), at, torch.full_like(at, 2))
    for block in torch.randperm(n, generator=torch.Generator().manual_seed(0)).tolist():
        kept.admit(latents, keys[:, block], torch.zeros_like(latents))
    assert torch.equal(kept.keys.sort(1).values, keys.topk(3).values.sort(1).values)
    counts = torch.bincount(keys.topk(3).indices.flatten(), minlength=n)
    expected = len(latents) * 3 / n
    statistic = float(((counts - expected) ** 2 / expected).sum()) / (1 - 3 / n)
    assert statistic < 58.3  # chi-square of 29, p = 0.001
    shown = is_shown(torch.arange(4000), 0).double().mean()
    assert abs(float(shown) - 0.5) < 4 * 0.5 / 4000**0.5


def test_windows_stay_in_their_document() -> None:
    documents = torch.tensor([[0, 0, 0, 1, 2, 2, 2, 2], [2, 2, 2, 2, 2, 2, 2, 3]])
    first, length = windows(documents, 4)
    assert first.tolist() == [0, 0, 0, 3, 4, 4, 4, 4, 8, 8, 8, 9, 10, 11, 11, 15]
    assert length.tolist() == [3, 3, 3, 1, 4, 4, 4, 4, *[4] * 7, 1]


def tensors_of(found: Collected) -> int:
    """The bytes of every tensor that grows with the number of latents."""
    parts = [found.kept, found.index, found.keep, *vars(found.stats).values()]
    parts += [part for kept in found.contexts.values() for part in vars(kept).values()]
    return sum(part.nbytes for part in parts if isinstance(part, Tensor))


def test_memory_is_what_the_formula_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for one, keep in zip(passed_once(), keeps(), strict=True):
        assert tensors_of(one) == state_bytes(int(keep.sum()), D_SAE, CFG)
    with pytest.raises(InputError, match=r"interpret\.memory_gb=0\.0001: 5 views of up to 40 latents need 0\.\d GB"):
        passed(memory_gb=1e-4)
    monkeypatch.setattr(collecting, "MOST_ENTRIES", 100)
    with pytest.raises(
        InputError, match=r"interpret\.batch=48: \d+ latents are active on a token in view .* of \d+ tokens; lower it"
    ):
        passed()


def test_the_defaults_fit_a_large_sae_into_their_bound() -> None:
    """65536 latents of 2304 dimensions, shards of 65536 tokens in bfloat16: several views within 8 GB."""
    sae = build(sae_config("topk", d_sae=8, input="none"), Stats(torch.zeros(2304), 1.0, torch.ones(2304)), 0)
    sae.d_sae = 65536
    cfg = CollectConfig()
    weights = 65536 * 2304 * 2 * 4
    needed = [bytes_needed(sae, [65536] * n, 512, 65536 * 2304 * 2, cfg) + weights for n in (1, 3)]
    assert state_bytes(65536, 65536, cfg) < 0.8e9
    assert needed[0] < 5.1e9
    assert needed[1] < 8e9


def test_only_the_tokens_asked_for_are_read() -> None:
    shards = Blocks(torch.arange(BLOCKS))
    cfg = dataclasses.replace(CFG, tokens=17 * T - 3)
    assert tokens_to_read(shards, cfg) == 17 * T
    with Progress(17 * T, "tokens", "collecting") as progress:
        found = collect(exact_sae(), VIEWS[:1], keeps()[:1], [None], shards, cfg, progress)[0]
    assert progress.done == 17 * T
    assert found.stats.n_tokens == int((~shards.excluded[:17]).sum())
    every = found.contexts[TOP].kept(0, 2 * D_SAE)
    assert int(every.blocks.max()) == 16


def test_a_view_without_latents_and_a_text_without_ordinary_tokens() -> None:
    shards = Blocks(torch.arange(BLOCKS))
    sae = exact_sae()
    sae.b_enc.fill_(-1000)
    none = collect(sae, VIEWS[:1], keeps()[:1], [None], shards, CFG)[0]
    assert int(none.stats.n_active.sum()) == 0
    assert list(files.example_groups(none)) == []
    shards.excluded[:] = True
    assert collect(exact_sae(), VIEWS[:1], keeps()[:1], [None], shards, CFG)[0].stats.n_tokens == 0


class Norm(torch.nn.Module):
    """A norm as Gemma's: gain 1 + weight, no mean taken off."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return x / x.square().mean(-1, keepdim=True).add(1e-6).sqrt() * (1 + self.weight)


@pytest.mark.parametrize("centred", [False, True])
def test_logits_are_the_plain_product(centred: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = synthetic(200)
    sae = build(sae_config("topk", d_sae=50), stats_of(x), 0)
    weight, unembed = torch.rand(24), torch.randn(300, 24)
    norm = torch.nn.LayerNorm(24) if centred else Norm(weight)
    if isinstance(norm, torch.nn.LayerNorm):
        norm.weight.data, norm.bias.data = 1 + weight, torch.randn(24)
    model = SimpleNamespace(get_output_embeddings=lambda: SimpleNamespace(weight=unembed))
    lm: Any = SimpleNamespace(model=model, norm=norm, d_model=24, device=torch.device("cpu"), dtype=torch.float32)
    direction = (sae.W_dec * sae.scale).detach()
    direction = direction - direction.mean(1, keepdim=True) if centred else direction
    plain = (direction * (1 + weight)) @ unembed.T  # [d_sae, vocab]
    monkeypatch.setattr("saebench.interpret.logits.AT_ONCE", 300 * 7)
    found = latent_logits(sae, lm, 10)
    up, down = plain.topk(10), (-plain).topk(10)
    assert torch.equal(found.promoted, up.indices)
    assert torch.equal(found.suppressed, down.indices)
    torch.testing.assert_close(found.promoted_logits, up.values)
    torch.testing.assert_close(found.suppressed_logits, -down.values)
