"""Contexts read from files: what scores are given, negatives, latents without the others, samples of latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from saebench.checks import InputError
from saebench.interpret import files
from saebench.interpret.collect import collect
from saebench.interpret.contexts import STRATA, stratum_of
from saebench.interpret.draws import is_shown
from saebench.interpret.files import vocabulary_of
from saebench.interpret.logits import latent_logits
from saebench.interpret.negatives import Negatives, Silence
from saebench.interpret.sample import draw, strata_of
from saebench.interpret.settings import CollectConfig
from saebench.saes import build
from saebench.stream import open_stream
from saebench.views import View
from tests.dense_contexts import (
    BLOCKS,
    CFG,
    D_SAE,
    VOCABULARY,
    Blocks,
    T,
    dense,
    no_logits,
    passed_once,
    plain_window,
    write_views,
)  # fmt: skip
from tests.test_pipeline import small


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files of every view."""
    return write_views(tmp_path_factory.mktemp("views"))


@pytest.mark.parametrize("view", [0, 2])
def test_negatives_are_silent_held_out_and_half_matched(view: int, folders: list[Path]) -> None:
    shards = Blocks(torch.arange(BLOCKS))
    z = dense(view, shards)[:5].flatten(0, 1)  # [n, d_sae] of the pool
    pool = Negatives(folders[view] / files.POOL)
    assert len(pool.tokens) == CFG.pool == len(z)
    stored = load_file(folders[view] / files.POOL)
    assert all(part.dtype in (torch.int32, torch.bool) for part in stored.values())
    tokens = shards.tokens[:5].flatten()
    wanted = 0
    for latent in range(D_SAE):
        assert pool.active(latent).tolist() == (z[:, latent] > 0).nonzero().squeeze(1).tolist()
        own = tokens[z[:, latent] > 0].numpy()
        found = pool.draw(latent, own, 6, seed=1)
        assert found == pool.draw(latent, own, 6, seed=1)
        free = [p for p in range(len(z)) if possible(shards, z[:, latent], pool, p)]
        assert all(window.centre in free for window in found)
        assert all(apart(a, b) for i, a in enumerate(found) for b in found[:i])
        matched = [window for window in found[:3] if int(tokens[window.centre]) in own]
        assert matched == found[: len(matched)]
        if len(matched) < 3:  # then there are no more
            more = [p for p in free if int(tokens[p]) in own and all(apart(window_at(pool, p), w) for w in matched)]
            assert more == []
        if len(found) < 6:
            assert not [p for p in free if all(apart(window_at(pool, p), w) for w in found)]
        wanted += len(matched) == 3
    assert wanted >= 4


def possible(shards: Blocks, acts: Tensor, pool: Negatives, place: int) -> bool:
    """Whether a negative may be around this place of the pool: held out, ordinary, silent."""
    block, position = divmod(place, T)
    first, stop = (end + block * T for end in plain_window(shards.documents[block], position))
    assert window_at(pool, place) == Silence(first, stop, place)
    held = not is_shown(shards.documents[block, position], CFG.seed) and not shards.excluded[block, position]
    return held and bool((acts[first:stop] == 0).all())


def window_at(pool: Negatives, place: int) -> Silence:
    """The window around a place of the pool."""
    return Silence(int(pool.first[place]), int(pool.stop[place]), place)


def apart(a: Silence, b: Silence) -> bool:
    """Whether two windows do not overlap."""
    return not set(range(a.first, a.stop)) & set(range(b.first, b.stop))


def test_matched_negatives_are_in_proportion_to_the_active_tokens() -> None:
    """Of tokens 0 (3 of 4 activations) and 1, of which the text has nine times as many, three of four negatives are 0."""
    pool = Negatives.__new__(Negatives)
    pool.tokens = np.tile(np.array([0] + [1] * 9 + [2] * 10), 40)
    order = pool.by_token(np.arange(800), np.array([0, 0, 0, 1]), np.random.default_rng(0))
    assert len(order) == 400
    firsts = [
        int(pool.tokens[pool.by_token(np.arange(800), np.array([0, 0, 0, 1]), np.random.default_rng(seed))[0]])
        for seed in range(400)
    ]
    assert firsts.count(0) / 400 == pytest.approx(0.75, abs=4 * (0.1875 / 400) ** 0.5)


def test_what_scores_are_given(folders: list[Path]) -> None:
    table = pq.read_table(folders[0] / files.EXAMPLES).to_pylist()
    latents = pq.read_table(folders[0] / files.LATENTS).to_pylist()
    asked = [7, 0, 39, 3]
    given = files.latent_contexts(folders[0], asked, negatives=4, seed=2)
    assert [one.latent for one in given] == asked
    assert files.latent_contexts(folders[0], [39], negatives=4, seed=2) == [given[2]]
    assert files.latent_contexts(folders[0], [39], negatives=4, seed=3)[0].negatives != given[2].negatives
    for one in given:
        mine = [row for row in table if row["latent"] == one.latent]
        assert one.frequency == latents[one.latent]["frequency"]
        assert one.stratum == stratum_of(one.frequency)
        assert one.max_act == latents[one.latent]["max_act"]
        assert one.promoted == tuple(VOCABULARY[i] for i in latents[one.latent]["promoted"])
        for side, contexts in ((True, one.shown), (False, one.held)):
            rows = [row for row in mine if row["shown"] == side]
            tops = [row for row in rows if row["kind"] == "top"]
            blocks = {row["block"] for row in tops}
            rest = [row for row in rows if row["kind"] == "sample" and row["block"] not in blocks]
            assert [c.acts for c in contexts] == [tuple(row["acts"]) for row in [*tops, *rest]]
            assert all(is_shown(torch.tensor(c.document), CFG.seed) == side for c in contexts)
            for context, row in zip(contexts, [*tops, *rest], strict=True):
                assert context.texts == tuple(VOCABULARY[i] for i in row["tokens"])
                assert (context.centre, context.quantile) == (row["centre"], row["quantile"])
        assert all(set(c.acts) == {0.0} and len(c.acts) == len(c.texts) for c in one.negatives)
    assert given[3].shown == given[3].held == ()  # dead
    assert len(given[3].negatives) == 4


