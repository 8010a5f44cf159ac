"""Scores by a judge: exact for judges that know all, nothing, or answer badly."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from saebench.checks import InputError
from saebench.interpret.contexts import Context, LatentContexts
from saebench.interpret.judge import JudgeConfig, Prompt, Reply
from saebench.interpret.judged import Verdict, detection, fuzzing, run_judge, simulation
from saebench.interpret.prompts import flags_reader, level, levels_reader, marked, read_explanation
from saebench.interpret.replies import open_judge
from tests.judge_server import WORD, Answer, Server, always_yes, config, error, perfect, prose, server

__all__ = ["server"]  # a fixture
ALL = ("detection", "fuzzing", "simulation")


def context(document: int, active: bool) -> Context:
    word = WORD if active else " plain"
    texts = ("A", f" text{document}", word, "\n", ' "of"', " words")
    return Context(texts, tuple(3.0 * (active and t == WORD) for t in texts), 2, document, 0.5)


def latent(number: int = 7, **changes: Any) -> LatentContexts:
    groups: dict[str, Any] = {
        "shown": tuple(context(d, True) for d in range(4)),
        "held": tuple(context(d, True) for d in range(10, 16)),
        "negatives": tuple(context(d, False) for d in range(20, 27)),
    }
    return LatentContexts(latent=number, frequency=1e-3, stratum=2, max_act=3.0, **groups | changes)


def judged(
    cfg: JudgeConfig, latents: Sequence[LatentContexts], names: Sequence[str], seed: int, folder: Path
) -> list[Verdict]:
    with open_judge(cfg, folder, "cpu") as judge:
        return run_judge(judge, latents, names, seed)[0]


def values(verdict: Verdict) -> dict[str, float]:
    return {score.name: score.value for score in verdict.scores}


# The scores


def test_a_perfect_judge_scores_one(server: Server, tmp_path: Path) -> None:
    [verdict] = judged(config(server), [latent()], ALL, 0, tmp_path)
    assert verdict.explanation == "the token magic"
    assert values(verdict) == pytest.approx({"detection": 1.0, "fuzzing": 1.0, "simulation": 1.0})
    assert [(s.n, s.broken, s.chance) for s in verdict.scores] == [(13, 0, 0.5), (12, 0, 0.5), (13, 0, 0.0)]


def test_a_judge_that_says_yes_to_everything_scores_chance(server: Server, tmp_path: Path) -> None:
    server.judge = always_yes
    [verdict] = judged(config(server), [latent()], ALL, 0, tmp_path)
    assert values(verdict) == pytest.approx({"detection": 0.5, "fuzzing": 0.5, "simulation": 0.0})
    assert not any(score.broken for score in verdict.scores)


def test_a_wrong_explanation_scores_chance(server: Server, tmp_path: Path) -> None:
    server.judge = lambda text: "EXPLANATION: dogs" if "EXPLANATION:" in text else perfect(text)
    [verdict] = judged(
        config(server), [latent(held=latent().held[:5], negatives=latent().negatives[:5])], ALL[:1], 0, tmp_path
    )
    assert values(verdict) == {"detection": 0.5}


def test_broken_replies_count_as_wrong() -> None:
    exam = detection(latent(), "x", 0)
    truths = [["magic" in text for text in question_texts(q.prompt)] for q in exam.questions]
    score = exam.mark([None, *truths[1:]])
    wrong = truths[0]
    held, negatives = 6, 7
    expected = ((held - sum(wrong)) / held + (negatives - wrong.count(False)) / negatives) / 2
    assert score.value == pytest.approx(expected)
    assert (score.n, score.broken) == (13, 5)
    assert exam.mark([None] * len(truths)).value == 0
    simulated = simulation(latent(), "x", 0)
    truth = [c.acts for c in (*latent().held, *latent().negatives)]
    assert simulated.mark([None, *truth[1:]]).value == pytest.approx(12 / 13)
    assert simulated.mark([None] * 13).value == 0


def question_texts(asked: Prompt) -> list[str]:
    lines = asked.messages[0].content.split("\n")
    return [json.loads(line.split(": ", 1)[1]) for line in lines if line.startswith("Text ")]


def test_simulation_is_the_pearson_correlation() -> None:
    held = Context(("a", "b", "c"), (1.0, 2.0, 0.0), 1, 0)
    silent = Context(("d",), (0.0,), 0, 1)
    exam = simulation(latent(held=(held,), negatives=(silent,)), "x", 0)
    score = exam.mark([[2.0, 1.0, 0.0], [1.0]])  # centred truth .25 1.25 -.75 -.75, predictions 1 0 -1 0
    assert score.value == pytest.approx(1 / math.sqrt(2.75 * 2))
    assert score.n == 2


def test_fuzzing_marks_as_many_tokens_wrongly_and_never_both_in_one_question() -> None:
    exam = fuzzing(latent(), "x", 0)
    seen = []
    for q in exam.questions:
        texts = question_texts(q.prompt)
        bare = [text.replace("<<", "").replace(">>", "") for text in texts]
        assert len(set(bare)) == len(bare)
        assert all(text.count("<<") == text.count(">>") == 1 for text in texts)
        seen += texts
    assert sum(f"<<{WORD}>>" in text for text in seen) == 6
    assert len(seen) == 12


def test_fuzzing_of_dense_latents_marks_equally_many() -> None:
    dense = Context(("a", "b", "c", "d"), (1.0, 4.0, 2.0, 0.0), 1, 0)
    always = Context(("a", "b"), (1.0, 1.0), 0, 1)
    exam = fuzzing(latent(held=(dense, always)), "x", 0)
    assert sorted(t for q in exam.questions for t in question_texts(q.prompt)) == ["a<<b>>cd", "abc<<d>>"]


def test_a_latent_without_contexts_has_no_score_and_costs_nothing(server: Server, tmp_path: Path) -> None:
    bare = [latent(1, shown=()), latent(2, held=()), latent(3, negatives=())]
    first, second, third = judged(config(server), bare, ALL[:2], 0, tmp_path)
    assert first.explanation is None
    assert [(s.n, s.broken) for v in (first, second) for s in v.scores] == [(0, 0)] * 4
    assert all(math.isnan(s.value) for v in (first, second) for s in v.scores)
    assert math.isnan(values(third)["detection"])
    assert values(third)["fuzzing"] == 1.0
    assert sum("between << and >>. Either" in a.prompt for a in server.asked) == len(fuzzing(bare[2], "", 0).questions)


def test_scores_depend_on_neither_order_nor_company(server: Server, tmp_path: Path) -> None:
    latents = [latent(n) for n in range(5)]
    together = judged(config(server), latents, ALL, 3, tmp_path / "a")
    asked = {a.prompt for a in server.asked}
    server.asked.clear()
    alone = [judged(config(server), [one], ALL, 3, tmp_path / "b")[0] for one in reversed(latents)]
    assert alone[::-1] == together
    assert {a.prompt for a in server.asked} == asked
    assert detection(latents[0], "x", 0).questions[0].prompt != detection(latents[1], "x", 0).questions[0].prompt
    assert detection(latents[0], "x", 0).questions[0].prompt != detection(latents[0], "x", 1).questions[0].prompt


# Replies


def test_a_broken_reply_is_asked_again_more_strictly(server: Server, tmp_path: Path) -> None:
    def hesitant(text: str) -> str:
        if "EXPLANATION:" in text or "not in the form asked for" in text:
            return "EXPLANATION: x" if "EXPLANATION:" in text else "[1, 1, 1, 1, 1]"
        return prose(text)

    server.judge = hesitant
    [verdict] = judged(
        config(server), [latent(held=latent().held[:5], negatives=latent().negatives[:5])], ALL[:1], 0, tmp_path
    )
    assert (verdict.scores[0].value, verdict.scores[0].broken) == (0.5, 0)
    roles = [[m["role"] for m in a.body["messages"]] for a in server.asked]
    assert roles.count(["user", "assistant", "user"]) == 2


def test_replies_of_the_wrong_length_are_broken_and_reported(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.judge = lambda text: perfect(text) if "EXPLANATION:" in text or "following 3 texts" in text else "[1, 0]"
    [verdict] = judged(config(server), [latent()], ("detection",), 0, tmp_path)
    assert verdict.scores[0].broken == 10
    assert "2 of 3 replies about detection were broken, asked twice" in capsys.readouterr().err


def test_a_judge_that_only_chats_ends_it_after_a_few(server: Server, tmp_path: Path) -> None:
    server.judge = lambda text: perfect(text) if "EXPLANATION:" in text else prose(text)
    latents = [latent(n) for n in range(30)]
    with pytest.raises(InputError, match="20 of 20 replies about detection were broken"):
        judged(config(server), latents, ("detection",), 0, tmp_path)
    assert len(server.asked) == 1 + 2 * 20  # the latents here share an explanation
    server.judge = prose
    verdicts = judged(config(server, broken_limit=0, name="other"), latents[:2], ALL, 0, tmp_path)
    assert [v.explanation for v in verdicts] == ["", ""]
    assert all(s.value == 0 and s.broken == s.n > 0 for v in verdicts for s in v.scores)


def test_a_prompt_that_is_refused_is_broken_but_not_kept(server: Server, tmp_path: Path) -> None:
    def filtered(text: str) -> str | Answer:
        too_long = error(400, "maximum context length is 10 tokens", "context_length_exceeded")
        return perfect(text) if "EXPLANATION:" in text else too_long

    server.judge = filtered
    [verdict] = judged(config(server), [latent()], ("detection",), 0, tmp_path)
    assert verdict.scores[0].broken == 13
    assert len(server.asked) == 4  # none of them asked twice
    server.judge = perfect
    [verdict] = judged(config(server), [latent()], ("detection",), 0, tmp_path)
    assert values(verdict) == {"detection": 1.0}


@pytest.mark.parametrize(
    ("text", "n", "flags"),
    [
        ("[1, 0, 1]", 3, [True, False, True]),
        ("```json\n[true, false]\n```", 2, [True, False]),
        ("Text [1] fits, so: [0,1]", 2, [False, True]),
        ("[1, 0]", 3, None),
        ("[1, 2]", 2, None),
        ("[1.0, 0]", 2, None),
        ("[1, 0,]", 2, None),
        ("yes, no", 2, None),
        ("", 1, None),
    ],
)
def test_lists_of_flags_are_read(text: str, n: int, flags: list[bool] | None) -> None:
    assert flags_reader(n)(text) == flags


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ('{"1": 10, "2": 0.5}', [0, 10, 0.5]),
        ("All silent: {}", [0, 0, 0]),
        ('{"3": 1}', None),
        ('{"1": 11}', None),
        ('{"1": -1}', None),
        ('{"a": 1}', None),
        ('{"1": true}', None),
        ('{"1": "high"}', None),
        ("[1, 2, 3]", None),
    ],
)
def test_objects_of_levels_are_read(text: str, levels: list[float] | None) -> None:
    assert levels_reader(3)(text) == levels


def test_explanations_are_read_and_thoughts_are_not() -> None:
    assert read_explanation("Hm.\n**EXPLANATION:** *verbs of motion*\n") == "verbs of motion"
    assert read_explanation("EXPLANATION: a\nno\nEXPLANATION: b") == "b"
    assert read_explanation("It is about verbs.") is read_explanation("EXPLANATION:  \n") is None
    q = detection(latent(), "x", 0).questions[0]
    assert q.answer(Reply("<think>[0,0,0,0,0]</think>[1,1,1,1,1]", 1, 1)) == [True] * 5
    assert q.answer(Reply("<think>perhaps [1,1,1,1,1]", 1, 1)) is None


def test_marks_and_levels() -> None:
    assert marked(("a", "b", "c", "d"), {0, 2, 3}) == "<<a>>b<<cd>>"
    assert [level(act, 4.0) for act in (0.01, 2.0, 4.0, 5.0)] == [1, 5, 10, 10]
