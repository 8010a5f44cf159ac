"""Asking a judge questions: a broken reply is asked for once more, more strictly, then counted. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from saebench.checks import InputError
from saebench.interpret.judge import REFUSED, Judge
from saebench.interpret.prompts import Question


class Examiner:
    """Asks a judge questions and keeps count of them, of the broken replies and of those cut short, by kind."""

    def __init__(self, judge: Judge, broken_limit: int) -> None:
        self.judge, self.broken_limit = judge, broken_limit
        self.asked, self.broken, self.cut = Counter[str](), Counter[str](), Counter[str]()

    def answers(self, questions: Sequence[Question]) -> list[Any]:
        """The answer to each question, None where the reply stays broken when asked again.

        Raises InputError if the first `broken_limit` replies of a kind are all broken; they are asked before the others.
        """
        probes = self.probes(questions)
        rest = sorted(set(range(len(questions))) - set(probes))
        found = dict[int, Any]()
        for places in (probes, rest):
            answers = self.answers_of([questions[i] for i in places])
            found |= dict(zip(places, answers, strict=True))
            self.check()
        return [found[i] for i in range(len(questions))]

    def probes(self, questions: Sequence[Question]) -> list[int]:
        """The places of questions to ask first: of each kind without a good reply, as many as may be broken at most."""
        left = {q.kind: self.broken_limit - self.asked[q.kind] for q in questions if self.untried(q.kind)}
        chosen = []
        for i, q in enumerate(questions):
            if left.get(q.kind, 0) > 0:
                left[q.kind] -= 1
                chosen.append(i)
        return chosen

    def untried(self, kind: str) -> bool:
        """Whether no reply of a kind was good yet."""
        return self.asked[kind] == self.broken[kind]

    def answers_of(self, questions: Sequence[Question]) -> list[Any]:
        """Ask all, then those again whose replies were broken, unless the prompt itself was refused."""
        replies = self.judge.ask([q.prompt for q in questions])
        answers = [q.answer(reply) for q, reply in zip(questions, replies, strict=True)]
        again = [i for i, a in enumerate(answers) if a is None and replies[i].finish != REFUSED]
        second = self.judge.ask([questions[i].again(replies[i]) for i in again])
        for i, reply in zip(again, second, strict=True):
            answers[i], replies[i] = questions[i].answer(reply), reply
        for q, answer, reply in zip(questions, answers, replies, strict=True):
            self.asked[q.kind] += 1
            self.broken[q.kind] += answer is None
            self.cut[q.kind] += answer is None and reply.finish == "length"
        return answers

    def check(self) -> None:
        """Raise InputError if every reply of a kind was broken, and they are many."""
        for kind, asked in self.asked.items():
            if self.broken_limit and self.untried(kind) and asked >= self.broken_limit:
                remedy = "choose a model that follows instructions, or judge.broken_limit=0 to count them as wrong"
                raise InputError(f"judge.broken_limit={self.broken_limit}: {self.told(kind)}; {remedy}")

    def told(self, kind: str) -> str:
        """How many replies of a kind were broken, in words."""
        cut = f", {self.cut[kind]} of them cut short by judge.max_tokens" if self.cut[kind] else ""
        return f"{self.broken[kind]:,} of {self.asked[kind]:,} replies about {kind} were broken, asked twice{cut}"