def test_a_latent_is_read_without_the_others(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(files, "EXAMPLE_LATENTS", 4)
    files.write(tmp_path, passed_once()[0], no_logits(), VOCABULARY)
    with pq.ParquetFile(tmp_path / files.EXAMPLES) as file:
        assert file.num_row_groups == D_SAE // 4
    assert pq.read_table(tmp_path / files.EXAMPLES) == pq.read_table(folders[0] / files.EXAMPLES)
    read: list[list[int]] = []
    plain = pq.ParquetFile.read_row_groups

    def watched(self: Any, groups: list[int], columns: Any = None) -> Any:
        read.append(groups)
        return plain(self, groups, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", watched)
    rows = files.read_rows(tmp_path / files.EXAMPLES, [8, 9, 39], ["kind"]).to_pylist()
    assert read == [[2, 9]]
    assert {row["latent"] for row in rows} == {8, 9, 39}


def test_wrong_input_is_named(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"vocabulary\.json: missing; run `saebench interpret`"):
        files.latent_contexts(tmp_path, [0])
    with pytest.raises(InputError, match=r"latents=\[40\]: .* has no such latents"):
        files.latent_contexts(folders[0], [1, 40])
    for changes, match in (({"top": 3}, r"interpret\.top=3: must be even"), ({"window": 0}, r"interpret\.window=0")):
        with pytest.raises(InputError, match=match):
            CollectConfig(**changes)


def test_sampled_latents_are_stratified() -> None:
    g = np.random.default_rng(0)
    frequency = 10.0 ** -g.uniform(0.5, 5.5, 3000) * (g.random(3000) < 0.8)
    frequency[frequency > 0.1] = 0
    frequency[:5] = 0.5
    assert strata_of(frequency).tolist() == [stratum_of(f) for f in frequency]
    assert strata_of(np.array(STRATA)).tolist() == [stratum_of(f) for f in STRATA]
    latents = draw(frequency, 200, 0, {}).every
    counts = np.bincount(strata_of(frequency[latents]), minlength=6)
    assert len(latents) == 200
    assert counts[5] == 5  # all there are
    assert set(counts[:5]) == {39}
    assert (frequency[latents] > 0).all()
    assert (np.diff(latents) > 0).all()
    assert set(draw(frequency, 120, 0, {}).every) < set(latents)
    assert set(draw(frequency, 200, 1, {}).every) != set(latents)
    assert len(draw(frequency, 10**6, 0, {}).every) == (frequency > 0).sum()
    assert len(draw(np.zeros(4), 3, 0, {}).every) == 0


def test_levels_are_drawn_from_apart() -> None:
    frequency = np.full(100, 1e-3)
    frequency[:10], frequency[99] = 0.5, 0.0
    drawn = draw(frequency, 30, 0, {"0-9": (0, 10), "10-49": (10, 50), "50-99": (50, 100)})
    assert drawn.every == draw(frequency, 30, 0, {}).every
    assert [len(part) for part in drawn.levels.values()] == [10, 10, 10]
    assert all(
        low <= i < high
        for (low, high), part in zip([(0, 10), (10, 50), (50, 99)], drawn.levels.values(), strict=True)
        for i in part
    )
    assert drawn.latents == sorted({*drawn.every, *(i for part in drawn.levels.values() for i in part)})


def test_on_the_embedded_model(tmp_path: Path) -> None:
    """Contexts whose text is the corpus's, and logits through the model's own norm and unembedding."""
    cfg = small(tmp_path, "data.dtype=float32", "sae.k=4")
    stream = open_stream(cfg)
    sae, lm = build(cfg.sae, stream.stats, 0), stream.lm()
    told = CollectConfig(tokens=3200, top=4, samples=4, window=12, pool=640)
    full = View("full", sae.d_sae, "topk", budget=4)
    found = collect(sae, [full], [torch.ones(64, dtype=torch.bool)], [None], stream.shards, told)[0]
    logits = latent_logits(sae, lm)
    files.write(tmp_path, found, logits, vocabulary_of(lm.tokenizer, lm.vocab_size))
    given = files.latent_contexts(tmp_path, range(64), negatives=4)
    corpus = lm.tokenizer.decode(stream.store.blocks("train", stream.shards.order).tokens.flatten())
    texts = [c.text for one in given for c in (*one.shown, *one.held, *one.negatives)]
    assert len(texts) > 200
    whole = [text for text in texts if "\ufffd" not in text]  # no part of a character
    assert len(whole) > 0.9 * len(texts)
    assert all(text in corpus for text in whole)
    z = sae.encode(stream.shards.read(0).rows()).dense()
    assert max(one.max_act for one in given) >= float(z.max()) * (1 - 1e-5)
    norm, out = lm.norm, lm.model.get_output_embeddings().weight
    assert isinstance(norm, torch.nn.LayerNorm)
    direction = sae.W_dec[5] * sae.scale
    plain = ((direction - direction.mean()) * norm.weight) @ out.T
    assert logits.promoted[5].tolist() == plain.topk(10).indices.tolist()
    torch.testing.assert_close(logits.suppressed_logits[5], plain.detach().sort().values[:10], rtol=1e-4, atol=1e-5)
