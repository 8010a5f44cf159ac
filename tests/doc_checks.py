"""Whether a command in the documentation is one: parsed as Typer does, its overrides composed; nothing is run."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import itertools
import re
import tomllib
from collections.abc import Iterator, Sequence
from typing import Any

import typer
from omegaconf import DictConfig, OmegaConf

from saebench import compose
from saebench.cli.main import app
from saebench.interpret.judged import EXAMS
from saebench.interpret.options import SECTIONS, check_overrides, section
from saebench.space import split_space
from tests.doc_commands import ROOT, Answer, Asked

GROUP: Any = typer.main.get_command(app)
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
GROUPS = {path.name for path in compose.conf_folder().iterdir() if path.is_dir()}


@contextlib.contextmanager
def telling(asked: Asked) -> Iterator[None]:
    """Say where a command stands that is wrong."""
    try:
        yield
    except (Exception, SystemExit) as error:
        told = getattr(error, "format_message", error.__repr__)()  # Typer's, whichever click it has
        raise AssertionError(f"{asked}: {told}") from error


def check_one(asked: Asked) -> Answer:
    """Check a command; no output."""
    with telling(asked):
        CHECKS[asked.argv[0]](asked.argv[1:])
    return 0, ""


def check_saebench(argv: Sequence[str]) -> None:
    """Parse a command as Typer does, and compose the configs that it would. Raises what is wrong."""
    name, *rest = argv
    if name in ("--help", "--version"):
        return
    assert name in GROUP.commands, f"{name}: no such command"
    given = GROUP.commands[name].make_context(name, list(rest)).params
    if name == "search":
        fixed, axes = split_space(given["overrides"])
        composed(*fixed, *(f"{key}={axis.ends[0]}" for key, axis in axes.items()), config_dir=given["config_dir"])
    elif name == "interpret":
        overrides = [text for text in given["given"] if "=" in text]
        check_overrides(overrides)
        judged = given["score"] and {*given["score"].split(",")} & {*EXAMS}
        for part in (name for name in SECTIONS if name != "judge" or judged):
            section(part, overrides)
    elif "overrides" in given:
        composed(*given["overrides"] or (), config_dir=given["config_dir"])


@functools.cache
def composed(*overrides: str, config_dir: str | None) -> None:
    """Compose every run of a rectangle; an experiment's own grids are test_cli.py's. Raises InputError for wrong overrides."""
    compose.check_grammar(overrides)
    with compose.composing(config_dir) as extra:
        fixed, lists = compose.split(overrides)
        for job in itertools.product(*lists):
            options = tuple(o for o in [*fixed, *job] if o.partition("=")[0] in GROUPS)
            known = {options: of_options(options, tuple(extra))}
            compose.typed(compose.job_config([*fixed, *job], [], extra, GROUPS, known))


def of_options(options: Sequence[str], extra: tuple[str, ...]) -> DictConfig:
    """A config with some options, put together from parts: Hydra takes .2 s for each new choice of them."""
    experiments = [option for option in options if option.startswith("experiment=")]
    cfg = copy.deepcopy(of_option(*experiments, extra=extra))
    for option in options:
        group = option.partition("=")[0]
        if group != "experiment":
            OmegaConf.update(cfg, group, of_option(option, extra=extra)[group], merge=False)
    return cfg


@functools.cache
def of_option(*option: str, extra: tuple[str, ...]) -> DictConfig:
    """What Hydra composes for one option, or none."""
    return compose.composed([*option, *extra])


def check_torchrun(argv: Sequence[str]) -> None:
    """Check the command of saebench behind torchrun's own options."""
    script = argv.index("-m")
    assert argv[script + 1] == "saebench"
    check_saebench(argv[script + 2 :])


def check_make(argv: Sequence[str]) -> None:
    """The targets are in the Makefile."""
    targets = re.findall(r"^([\w-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert [word for word in argv if "=" not in word and word not in targets] == []


def check_pip(argv: Sequence[str]) -> None:
    """What is installed of saebench, its extras among them, is there."""
    assert argv[0] in ("install", "download")
    for extras in re.findall(r"saebench\[([\w,]+)\]", " ".join(argv)):
        assert [extra for extra in extras.split(",") if extra not in EXTRAS] == []


def check_python(argv: Sequence[str]) -> None:
    """It is a module of the project."""
    assert argv[0] == "-m"
    assert importlib.util.find_spec(argv[1]) is not None, argv[1]


def check_hf(argv: Sequence[str]) -> None:
    """It downloads."""
    assert argv[0] == "download"


CHECKS = {
    "saebench": check_saebench,
    "torchrun": check_torchrun,
    "make": check_make,
    "pip": check_pip,
    "python": check_python,
    "hf": check_hf,
}
