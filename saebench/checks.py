"""Checks of what a user typed: each failure is one line that names key, value and remedy."""

from __future__ import annotations

import difflib
import math
import re
import sys
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Schema = TypeVar("Schema")


class InputError(ValueError):
    """What a user typed or provided is wrong: one line naming key, value and remedy; the command ends with exit code 2.

    `allowed` are the values that would do, where they are few.
    """

    allowed: tuple[str, ...] = ()


class WorkError(RuntimeError):
    """Work that was handed to other processes failed there: one line naming their logs; the command ends with exit code 1."""


class RankLost(RuntimeError):  # noqa: N818
    """Another rank of a job under torchrun is gone, so that this one cannot go on; the command ends with exit code 1."""


def require(ok: bool, message: str) -> None:
    """Raise InputError(message) unless `ok`."""
    if not ok:
        raise InputError(message)


def one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise InputError naming the nearest allowed value unless `value` is one of them."""
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        error = InputError(f"{key}={value}: {hint}choose one of {', '.join(allowed)}")
        error.allowed = allowed
        raise error


def at_least(key: str, value: float | None, low: float) -> None:
    """Raise InputError unless `value` is None or finite and at least `low`; whole numbers fit into 64 bits."""
    require(value is None or low <= value < most(value), f"{key}={value}: must be at least {low:g}{bounded(value)}")


def positive(key: str, value: float | None) -> None:
    """Raise InputError unless `value` is None or finite and above 0; whole numbers fit into 64 bits."""
    require(value is None or 0 < value < most(value), f"{key}={value}: must be positive{bounded(value)}")


def most(value: float) -> float:
    """What a number must stay below."""
    return 2**63 if type(value) is int else math.inf


def bounded(value: float | None) -> str:
    """What to add where a value is too large."""
    too_large = value is not None and value >= most(value)
    return (" and fit into 64 bits" if type(value) is int else " and finite") if too_large else ""


def seed(key: str, value: int) -> None:
    """Raise InputError unless every generator takes `value` as its seed."""
    require(-(2**63) <= value < 2**63, f"{key}={value}: must fit into 64 bits; choose a smaller one")


def share(key: str, value: float) -> None:
    """Raise InputError unless `value` lies in [0, 1]."""
    require(0 <= value <= 1, f"{key}={value}: must lie between 0 and 1")


def made_of(schema: type[Schema], values: Any, where: str) -> Schema:
    """The dataclass `schema` of what a file holds, checked as nobody else has: the keys there are, and their types.

    Raises InputError beginning with `where` for values that are no mapping, for keys that are missing or unknown, and for a
    value of another type than the field's (a number that is not finite among them).
    """
    mapping = isinstance(values, dict) and all(isinstance(key, str) for key in values)
    require(mapping, f"{where}: holds {shortly(values)}, not keys and values; write it again")
    types = get_type_hints(schema)
    for name, value in values.items():
        require(
            name in types, f"{where}: {shortly(name)}: written by another version of saebench, this one has no such key"
        )
        require(
            fits(value, types[name]), f"{where}: {name}={shortly(value)}: of another type than this saebench writes"
        )
    try:
        return schema(**{name: as_float(value, types[name]) for name, value in values.items()})
    except TypeError as error:
        reason = str(error).partition("missing ")[2] or str(error)
        raise InputError(f"{where}: written by another version of saebench: without {reason}") from error
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def fits(value: Any, kind: Any) -> bool:
    """Whether a value read from JSON or YAML is of a type as dataclasses name it; whole numbers pass as float."""
    parts = get_args(kind)
    if kind is Any:
        return True
    if get_origin(kind) is list:
        return isinstance(value, list) and all(fits(one, parts[0]) for one in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict)
    if parts:  # a union
        return any(fits(value, part) for part in parts)
    if kind is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return type(value) is kind and (kind is not int or -(2**63) <= value < 2**63)


def as_float(value: Any, kind: Any) -> Any:
    """A whole number where a field holds a float as one; any other value as it is."""
    return float(value) if type(value) is int and (kind is float or float in get_args(kind)) else value


def shortly(value: Any) -> str:
    """A value in few letters."""
    text = f"{type(value).__name__} of {len(value)}" if isinstance(value, dict | list) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def a_device(key: str, value: str) -> None:
    """Raise InputError unless `value` names a device."""
    named = value in ("auto", "cpu", "cuda") or re.fullmatch(r"cuda:[0-9]{1,4}", value) is not None
    require(named, f"{key}={value}: choose one of auto, cpu, cuda, cuda:N")
