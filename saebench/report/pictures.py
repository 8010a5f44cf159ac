"""The figures that `saebench figures` drew and the page does not draw itself, as PNG within the page."""

from __future__ import annotations

import base64
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

OWN = (
    "claim_*",
    "training_curves*",
    "latent_importance*",
    "training_cost*",
    "*_vs_l0*",
    "*_vs_size*",
)  # drawn by the page
ROOM = 2_500_000  # bytes of PNG


def read_pictures(outputs: Path) -> dict[str, Any]:
    """Names and data URLs of figures, as many as there is room for, and the names of those left out."""
    files = sorted((outputs / "figures").glob("*.png"))
    shown: list[dict[str, str]] = []
    left_out: list[str] = []
    room = ROOM
    for file in files:
        if any(fnmatchcase(file.stem, pattern) for pattern in OWN):
            continue
        room -= file.stat().st_size
        if room < 0:
            left_out.append(file.stem)
        else:
            shown.append(
                {"name": file.stem, "url": f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"}
            )
    return {"shown": shown, "left_out": left_out}
