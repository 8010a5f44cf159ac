"""config.yaml of runs, by whomever they were made: plain values, of bounded size and depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from saebench.checks import InputError, require

SECTIONS = ("model", "data", "sae", "train")  # that every config.yaml has
LARGEST, DEEPEST = 1 << 20, 100  # letters and levels of a config.yaml
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # C is ten times as fast, and not in every build


def read_config(path: Path) -> dict[str, Any]:
    """A run's config.yaml as YAML gives it, with its sections. Raises InputError for one that saebench did not write.

    Nothing but plain values is made of it, and no alias is followed, as a few of them can stand for more than fits any memory.
    """
    remedy = "remove its folder and make the run again"
    require(path.is_file(), f"{path}: missing; {remedy}")
    try:
        text = path.read_text(encoding="utf-8")
        config = yaml.load(text, YAML_LOADER) if is_plain(text) else None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as YAML ({error}); {remedy}") from error
    if not isinstance(config, dict) or not all(isinstance(config.get(name), dict) for name in SECTIONS):
        raise InputError(f"{path}: is not what saebench writes, without {', '.join(SECTIONS)}; {remedy}")
    return config


def is_plain(text: str) -> bool:
    """Whether YAML is without aliases and nested no deeper than DEEPEST: the C loader would overrun its stack."""
    if len(text) > LARGEST:
        return False
    if "*" not in text and sum(map(text.count, "[{-?")) < DEEPEST:
        return True  # as a level takes one of these, or a line indented further than the one above, of which few fit
    depth = 0
    for event in yaml.parse(text, YAML_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > DEEPEST:
            return False
    return True
