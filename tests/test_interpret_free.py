"""Scores without a judge: small cases by hand, pure latents high, latents of nothing at chance."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from numpy import ndarray

from saebench.checks import InputError
from saebench.interpret.contexts import Context, LatentContexts, Score
from saebench.interpret.free import (
    SCORES,
    Embedded,
    FreeConfig,
    LatentVectors,
    coherence,
    free_scores,
    intruder,
    probe,
    trimmed,
)
from saebench.interpret.purity import PURITIES, Pools, commonest, consistency, explained, normal, purity
from tests.synthetic_contexts import BagOfWords, latent

LATENTS = 60


def config(*scores: str, before: int = 6, after: int = 3) -> FreeConfig:
    return FreeConfig(list(scores or SCORES), "unused", before, after, draws=200, seed=0)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def unit(*rows: tuple[float, ...]) -> ndarray:
    vectors = np.array(rows, dtype=float)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def vectors(shown: ndarray, held: ndarray, negatives: ndarray, documents: list[int] | None = None) -> LatentVectors:
    """Embedded contexts, each of its own document unless the held ones' are given."""
    own = np.arange(len(held)) if documents is None else np.array(documents)
    return LatentVectors(
        Embedded(shown, np.arange(len(shown)) + 200),
        Embedded(held, own),
        Embedded(negatives, np.arange(len(negatives)) + 100),
    )


def by_name(scores: list[Score]) -> dict[str, list[Score]]:
    names = dict.fromkeys(score.name for score in scores)
    return {name: [score for score in scores if score.name == name] for name in names}


def test_pure_latents_score_high() -> None:
    latents = [latent(i, pure=i < 3) for i in range(12)]
    found = by_name([s for s in free_scores(latents, config(), BagOfWords()) if s.latent < 3])
    values = {name: [score.value for score in scores] for name, scores in found.items()}
    assert values.keys() == set(SCORES)
    assert min(values["intruder"]) > 0.95
    assert min(values["coherence"]) > 0.3
    assert values["probe"] == [1.0] * 3
    assert values["token_purity"] == [1.0] * 3
    assert min(values["consistency"]) > 0.95
    assert all(found["token_purity"][i].chance < 0.6 for i in range(3))


def test_latents_of_nothing_score_at_chance() -> None:
    """The mean over latents lies within 4 standard errors of the mean chance."""
    latents = [latent(i, pure=False) for i in range(LATENTS)]
    for name, scores in by_name(list(free_scores(latents, config(), BagOfWords()))).items():
        over = np.array([score.value - score.chance for score in scores])
        assert len(over) == LATENTS
        assert abs(over.mean()) <= 4 * over.std(ddof=1) / LATENTS**0.5, name


def test_scores_do_not_depend_on_the_order_of_latents() -> None:
    latents = [latent(i, pure=i % 2 == 0) for i in range(20)]
    forth, back = (list(free_scores(order, config(), BagOfWords())) for order in (latents, latents[::-1]))
    assert sorted(forth, key=lambda s: (s.latent, s.name)) == sorted(back, key=lambda s: (s.latent, s.name))


def test_latents_are_drawn_apart() -> None:
    same = latent(3, pure=True)
    a, b = free_scores([same, replace(same, latent=4)], config("consistency"), None)
    assert a.value == b.value
    assert a.chance != b.chance


def test_parts_with_one_pool_score_as_the_whole() -> None:
    latents = [latent(i, pure=i % 2 == 0) for i in range(6)]
    pools = Pools.of(latents, seed=0)
    parts = [s for part in (latents[:2], latents[2:]) for s in free_scores(part, config(), BagOfWords(), pools)]
    assert parts == list(free_scores(latents, config(), BagOfWords()))


def test_token_scores_need_no_encoder() -> None:
    scores = list(free_scores([latent(0, pure=True)], config(*PURITIES, "consistency"), None))
    assert [score.name for score in scores] == [*PURITIES, "consistency"]
    with pytest.raises(AssertionError, match="embedder"):
        list(free_scores([latent(0, pure=True)], config("probe"), None))


