"""What a shell may put in for a word of a run's overrides, from conf/, the configs' types and their checks: no Hydra, no torch.

bash parts `sae=topk` into words of its own at every =, other shells do not; a candidate replaces what the shell holds for the
word that is being typed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from saebench.catalogue import VARIED, comments, conf_folder, defaults, groups, option, options, read, values
from saebench.checks import InputError
from saebench.config import RunConfig

Candidate = tuple[str, str]  # what is put in, and what it is
PLAIN = re.compile(r"[\w./+-]+")  # values that no shell takes for anything else
SECTIONS = {name: hint for name, hint in get_type_hints(RunConfig).items() if name in defaults()}


@dataclass(frozen=True)
class Key:
    """A key: what its comment says, the values it may have or the one it has, whether it takes a list of them."""

    told: str
    values: tuple[str, ...]
    listed: bool


def complete(words: Sequence[str], incomplete: str, config_dir: str | None = None) -> list[Candidate]:
    """The candidates for a word of the overrides, after the words before it; none where nothing is known.

    What is wrong in conf/ or --config-dir is not told here, in the middle of a line: the command tells it.
    """
    own = config_dir if config_dir and Path(config_dir).is_dir() else None
    try:
        return list(candidates(words, incomplete, own))
    except (InputError, OSError, UnicodeDecodeError, yaml.YAMLError):
        return []


def candidates(words: Sequence[str], incomplete: str, own: str | None) -> Iterator[Candidate]:
    """The candidates of `complete`; `own` is a folder."""
    given, parted_key = parted(words)
    key, equals, typed = incomplete.partition("=")
    if parted_key:
        yield from values_of(parted_key, incomplete, given, own)
    elif equals:
        yield from ((f"{key}={value}", told) for value, told in values_of(key.lstrip("+~"), typed, given, own))
    else:
        sign = incomplete[: len(incomplete) - len(incomplete.lstrip("+~"))]
        yield from ((sign + name, told) for name, told in names_of(incomplete[len(sign) :], given, own))


def parted(words: Sequence[str]) -> tuple[list[str], str]:
    """The overrides before the word that is being typed, and the key whose value it is if bash parted them; else "".

    Of `seed=1 sae=to` bash makes seed = 1 sae = | to, and of `seed=1 sae=` it tells seed = 1 sae | alone.
    """
    made: list[str] = []
    for i, word in enumerate(words):
        if made and "=" in (word, words[i - 1]):
            made[-1] += word
        else:
            made.append(word)
    ends = made and (words[-1] == "=" or "=" not in made[-1])
    return (made[:-1], made[-1].removesuffix("=").lstrip("+~")) if ends else (made, "")


def names_of(typed: str, given: Sequence[str], own: str | None) -> Iterator[Candidate]:
    """The keys and groups that begin as typed. bash ends a word that it is sure of, so a sole key comes with a value, too."""
    section = typed.partition(".")[0] if "." in typed else ""
    for group, line in groups().items() if not section else ():
        if group in SECTIONS and group.startswith(typed):
            yield from ((f"{group}=", line), (f"{group}.", line))
    found = {name: key for name, key in keys_of(section, given, own).items() if name.startswith(typed)}
    for name, key in found.items():
        yield f"{name}=", key.told
        if len(found) == 1:
            yield f"{name}={next(iter(key.values), '...')}", key.told


def values_of(name: str, typed: str, given: Sequence[str], own: str | None) -> Iterator[Candidate]:
    """The values of a key or group that begin as typed; behind a comma the next, without those that are there."""
    if name in SECTIONS:
        head, known, told = typed[: typed.rfind(",") + 1], {o.name: o.line for o in options(name, own)}, ""
    else:
        key = keys_of(name.rpartition(".")[0], given, own).get(name, Key("", (), False))
        start = max(typed.rfind(","), typed.rfind("[")) + 1
        head = "[" if key.listed and not typed else typed[:start]
        known, told = dict.fromkeys(key.values, ""), key.told
    there = re.split(r"[\[,]", head)
    found = {f"{head}{value}": line or told for value, line in known.items() if value not in there}
    yield from ((value, line) for value, line in found.items() if value.startswith(typed))


def keys_of(group: str, given: Sequence[str], own: str | None) -> dict[str, Key]:
    """The keys of a group's section, as the options that are chosen have them; of "" those of no section."""
    if not group:
        path = conf_folder() / "run.yaml"
        content = {name: value for name, value in read(path).items() if name != "defaults"}
        return keys_in(RunConfig, content, dict.fromkeys(SECTIONS) | content, comments(path))
    keys: dict[str, Key] = {}
    for name in chosen(group, given) if group in SECTIONS else []:
        content = values(group, name, own) if name else {}
        like = str(content.get("name")) if group in VARIED else defaults()[group]  # the option of conf/ with these keys
        sound = values(group, like) if like else {}
        schema = VARIED[group][str(like)] if group in VARIED else SECTIONS[group]
        files = [option(group, o, own).path for o in (defaults()[group], like, name) if o]
        told = {key: line for file in dict.fromkeys(files) for key, line in comments(file).items()}
        keys |= {f"{group}.{field}": key for field, key in keys_in(schema, content, sound, told).items()}
    if group == "experiment":
        known = tuple(o.name for o in options("claims", own))
        keys["experiment.claims"] = dataclasses.replace(keys["experiment.claims"], values=known)
    return keys


