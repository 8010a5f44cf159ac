"""What the language model reads for a task: examples as tokens, which of their positions count, labels and split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saebench.checks import InputError, require
from saebench.lm import special_ids
from saebench.probing.settings import ProbeConfig
from saebench.store import seed_of
from saebench.textfiles import lines, located, readable


class Prompt(NamedTuple):
    """The tokens of an example and the positions in them whose activations count, rising."""

    tokens: list[int]
    kept: list[int]


@dataclass(frozen=True)
class Examples:
    """Examples of one task: prompts, what each is called, its class as a place in `classes`, and whether it is for testing."""

    prompts: list[Prompt]
    names: list[str]
    classes: list[str]
    label: Tensor  # [n] int64
    test: Tensor  # [n] (bool)

    @property
    def y(self) -> Tensor:
        """[n, classes] (bool): whether an example is of a class."""
        return self.label.unsqueeze(1) == torch.arange(len(self.classes))

    def fingerprint(self) -> str:
        """SHA-256 of what the model reads."""
        digest = hashlib.sha256()
        for prompt in self.prompts:
            digest.update(np.array([len(prompt.tokens), *prompt.tokens, *prompt.kept], dtype=np.int64).tobytes())
        return digest.hexdigest()


def draw(n: int, seed: int) -> list[int]:
    """A permutation of range(n), from a seed."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()


def start_of(tokenizer: Any) -> list[int]:
    """BOS, if the tokenizer has one."""
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def encode(tokenizer: Any, text: str) -> list[int]:
    """A text's tokens, none added."""
    return tokenizer.encode(text, add_special_tokens=False)


# labelled texts


def read_labelled(path: Path) -> Iterator[tuple[str, str, bool | None]]:
    """Text, label and, where the file says it, whether it is for testing, of each line of a .jsonl file.

    A line is an object with `text`, `label` (text, number or true/false) and optionally `split` (train or test). Raises
    InputError naming file and line for anything else.
    """
    key = "--data"
    file = located(key, str(path))
    require(file.is_file(), f"{key}={path}: no such file; give a .jsonl file with text and label on each line")
    with readable(key, str(path)):
        for number, line in lines(file):
            if line.strip():
                yield labelled(line, f"{path}, line {number}")


def labelled(line: str, where: str) -> tuple[str, str, bool | None]:
    """One line of `read_labelled`."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error}); give one JSON object a line") from error
    there = isinstance(row, dict) and isinstance(row.get("text"), str) and "label" in row
    require(there, where + ': give an object with text and label, such as {"text": "...", "label": "news"}')
    label, split = row["label"], row.get("split")
    require(isinstance(label, str | int), f"{where}: label={label}: must be text, a whole number or true or false")
    require(split in (None, "train", "test"), f"{where}: split={split}: must be train or test")
    return row["text"], str(label), None if split is None else split == "test"


def text_examples(path: Path, tokenizer: Any, cfg: ProbeConfig) -> Examples:
    """The texts of a file that are taken: of every class as many as the smallest has, at most cfg.train and cfg.test in all.

    Where the file does not say which are for testing, cfg.test / (cfg.train + cfg.test) of a class are, drawn by seed. Texts of
    which no token is left are passed over. Raises InputError for fewer than two classes or a class of too few texts.
    """
    special = special_ids(tokenizer)
    groups: dict[str, list[tuple[str, Prompt, bool | None]]] = {}
    for text, label, test in read_labelled(path):
        prompt = text_prompt(text, tokenizer, special, cfg)
        if prompt.kept:
            groups.setdefault(label, []).append((text, prompt, test))
    classes = sorted(groups)
    require(len(classes) > 1, f"--data={path}: holds {len(classes)} class of label; give at least two")
    parts = [split_of(groups[name], cfg, i) for i, name in enumerate(classes)]
    sizes = [min(len(part[side]) for part in parts) for side in (0, 1)]
    sizes = [min(sizes[0], cfg.train // len(classes)), min(sizes[1], cfg.test // len(classes))]
    least = classes[min(range(len(parts)), key=lambda i: min(map(len, parts[i])))]
    require(min(sizes) > 1, f"--data={path}: {least} has too few texts; two of each class for each side is the least")
    rows = [(i, one, side) for i, part in enumerate(parts) for side in (0, 1) for one in part[side][: sizes[side]]]
    return Examples(
        [one[1] for _, one, _ in rows],
        [one[0][:80] for _, one, _ in rows],
        classes,
        torch.tensor([i for i, _, _ in rows]),
        torch.tensor([side == 1 for _, _, side in rows]),
    )


def split_of(
    group: list[tuple[str, Prompt, bool | None]], cfg: ProbeConfig, number: int
) -> tuple[list[Any], list[Any]]:
    """A class's texts for training and for testing, in a drawn order."""
    shuffled = [group[i] for i in draw(len(group), seed_of(cfg.seed, number))]
    named = [one for one in shuffled if one[2] is not None]
    if named:
        return [one for one in named if not one[2]], [one for one in named if one[2]]
    cut = round(len(shuffled) * cfg.test / (cfg.train + cfg.test))
    return shuffled[cut:], shuffled[:cut]


def text_prompt(text: str, tokenizer: Any, special: frozenset[int], cfg: ProbeConfig) -> Prompt:
    """The first cfg.tokens tokens of a text behind BOS; those that are not special count, or the last of them."""
    tokens = [*start_of(tokenizer), *encode(tokenizer, text)][: cfg.tokens]
    kept = [i for i, token in enumerate(tokens) if token not in special]
    return Prompt(tokens, kept[-1:] if cfg.pool == "last" else kept)
