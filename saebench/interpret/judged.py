"""Scores by a judge: it explains a latent from some contexts, and is examined on the explanation with others. No torch.

Detection and fuzzing after Paulo et al. 2024 (arXiv 2410.13928), simulation after Bills et al. 2023, the explanation in both
ways. A broken reply is asked for once more, more strictly; if it stays broken, it is counted as such and as wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np

from saebench.checks import one_of
from saebench.interpret.contexts import Context, LatentContexts, Score
from saebench.interpret.examiner import Examiner
from saebench.interpret.judge import Usage
from saebench.interpret.prompts import (
    Question,
    detection_question,
    explanation_question,
    fuzzing_question,
    marked,
    simulation_question,
)
from saebench.interpret.replies import CachedJudge
from saebench.progress import Progress, say

TEXTS_ASKED = 5  # texts in one question of detection and fuzzing
CHUNK = 64  # latents whose questions are asked together
STAND_IN = "the word 'example' and other words that introduce an instance of what was said before"  # for estimates
TOKENS_OUT = {"explanation": 60, "detection": 15, "fuzzing": 15, "simulation": 25}  # of a reply, for estimates


@dataclass(frozen=True)
class Exam:
    """The questions of one score of one latent, and how the answers (None: broken) make the score."""

    questions: tuple[Question, ...]
    mark: Callable[[Sequence[Any]], Score]


@dataclass(frozen=True)
class Verdict:
    """A latent's explanation (None: it has no contexts, empty: the judge's was broken) and its scores."""

    latent: int
    explanation: str | None
    scores: tuple[Score, ...]


def shuffler(seed: int, name: str, latent: int) -> Random:
    """The random numbers of one score of one latent, whatever else is scored."""
    return Random(f"{seed}/{name}/{latent}")


def detection(latent: LatentContexts, explanation: str, seed: int) -> Exam:
    """Which contexts the latent is active on, `held` against `negatives`, in shuffled fives; balanced accuracy, chance 0.5."""
    both = latent.held and latent.negatives
    items = [(c.text, True) for c in latent.held] + [(c.text, False) for c in latent.negatives] if both else []
    shuffler(seed, "detection", latent.latent).shuffle(items)
    return choice_exam("detection", latent.latent, fives(items), lambda texts: detection_question(explanation, texts))


def fuzzing(latent: LatentContexts, explanation: str, seed: int) -> Exam:
    """In which `held` contexts the marked tokens are the active ones; balanced accuracy, chance 0.5.

    Each context comes twice, marked at its m strongest tokens and at m silent ones, never twice in one question;
    m is the number of its active or of its silent tokens, whichever is smaller. Contexts without a silent token are left out.
    """
    random = shuffler(seed, "fuzzing", latent.latent)
    first, second = list[tuple[str, bool]](), list[tuple[str, bool]]()
    for context in latent.held:
        if all(act > 0 for act in context.acts):
            continue
        right, wrong = markings(context, random)
        swap = random.random() < 0.5
        first.append((wrong, False) if swap else (right, True))
        second.append((right, True) if swap else (wrong, False))
    random.shuffle(first)
    random.shuffle(second)
    batches = fives(first) + fives(second)
    return choice_exam("fuzzing", latent.latent, batches, lambda texts: fuzzing_question(explanation, texts))


def markings(context: Context, random: Random) -> tuple[str, str]:
    """The context marked at its strongest tokens, and at as many silent ones."""
    silent = [i for i, act in enumerate(context.acts) if act <= 0]
    active = [i for i, act in enumerate(context.acts) if act > 0]
    m = min(len(silent), len(active))
    strongest = sorted(active, key=lambda i: -context.acts[i])[:m]
    return marked(context.texts, strongest), marked(context.texts, random.sample(silent, m))


def simulation(latent: LatentContexts, explanation: str, seed: int) -> Exam:
    """Pearson correlation of predicted with true activations over all tokens of `held` and `negatives`, chance 0.

    Constant predictions correlate 0. With b of n replies broken, the correlation over the others times (1 - b / n). `seed` is
    not used: the contexts are asked for one by one.
    """
    contexts = (*latent.held, *latent.negatives) if latent.held else ()
    questions = tuple(simulation_question(explanation, context.texts) for context in contexts)
    acts = [context.acts for context in contexts]
    return Exam(questions, lambda answers: correlation_score(latent.latent, acts, answers))


EXAMS: dict[str, Callable[[LatentContexts, str, int], Exam]] = {
    "detection": detection,
    "fuzzing": fuzzing,
    "simulation": simulation,
}


def fives(items: list[tuple[str, bool]]) -> list[list[tuple[str, bool]]]:
    """The items in runs of TEXTS_ASKED, the last one shorter."""
    return [items[i : i + TEXTS_ASKED] for i in range(0, len(items), TEXTS_ASKED)]


def choice_exam(
    name: str, latent: int, batches: list[list[tuple[str, bool]]], ask: Callable[[list[str]], Question]
) -> Exam:
    """One question a batch of texts; the truth of each text stands beside it."""
    questions = tuple(ask([text for text, _ in batch]) for batch in batches)
    truths = [[truth for _, truth in batch] for batch in batches]
    return Exam(questions, lambda answers: choice_score(name, latent, truths, answers))


def choice_score(name: str, latent: int, truths: list[list[bool]], answers: Sequence[list[bool] | None]) -> Score:
    """Balanced accuracy: the mean of the shares of true and of false texts told rightly, those of broken replies wrongly.

    NaN if there was nothing to tell apart.
    """
    right: dict[bool, list[bool]] = {True: [], False: []}
    for batch, answer in zip(truths, answers, strict=True):
        for i, truth in enumerate(batch):
            right[truth].append(answer is not None and answer[i] == truth)
    shares = [float(np.mean(told)) if told else float("nan") for told in right.values()]
    broken = sum(len(batch) for batch, answer in zip(truths, answers, strict=True) if answer is None)
    return Score(latent, name, sum(shares) / 2, 0.5, sum(map(len, truths)), broken)


def correlation_score(latent: int, acts: Sequence[Sequence[float]], answers: Sequence[Sequence[float] | None]) -> Score:
    """See `simulation`."""
    pairs = [(truth, answer) for truth, answer in zip(acts, answers, strict=True) if answer is not None]
    broken = len(acts) - len(pairs)
    true, predicted = ([value for pair in pairs for value in pair[side]] for side in (0, 1))
    value = pearson(np.array(true), np.array(predicted)) * len(pairs) / len(acts) if acts else float("nan")
    return Score(latent, "simulation", value, 0.0, len(acts), broken)


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """The correlation of two vectors, 0 if one of them is constant or empty."""
    if len(a) == 0 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def judge_latents(
    examiner: Examiner, latents: Sequence[LatentContexts], names: Sequence[str], seed: int
) -> Iterator[Verdict]:
    """The verdict on each latent, in their order; the questions of CHUNK latents are asked together. Raises InputError."""
    for start in range(0, len(latents), CHUNK):
        chunk = latents[start : start + CHUNK]
        explanations = explain(examiner, chunk)
        exams = [
            exam_of(name, latent, explanation, seed)
            for latent, explanation in zip(chunk, explanations, strict=True)
            for name in names
        ]
        scores = sit(examiner, exams, [bool(e) for e in explanations for _ in names])
        for i, latent in enumerate(chunk):
            own = tuple(scores[i * len(names) : (i + 1) * len(names)])
            yield Verdict(latent.latent, explanations[i], own)


def exam_of(name: str, latent: LatentContexts, explanation: str | None, seed: int) -> Exam:
    """The exam `name`; one without questions, whose score is NaN of 0, for a latent that nothing could explain."""
    examined = latent if explanation is not None else replace(latent, held=(), negatives=())
    return EXAMS[name](examined, explanation or "", seed)


def explain(examiner: Examiner, latents: Sequence[LatentContexts]) -> list[str | None]:
    """An explanation of each latent: empty if the reply is broken, None if there is no context to explain it from."""
    asked = [i for i, latent in enumerate(latents) if latent.shown]
    answers = examiner.answers([explanation_question(latents[i]) for i in asked])
    found = dict(zip(asked, answers, strict=True))
    return [(found[i] or "") if i in found else None for i in range(len(latents))]


def sit(examiner: Examiner, exams: Sequence[Exam], explained: Sequence[bool]) -> list[Score]:
    """The score of each exam; those of latents without an explanation are not asked, all their replies count as broken."""
    asked = [q for exam, ask in zip(exams, explained, strict=True) if ask for q in exam.questions]
    answers = iter(examiner.answers(asked))
    return [
        exam.mark([next(answers) if ask else None for _ in exam.questions])
        for exam, ask in zip(exams, explained, strict=True)
    ]


def estimate(judge: CachedJudge, latents: Sequence[LatentContexts], names: Sequence[str], seed: int) -> Usage:
    """What judging would take, from the prompts themselves: about, as explanations and replies are not known before."""
    usage = Usage()
    for latent in latents:
        usage, explanation = foreseen(judge, usage, explanation_question(latent)) if latent.shown else (usage, None)
        for name in names if explanation else ():
            for q in EXAMS[name](latent, str(explanation), seed).questions:
                usage, _ = foreseen(judge, usage, q)
    return usage


def foreseen(judge: CachedJudge, usage: Usage, q: Question) -> tuple[Usage, Any]:
    """The usage with one more question, and its answer if it is known, else a stand-in."""
    known = judge.known(q.prompt)
    if known is not None:
        return usage.plus_cached(), q.answer(known) or STAND_IN
    return usage.plus(q.prompt.tokens, TOKENS_OUT[q.kind]), STAND_IN


def run_judge(
    judge: CachedJudge, latents: Sequence[LatentContexts], names: Sequence[str], seed: int
) -> tuple[list[Verdict], Usage]:
    """The verdict on each latent with the scores `names` (of EXAMS), and what was used.

    Says before what it will take, about, shows what it takes, and says at the end what it took and how much was broken. A
    score of n = 0 is NaN: the latent lacks the contexts for it. Raises InputError for a wrong judge; what was answered before
    is kept, and the same call goes on from there.
    """
    for name in names:
        one_of("score", name, tuple(EXAMS))
    title = f"judge {judge.cfg.label}"
    before = estimate(judge, latents, names, seed)
    say(f"{title}: {len(latents):,} latents will take about {before.told(judge.cfg)}")
    judge.usage, examiner = Usage(), Examiner(judge, judge.cfg.broken_limit)
    try:
        with Progress(before.prompts, "prompts", title) as judge.progress:
            return list(judge_latents(examiner, latents, names, seed)), judge.usage
    finally:
        judge.progress = None
        say(f"{title}: took {judge.usage.told(judge.cfg)}")
        for kind in filter(examiner.broken.get, examiner.asked):
            say(f"{title}: {examiner.told(kind)}")
