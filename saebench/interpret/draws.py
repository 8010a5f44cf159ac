"""Random numbers that are a function of what they are drawn for, so that no order and no batch size can change them."""

from __future__ import annotations

import torch
from torch import Tensor

MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))  # of splitmix64 (Steele, Lea, Flood 2014)
STEP = 0x9E3779B97F4A7C15


def signed(number: int) -> int:
    """A 64-bit number as int64 holds it."""
    return number - (1 << 64) if number >> 63 else number


def shifted(x: Tensor, bits: int) -> Tensor:
    """The logical right shift of int64 (torch's own repeats the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mixed(x: Tensor) -> Tensor:
    """splitmix64's finaliser: a bijection of int64 whose every output bit depends on every input bit."""
    x = x + signed(STEP)
    for bits, factor in MIX:
        x = (x ^ shifted(x, bits)) * signed(factor)
    return x ^ shifted(x, 31)


def drawn(seed: int, *parts: Tensor) -> Tensor:
    """A uniform draw from [0, 2^63) for each tuple of `parts` (int64, of one shape), a function of seed and tuple alone."""
    draw = mixed(torch.full_like(parts[0], seed))
    for part in parts:
        draw = mixed(draw ^ part)
    return shifted(draw, 1)


def is_shown(documents: Tensor, seed: int) -> Tensor:
    """Whether contexts of these documents may be shown (half of all documents) or are held out for scoring; bool, same shape."""
    return drawn(seed, documents) % 2 == 0