def test_what_is_embedded_is_trimmed_around_the_centre() -> None:
    c = Context(tuple("abcdefg"), (0.0,) * 7, 3, 0)
    assert [trimmed(c, *ends) for ends in ((0, 0), (1, 2), (9, 9))] == ["d", "cdef", "abcdefg"]
    bag = BagOfWords()
    list(free_scores([latent(0, pure=True, n=5)], config("coherence"), bag))
    assert bag.texts == 15


def test_intruder_is_the_expectation_over_all_draws() -> None:
    generator = rng()
    held, negatives = (unit(*generator.normal(size=(n, 3))) for n in (6, 3))
    hits = []
    for four in combinations(range(6), 4):
        for negative in negatives:
            five = np.vstack([held[list(four)], negative])
            cosines = [five[i] @ unit(tuple(np.delete(five, i, 0).mean(0)))[0] for i in range(5)]
            hits.append(int(np.argmin(cosines)) == 4)
    measured = intruder(vectors(held, held, negatives), 4000, rng())
    assert measured is not None
    assert measured[0] == pytest.approx(np.mean(hits), abs=4 * (0.25 / 4000) ** 0.5)
    assert measured[1:] == (0.2, 4000)


def test_equal_contexts_are_told_apart_by_chance_alone() -> None:
    shown, held, negatives = (unit(*[(1.0, 2.0)] * n) for n in (3, 5, 7))
    same = vectors(shown, held, negatives)
    measured = [score(same, 50, rng()) for score in (intruder, coherence, probe)]
    assert [m and m[0] for m in measured] == [pytest.approx(0.2), pytest.approx(0.0), pytest.approx(0.5)]


