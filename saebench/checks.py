"""Checks of what a user typed: each failure is one line that names key, value and remedy."""

from __future__ import annotations

import difflib


class InputError(ValueError):
    """What a user typed or provided is wrong: one line naming key, value and remedy; the command ends with exit code 2."""


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
        raise InputError(f"{key}={value}: {hint}choose one of {', '.join(allowed)}")


def at_least(key: str, value: float | None, low: float) -> None:
    """Raise InputError unless `value` is None or at least `low`."""
    require(value is None or value >= low, f"{key}={value}: must be at least {low:g}")


def share(key: str, value: float) -> None:
    """Raise InputError unless `value` lies in [0, 1]."""
    require(0 <= value <= 1, f"{key}={value}: must lie between 0 and 1")
