"""Absorption on planted dictionaries: the rate that was planted, none where none was, cases computed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saebench.probing.absorption import Decoder, absorbed, fraction, full, probe_activations, split_latents
from saebench.probing.letters import LETTERS
from saebench.probing.prompts import Examples
from saebench.probing.settings import AbsorptionConfig, section
from saebench.sparse import SparseLatents

WORDS, EACH, D_IN = 4, 60, 24  # letters, words of each, dimensions
OWN = list(range(WORDS))  # the latent of each letter; behind them one for each word that is absorbed


def config(*overrides: str) -> AbsorptionConfig:
    """The defaults with changes."""
    return section("absorption", overrides)


def planted(swallowed: int, carried: float = 1.0) -> tuple[Tensor, SparseLatents, Decoder, Tensor, Tensor]:
    """Words of WORDS letters in D_IN dimensions: x [n, D_IN], latents, decoder, y [n, letters] and which words are held out.

    Every word's activation is its letter's direction and a direction of its own kind. A letter's latent fires on all its words
    but on the first `swallowed` of those that are held out and of those that are not, each of which has a latent that carries
    `carried` of the letter's direction beside its own.
    """
    g = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(D_IN, D_IN, generator=g, dtype=torch.float64)).Q
    letter = torch.arange(WORDS).repeat_interleave(EACH)
    place = torch.arange(EACH).repeat(WORDS)
    test = place % 2 == 0
    hidden = place // 2 < swallowed
    other = axes[WORDS + place % (D_IN - WORDS)]  # [n, D_IN]
    x = 2 * axes[letter] + other
    word = torch.full((len(x),), -1)
    word[hidden] = WORDS + torch.arange(int(hidden.sum()))
    rows = torch.cat([axes[:WORDS], carried * 2 * axes[letter[hidden]] + other[hidden], axes[WORDS:]])
    norms = rows.norm(dim=1)
    z = torch.zeros(len(x), len(rows), dtype=torch.float64)
    z[torch.arange(len(x)), letter] = torch.where(hidden, 0.0, 2.0).double()
    z[hidden, word[hidden]] = norms[word[hidden]]
    plain = (~hidden).nonzero().squeeze(1)
    z[plain, len(rows) - (D_IN - WORDS) + place[plain] % (D_IN - WORDS)] = 1.0
    one = torch.ones(1, 1, dtype=torch.float64)
    decoder = Decoder(rows / norms[:, None], torch.ones_like(norms), one, torch.zeros(1, D_IN, dtype=torch.float64))
    y = letter[:, None] == torch.arange(26)
    return x, SparseLatents.from_dense(z), decoder, y, test


@pytest.mark.parametrize("swallowed", [0, 3, 9])
def test_the_rate_is_what_was_planted(swallowed: int) -> None:
    x, latents, decoder, y, test = planted(swallowed)
    cfg = config("absorption.ridge=0.01")
    truth, letters = probe_activations(x, y, test, cfg.ridge)
    assert letters == OWN
    assert truth.f1[OWN].tolist() == [1.0] * WORDS
    split = split_latents(latents, y, test, letters, cfg)
    for letter in letters:
        assert split[letter].latents == [letter]
        words = (test & y[:, letter] & (truth.scores[:, letter] > 0)).nonzero().squeeze(1)
        assert len(words) == EACH // 2
        found = absorbed(latents, x, decoder, truth.direction(letter), [letter], words, cfg)
        assert float(found.full.double().mean()) == pytest.approx(swallowed / (EACH // 2))
        assert float(found.fraction.mean()) == pytest.approx(swallowed / (EACH // 2))
        dealt = absorbed(latents, x, decoder, truth.direction(letter), [letter], words, cfg, dealt=True)
        assert float(dealt.full.double().mean()) <= swallowed / (EACH // 2)


def test_a_latent_that_carries_too_little_does_not_absorb() -> None:
    cfg = config("absorption.ridge=0.01")
    for carried, wanted in ((0.35, 0.0), (0.6, 0.1)):
        x, latents, decoder, y, test = planted(3, carried)
        truth, _ = probe_activations(x, y, test, cfg.ridge)
        words = (test & y[:, 0]).nonzero().squeeze(1)
        found = absorbed(latents, x, decoder, truth.direction(0), [0], words, cfg)
        assert float(found.full.double().mean()) == pytest.approx(wanted)


def test_a_letter_of_two_latents_has_both_as_its_own() -> None:
    x, latents, _, y, test = planted(0)
    z = latents.dense()
    second = torch.zeros(len(x), 1, dtype=torch.float64)
    moved = (torch.arange(len(x)) // 2 % 2 == 0) & y[:, 0]  # half of the letter's words, of both splits
    second[moved], z[moved, 0] = 2.0, 0.0
    latents = SparseLatents.from_dense(torch.cat([z, second], 1))
    split = split_latents(latents, y, test, OWN, config())
    assert sorted(split[0].latents) == [0, z.shape[1]]
    assert split[0].f1 == 1
    assert [len(split[i].latents) for i in OWN] == [2, 1, 1, 1]


def test_fractions_are_computed_by_hand() -> None:
    own, others = torch.tensor([0.0, 0.5, 1.0, 0.4, 0.0, -1.0, 0.5]), torch.tensor([0.5, 0.5, 0.9, 0.3, 0.3, 2.0, 9.0])
    total = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0])
    wanted = [
        1.0,
        0.5,
        0.0,
        0.0,
        0.0,
        1.0,
        0.0,
    ]  # silent; half; accounted for; too little; too little; opposed; no letter
    assert fraction(own, others, total, 0.4).tolist() == pytest.approx(wanted)
    assert float(fraction(torch.tensor([0.2]), torch.tensor([9.0]), torch.tensor([1.0]), 0.4)) == pytest.approx(0.8)
    aligned = torch.tensor([True, True, False, True])
    strongest, projections = torch.tensor([0.4, 0.3, 0.9, 0.9]), torch.tensor([1.0, 1.0, 1.0, -1.0])
    assert full(aligned, strongest, projections, 0.4).tolist() == [True, False, False, False]


def test_a_mean_that_no_latent_explains_moves_the_plain_scores_alone() -> None:
    cfg = config("absorption.ridge=0.01")
    x, latents, decoder, y, test = planted(3)
    truth, _ = probe_activations(x, y, test, cfg.ridge)
    direction = truth.direction(0)
    words = (test & y[:, 0]).nonzero().squeeze(1)
    shift = 10 * direction
    moved = Decoder(decoder.rows, decoder.norms, decoder.scale, decoder.origin + shift)
    found = absorbed(latents, x + shift, moved, direction, [0], words, cfg)
    assert float(found.full.double().mean()) == 0
    assert float(found.full_centred.double().mean()) == pytest.approx(0.1)
    assert float(found.fraction_centred.mean()) == pytest.approx(0.1)


def test_letters_without_words_on_both_sides_are_left_out() -> None:
    x, _, _, y, test = planted(0)
    only = y[:, 0] & test
    truth, letters = probe_activations(x[~only], y[~only], test[~only], 1.0)
    assert letters == [1, 2, 3]
    assert float(truth.f1[0]) == 0


def test_examples_say_their_classes() -> None:
    examples = Examples([], [], LETTERS, torch.tensor([0, 25]), torch.tensor([False, True]))
    assert examples.y.nonzero().tolist() == [[0, 0], [1, 25]]