def test_intruder_takes_its_five_from_five_documents() -> None:
    """Contexts of document 0 are alike, the others' are not: two of document 0 in a draw would shelter each other."""
    held = unit(*[(1.0, 0.0, 0.0, 0.0)] * 9, (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    negative = -unit((1.0, 1.0, 1.0, 1.0))
    few = vectors(held, held, negative, documents=[0] * 9 + [1, 2, 3])
    measured = intruder(few, 100, rng())
    assert measured is not None
    assert measured[0] == 1.0
    assert intruder(vectors(held, held, negative, documents=[0] * 10 + [1, 2]), 100, rng()) is None
    clash = replace(few, negatives=Embedded(negative, np.array([3])))
    assert intruder(clash, 100, rng()) is None


def test_intruder_takes_none_from_the_negatives_document() -> None:
    """The held context of document 4 is the opposite of the others and would be taken for the intruder."""
    held, negative = unit(*[(1.0, 0.0)] * 4, (-1.0, 0.0)), unit((1.0, 1.0))
    for document, expected in ((4, True), (9, False)):
        latent = replace(vectors(held, held, negative), negatives=Embedded(negative, np.array([document])))
        measured = intruder(latent, 200, rng())
        assert measured is not None
        assert (measured[0] == 1.0) is expected


def test_coherence_by_hand() -> None:
    held = unit((1.0, 0.0), (0.0, 1.0), (1.0, 1.0))
    measured = coherence(vectors(held, held, unit((1.0, 0.0)), documents=[0, 0, 1]), 1, rng())
    among, across = 2**-0.5, (1 + 0 + 2**-0.5) / 3  # the pair of document 0 does not count
    assert measured == (pytest.approx(among - across), 0.0, 2)
    assert coherence(vectors(held, held, held, documents=[0, 0, 0]), 1, rng()) is None
    same = Embedded(unit((1.0, 0.0)), np.array([1]))  # in the document of the last held context
    measured = coherence(replace(vectors(held, held, held, documents=[0, 0, 1]), negatives=same), 1, rng())
    assert measured == (pytest.approx(among - 1 / 2), 0.0, 2)


def test_probe_by_hand() -> None:
    shown = unit((1.0, 0.0), (1.0, 0.0))
    held, negatives = unit((1.0, 0.1), (0.0, 1.0)), unit((1.0, 0.5), (-1.0, 0.0), (-1.0, 1.0))
    measured = probe(vectors(shown, held, negatives), 1, rng())  # called active: one of 2 held, one of 3 negatives
    assert measured == (pytest.approx((1 / 2 + 2 / 3) / 2), 0.5, 5)
    measured = probe(vectors(shown, held[:1], unit(*[(-1.0, 0.1)] * 6)), 1, rng())
    assert measured == (1.0, 0.5, 7)
    assert probe(vectors(shown[:0], held, negatives), 1, rng()) is None


@pytest.mark.parametrize(("held", "negatives"), [(5, 20), (20, 5)])
def test_the_probes_chance_holds_for_unequal_numbers(held: int, negatives: int) -> None:
    generator, values = rng(), []
    for _ in range(400):
        shown, active, silent = (unit(*generator.normal(size=(n, 4))) for n in (6, held, negatives))
        measured = probe(vectors(shown, active, silent), 1, rng())
        assert measured is not None
        values.append(measured[0])
    assert abs(np.mean(values) - 0.5) <= 4 * np.std(values) / 20


def test_the_commonest_share_is_counted_row_by_row() -> None:
    ids = rng().integers(4, size=(50, 9))
    expected = [Counter(row).most_common(1)[0][1] / 9 for row in ids.tolist()]
    assert commonest(ids).tolist() == pytest.approx(expected)


def test_the_chance_of_a_purity_is_that_of_draws_without_replacement() -> None:
    counts = {"a": 6, "b": 3, "c": 1}
    pools = Pools({"token_purity": [name for name, count in counts.items() for _ in range(count)]}, seed=1)
    same = sum(count * (count - 1) for count in counts.values()) / (10 * 9)
    deviation = 0.5 * (same * (1 - same)) ** 0.5  # of a share that is 1 or 1/2
    assert pools.chance("token_purity", 2) == pytest.approx(same + (1 - same) / 2, abs=4 * deviation / 1000**0.5)
    assert pools.chance("token_purity", 10) == pytest.approx(0.6)


def test_purities_by_hand() -> None:
    def one(text: str, before: str | None, document: int) -> Context:
        texts = (text,) if before is None else (before, text)
        return Context(texts, (1.0,) * len(texts), len(texts) - 1, document)

    contexts = (one(" The", " of", 0), one("the", "Of", 0), one(" a", None, 1), one(" the", " in", 2))
    its = LatentContexts(0, 0.1, 4, 1.0, contexts[:2], contexts[2:], ())
    pools = Pools.of([its], seed=0)
    found = {name: purity(name, its, pools) for name in PURITIES}
    assert {name: m and m[::2] for name, m in found.items()} == {
        "token_purity": (3 / 4, 4),
        "previous_token_purity": (2 / 3, 3),
        "document_purity": (2 / 4, 4),
    }
    chances = [m and m[1] for m in found.values()]
    assert chances == [pytest.approx(share) for share in (3 / 4, 2 / 3, 2 / 4)]  # the pool is the latent itself
    assert purity("token_purity", replace(its, shown=contexts[:1], held=()), pools) is None


@pytest.mark.parametrize(("text", "expected"), [(" The", "the"), ("\n", "\n"), ("  ", "  "), ("ß", "ss")])
def test_tokens_are_alike_but_for_case_and_space(text: str, expected: str) -> None:
    assert normal(text) == expected


def test_variance_explained_by_hand() -> None:
    """Tokens a, b, b shown with acts 3, 0, 3 (mean 2); held a, b, c with acts 2, 1, 0."""
    told = explained(np.array([[3.0, 0.0, 3.0]]), np.array([2.0, 1.0, 0.0]), np.array([0, 1, 1, 0, 1, 2]))
    predicted = np.array([(3 + 2) / 2, (3 + 2) / 3, 2.0])
    assert told[0] == pytest.approx(1 - ((np.array([2.0, 1.0, 0.0]) - predicted) ** 2).sum() / 2)


def test_consistency_falls_when_the_token_is_active_at_times_only() -> None:
    always = latent(0, pure=True)
    texts, acts = always.held[0].texts, always.held[0].acts
    twice = replace(always.held[0], texts=(*texts, " Purpose"), acts=(*acts, 0.0))
    at_times = replace(always, shown=(twice,) * 12, held=(twice,) * 12)
    a, b = consistency(always, rng()), consistency(at_times, rng())
    assert a is not None
    assert b is not None
    assert a[0] > 0.95
    assert b[0] == pytest.approx(0.5, abs=0.06)
    assert consistency(replace(always, held=()), rng()) is None


def test_a_wrong_score_is_named() -> None:
    with pytest.raises(InputError, match=r"interpret\.free\.scores=intrude: did you mean intruder"):
        config("intrude")
