"""Triton kernels of the inner loop, for tensors on a CUDA device; each module imports triton, this file does not.

`bags`: weighted sums of rows; `nested`: the nested loss and its gradients; `rows`: Adam row by row; `select`: exact top-k.
Everything takes plain tensors. Sums are float32 and run in a fixed order without atomics, so results are deterministic. An
index or offset out of range is masked: it reads and writes nothing, and finding the error is the caller's business.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

from torch import Tensor


@cache
def available() -> bool:
    """Whether triton is installed, so that the modules of this package can be imported."""
    return find_spec("triton") is not None


def usable(x: Tensor) -> bool:
    """Whether the kernels compute on x: on a GPU, in at most float32 (they sum in it), if triton is installed."""
    return x.is_cuda and x.element_size() <= 4 and x.is_floating_point() and available()


def parts_of(n: int, size: int) -> int:
    """How many parts of a size n takes, the last perhaps not whole."""
    return -(-n // size)


def power_of_two(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()
