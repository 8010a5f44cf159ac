"""What `saebench probe` and `saebench absorption` are told: the sections of conf/probing.yaml, with overrides. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from saebench.checks import InputError, at_least, one_of, positive, require, seed, share
from saebench.compose import conf_folder


@dataclass
class ProbeConfig:
    """How labelled texts are probed."""

    train: int  # texts, spread evenly over the classes
    test: int
    tokens: int  # of each text
    pool: str  # mean, or last
    k: list[int]
    all_latents: bool
    ridge: float
    batch: int  # tokens encoded at once
    replicates: int
    seed: int

    def __post_init__(self) -> None:
        for key, low in (("train", 4), ("test", 4), ("tokens", 1), ("batch", 1), ("replicates", 1)):
            at_least(f"probe.{key}", getattr(self, key), low)
        require(bool(self.k), "probe.k=[]: name at least one number of latents")
        for k in self.k:
            at_least("probe.k", k, 1)
        one_of("probe.pool", self.pool, ("mean", "last"))
        positive("probe.ridge", self.ridge)
        seed("probe.seed", self.seed)


@dataclass
class AbsorptionConfig:
    """How absorption of first letters is measured."""

    words: int | None
    test: float
    icl: int
    template: str
    max_k: int
    f1_jump: float
    l1: float
    ridge: float
    min_f1: float
    min_letters: int
    cosine_full: float
    cosine_fraction: float
    proportion: float
    absorbers: int
    batch: int
    replicates: int
    seed: int

    def __post_init__(self) -> None:
        for key, low in (("icl", 0), ("max_k", 1), ("absorbers", 1), ("batch", 1), ("replicates", 1)):
            at_least(f"absorption.{key}", getattr(self, key), low)
        at_least("absorption.words", self.words, 10)
        at_least("absorption.f1_jump", self.f1_jump, 0)
        require(1 <= self.min_letters <= 26, f"absorption.min_letters={self.min_letters}: must be from 1 to 26")
        for key in ("test", "min_f1", "proportion"):
            share(f"absorption.{key}", getattr(self, key))
        for key in ("l1", "ridge"):
            positive(f"absorption.{key}", getattr(self, key))
        before, _, after = self.template.partition("{word}")
        fits = "{word}" in self.template and "{" not in before + after
        require(fits, f"absorption.template={self.template}: must hold {{word}} once, such as '{{word}} begins with:'")
        seed("absorption.seed", self.seed)


SECTIONS = {"probe": ProbeConfig, "absorption": AbsorptionConfig}


def section(name: str, overrides: Sequence[str]) -> Any:
    """One section as its dataclass, from conf/probing.yaml and overrides name.key=value.

    Raises InputError for an override of anything else, a key that is not there, and a value of another type or out of range.
    """
    defaults: Any = OmegaConf.load(conf_folder() / "probing.yaml")
    keys = ", ".join(f"{name}.{key}" for key in defaults[name])
    for text in overrides:
        require(text.startswith(f"{name}.") and "=" in text, f"{text}: give KEY=VALUE with a key of {keys}")
    try:
        changes = OmegaConf.from_dotlist([text.removeprefix(f"{name}.") for text in overrides])
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SECTIONS[name]), defaults[name], changes))
    except OmegaConfBaseException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{' '.join(overrides)}: {reason}; the keys are {keys}") from error