def chosen(group: str, given: Sequence[str]) -> list[str | None]:
    """The options of a group that a command may use: those typed; where an experiment may choose, all that differ in keys."""
    typed = [word.partition("=")[2] for word in given if word.startswith(f"{group}=")]
    if typed:
        return [*typed[-1].split(",")]
    open_ = group in VARIED and any(word.startswith("experiment=") for word in given)
    return [*VARIED[group]] if open_ else [defaults()[group]]


def keys_in(schema: type, content: dict[str, Any], sound: dict[str, Any], told: dict[str, str]) -> dict[str, Key]:
    """The keys of a dataclass that are no sections, with their values in `content`; `sound` values pass its checks."""
    keys: dict[str, Key] = {}
    for name, hint in get_type_hints(schema).items():
        if schema is not RunConfig or name not in SECTIONS:
            now = content.get(name, getattr(schema, name, None))
            known = allowed(schema, name, hint, sound) or (typeable(now) if now is not None else ())
            null = ("null",) if NoneType in get_args(hint) else ()
            keys[name] = Key(told.get(name, ""), (*known, *null), get_origin(hint) is list)
    return keys


def allowed(schema: type, name: str, hint: Any, sound: dict[str, Any]) -> tuple[str, ...]:
    """The values that the checks of a dataclass name when a key has none of them; () if they name none."""
    if hint is bool:
        return ("true", "false")
    wrong: Any = [""] if hint == list[str] else "" if hint in (str, str | None) else None
    if wrong is None:
        return ()
    try:
        schema(**{**sound, name: wrong})
    except InputError as error:
        return error.allowed
    return ()


def typeable(value: Any) -> tuple[str, ...]:
    """A value as it may be typed; () if a shell would want it quoted."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return (text,) if PLAIN.fullmatch(text) else ()


def complete_name(incomplete: str, config_dir: str | None = None) -> list[Candidate]:
    """The groups, and behind GROUP/ its options, that begin as typed; for `saebench configs`."""
    group, slash, _ = incomplete.partition("/")
    if not slash:
        return [(name, line) for name, line in groups().items() if name.startswith(group)]
    own = config_dir if config_dir and Path(config_dir).is_dir() else None
    found = options(group, own) if group in groups() else []
    return [(f"{group}/{o.name}", o.line) for o in found if f"{group}/{o.name}".startswith(incomplete)]


def interpret_keys(incomplete: str) -> list[Candidate]:
    """The keys of conf/interpret.yaml that begin as typed, for `saebench interpret`; a sole one with its value, too."""
    path = conf_folder() / "interpret.yaml"
    told = comments(path)
    found = {f"{group}.{key}": value for group, section in read(path).items() for key, value in section.items()}
    found = {name: value for name, value in found.items() if name.startswith(incomplete)}
    sole = [(f"{name}={next(iter(typeable(value)), '...')}", told.get(name, "")) for name, value in found.items()]
    return [*((f"{name}=", told.get(name, "")) for name in found), *(sole if len(found) == 1 else [])]
