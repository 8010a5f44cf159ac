"""Files that ship with saebench: the embedded language model, which `python -m saebench.assets.build` makes."""

from __future__ import annotations

from pathlib import Path

TINY_GPT2 = Path(__file__).parent / "tiny-gpt2"
