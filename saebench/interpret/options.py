"""What `saebench interpret` is told: sections interpret, free and judge of conf/interpret.yaml, with overrides. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from saebench.checks import InputError, require
from saebench.compose import conf_folder
from saebench.interpret.free import FreeConfig
from saebench.interpret.judge import JudgeConfig
from saebench.interpret.settings import CollectConfig

SECTIONS = {"interpret": CollectConfig, "free": FreeConfig, "judge": JudgeConfig}


def section(name: str, overrides: Sequence[str]) -> Any:
    """One section as its dataclass, from conf/interpret.yaml and the overrides of it (name.key=value).

    Raises InputError for a key that is not there and a value of another type or out of range.
    """
    given = [text.removeprefix(f"{name}.") for text in overrides if text.startswith(f"{name}.")]
    defaults: Any = OmegaConf.load(conf_folder() / "interpret.yaml")
    try:
        changes = OmegaConf.from_dotlist(given)
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SECTIONS[name]), defaults[name], changes))
    except OmegaConfBaseException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        reason = str(error).strip().splitlines()[0]
        keys = ", ".join(f"{name}.{key}" for key in defaults[name])
        raise InputError(f"{' '.join(overrides)}: {reason}; the keys are {keys}") from error


def check_overrides(overrides: Sequence[str]) -> None:
    """Raise InputError for an override that is of no section."""
    for text in overrides:
        known = "=" in text and text.partition(".")[0] in SECTIONS and "." in text.partition("=")[0]
        require(known, f"{text}: give KEY=VALUE with a key of {', '.join(f'{name}.' for name in SECTIONS)}")
