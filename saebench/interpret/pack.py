"""How the latent page's data files are written: scripts of JSON, token ids as characters, numbers as base64."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from saebench.store import write_text

FIRST = 35  # the character of a vocabulary's first token: above all that JSON escapes but the backslash
SURROGATES = 0xD800  # 0x800 codes from here are no characters
PREFIX, SUFFIX = "receive(", ");\n"


def write_script(path: Path, value: Any) -> None:
    """Write a script that calls receive(value): a page opened from disk may run scripts beside it, but not fetch files."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    write_text(path, PREFIX + text.encode("utf-8", "replace").decode() + SUFFIX)  # half a surrogate pair becomes "?"


class Alphabet:
    """Writes token ids as characters, one a token; the most frequent of `ids` [n] get those that are shortest in UTF-8.

    Token ids lie below `size`. `ids` afterwards are the distinct ones by falling count: the vocabulary to write beside the text.
    """

    def __init__(self, ids: ndarray, size: int) -> None:
        counts = np.bincount(ids, minlength=size)  # [size]
        used = np.flatnonzero(counts)
        self.ids = used[np.argsort(-counts[used], kind="stable")]  # [distinct]
        codes = np.arange(FIRST, FIRST + len(used), dtype="<u4")
        self.codes = np.zeros(size, dtype="<u4")
        self.codes[self.ids] = codes + 0x800 * (codes >= SURROGATES).astype("<u4")

    def write(self, ids: ndarray) -> str:
        """The characters of `ids`, each of which was among those given at first."""
        return self.codes[ids].tobytes().decode("utf-32-le")


def floats(values: ndarray) -> str:
    """Numbers [n] as base64 of little-endian float32."""
    return base64.b64encode(np.asarray(values, dtype="<f4").tobytes()).decode()


def rounded(value: float | None) -> float | None:
    """A number to four significant digits; None if it is none."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")
