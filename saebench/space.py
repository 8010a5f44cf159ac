"""The ranges of a search as they are typed: train.lr=interval(1e-4,1e-2), int(interval(8,64)), or values parted by commas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from hydra.errors import HydraException

from saebench.checks import InputError, require
from saebench.compose import one_line, quoted

DIGITS = 4  # of a value that is tried


@dataclass(frozen=True)
class Interval:
    """Numbers from low to high, whole if both ends are; searched by their logarithms if low is positive."""

    low: float
    high: float

    @property
    def log(self) -> bool:
        """Whether logarithms are searched."""
        return self.low > 0

    @property
    def ends(self) -> tuple[str, str]:
        """The first and the last value, as overrides take them."""
        return quoted(self.low), quoted(self.high)

    def short(self, value: float) -> float:
        """A value in few digits."""
        if isinstance(self.low, int):
            return value
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)


@dataclass(frozen=True)
class Choice:
    """Values without an order, as overrides take them."""

    values: tuple[str, ...]

    @property
    def ends(self) -> tuple[str, str]:
        """The first and the last value."""
        return self.values[0], self.values[-1]


Axis = Interval | Choice


def split_space(overrides: Sequence[str]) -> tuple[list[str], dict[str, Axis]]:
    """The overrides with one value, and the axes of a search by key. Raises InputError if there is none."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise InputError(one_line(error, None)) from error
    fixed, axes = [], {}
    for o in parsed:
        key, value = o.get_key_element(), o.value() if o.is_interval_sweep() else None
        if isinstance(value, IntervalSweep):
            assert value.start is not None
            assert value.end is not None
            axes[key] = interval(key, value.start, value.end)
        elif o.is_sweep_override():
            axes[key] = Choice(tuple(o.sweep_string_iterator()))
        else:
            fixed.append(str(o.input_line))
    require(bool(axes), "search: no key has a range; give one, such as 'train.lr=interval(1e-4,1e-2)'")
    return fixed, axes


def interval(key: str, low: float, high: float) -> Interval:
    """The interval of a key. Raises InputError unless it rises."""
    require(low < high, f"{key}=interval({low:g},{high:g}): must rise")
    return Interval(low, high)
