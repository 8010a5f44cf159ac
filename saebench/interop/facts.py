"""What a file says of an SAE beside its tensors: where it is from and which activations it was trained on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from saebench.checks import InputError

HOOK = re.compile(r"blocks\.(\d+)\.hook_(resid_pre|resid_post|mlp_out|attn_out)$")


@dataclass(frozen=True)
class Facts:
    """`model` is a hub id, a folder or a name; what is not known is None."""

    model: str | None = None
    layer: int | None = None
    site: str | None = None
    data: str | None = None
    seq_len: int | None = None


def of_hook(name: Any) -> dict[str, Any]:
    """Layer and site of a hook of TransformerLens (blocks.8.hook_resid_pre), nothing if it is none of our sites."""
    found = HOOK.search(str(name))
    return {"layer": int(found[1]), "site": found[2]} if found else {}


def hook_of(facts: Facts) -> str | None:
    """The name that TransformerLens gives the site."""
    return None if facts.layer is None or facts.site is None else f"blocks.{facts.layer}.hook_{facts.site}"


def text(value: Any) -> str | None:
    """A string that is there."""
    return value if isinstance(value, str) and value else None


def number(value: Any) -> int | None:
    """A whole number that is there, not negative."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def mapping(value: Any) -> dict[str, Any]:
    """A dictionary that is there, or an empty one."""
    return value if isinstance(value, dict) else {}


def of_run(folder: Path) -> Facts:
    """What config.yaml says of a run, if there is one."""
    path = folder / "config.yaml"
    if not path.is_file():
        return Facts()
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        model, data = config["model"], config["data"]
        name = model["name"] if model["path"] == "embedded" else model["path"]
        return Facts(name, model["layer"], model["site"], data.get("path") or data["name"], data["seq_len"])
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: no config of a run ({error}); remove it, or name another folder") from error
