"""saebench: train, prune, nest and measure sparse autoencoders of language models.

sae = saebench.load(RUN_OR_PATH_OR_HUB_ID); latents = sae.encode(x); x_hat = sae.decode(latents)
with saebench.attach(model, sae, layer=8): model(...)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saebench.interop import export, load
    from saebench.intervene import attach

__version__ = "0.1.0"
__all__ = ["__version__", "attach", "export", "load"]

_HOMES = {"attach": "saebench.intervene", "export": "saebench.interop", "load": "saebench.interop"}


def __getattr__(name: str) -> Any:
    """The public functions, imported when they are first asked for: torch takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
