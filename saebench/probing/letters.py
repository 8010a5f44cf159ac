"""The first-letter task (Chanin et al. 2024, "A is for Absorption"): words of one token, behind examples of spelling.

A word is a token of the vocabulary that reads as ASCII letters with at most one space ahead. The model reads

    BOS \\n word has the first letter: W \\n other has the first letter: O ... \\n snake

up to the word itself: what would come behind it cannot change its activations in a causal model. Prompts are joined of tokens,
so that every word is its one token whatever stands around it.
"""

from __future__ import annotations

import re
import string
from typing import Any

import torch

from saebench.checks import require
from saebench.lm import special_ids
from saebench.probing.prompts import Examples, Prompt, draw, encode, start_of
from saebench.probing.settings import AbsorptionConfig
from saebench.store import seed_of

LETTERS = list(string.ascii_lowercase)
WORD = re.compile(
    "[Ġ▁ ]?([A-Za-z]+)"
)  # with the marks of a leading space of byte-level and of sentencepiece vocabularies


def words_of(tokenizer: Any) -> dict[int, str]:
    """The words of a vocabulary by token id, rising, as their letters with a leading space if they have one."""
    special = special_ids(tokenizer)
    found = {i: WORD.fullmatch(text) for text, i in tokenizer.get_vocab().items() if i not in special}
    return {i: (" " if match.start(1) else "") + match[1] for i, match in sorted(found.items()) if match is not None}


def letter_examples(tokenizer: Any, cfg: AbsorptionConfig) -> Examples:
    """cfg.words words drawn by seed, the first share cfg.test of them for testing, each behind cfg.icl others of its split.

    Raises InputError if the vocabulary has too few words.
    """
    words = words_of(tokenizer)
    ids = list(words)
    drawn = [ids[i] for i in draw(len(ids), seed_of(cfg.seed))][: cfg.words]
    cut = round(len(drawn) * cfg.test)
    sides = [drawn[cut:], drawn[:cut]]
    enough = min(map(len, sides)) > cfg.icl
    shown = (
        f"absorption.words={cfg.words}, absorption.test={cfg.test:g}: {len(drawn)} words of the vocabulary's {len(ids)}"
    )
    require(
        enough, f"{shown} leave a side with no more than {cfg.icl} of them; take more words, or lower absorption.icl"
    )
    parts = Parts(tokenizer, cfg, words)
    prompts = [parts.prompt(word, side) for side in sides for word in side]
    order = [word for side in sides for word in side]
    label = torch.tensor([LETTERS.index(words[word].strip()[0].lower()) for word in order])
    test = torch.arange(len(order)) >= len(sides[0])
    return Examples(prompts, [words[word] for word in order], LETTERS, label, test)


class Parts:
    """The tokens that prompts are joined of."""

    def __init__(self, tokenizer: Any, cfg: AbsorptionConfig, words: dict[int, str]) -> None:
        before, _, after = cfg.template.partition("{word}")
        self.cfg, self.words = cfg, words
        self.start, self.line = start_of(tokenizer), encode(tokenizer, "\n")
        self.before, self.after = (encode(tokenizer, part) if part else [] for part in (before, after))
        self.answers = {letter: encode(tokenizer, f" {letter.upper()}") for letter in LETTERS}

    def prompt(self, word: int, others: list[int]) -> Prompt:
        """A word behind cfg.icl of the others, drawn by seed and word."""
        tokens = list(self.start)
        for other in self.examples(word, others):
            tokens += [
                *self.line,
                *self.before,
                other,
                *self.after,
                *self.answers[self.words[other].strip()[0].lower()],
            ]
        tokens += [*self.line, *self.before, word]
        return Prompt(tokens, [len(tokens) - 1])

    def examples(self, word: int, others: list[int]) -> list[int]:
        """cfg.icl distinct words that are not `word`."""
        generator = torch.Generator().manual_seed(seed_of(self.cfg.seed, word))
        found: dict[int, None] = {}
        while len(found) < self.cfg.icl:
            for i in torch.randint(len(others), (2 * self.cfg.icl,), generator=generator).tolist():
                if others[i] != word:
                    found[others[i]] = None
        return list(found)[: self.cfg.icl]
