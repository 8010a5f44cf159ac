"""From the command line to typed configs: Hydra composes conf/, OmegaConf checks the types, errors become one line."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from saebench.catalogue import VARIED, conf_folder, config_folders
from saebench.checks import InputError
from saebench.config import RunConfig


def register() -> None:
    """Tell Hydra the types of the configs."""
    store = ConfigStore.instance()
    store.store(name="run_schema", node=RunConfig)
    for group, schemas in VARIED.items():
        for name, schema in schemas.items():
            store.store(group=group, name=f"{name}_schema", node=schema)


@contextmanager
def composing(config_dir: str | None) -> Iterator[list[str]]:
    """Within it `compose` works; yields the overrides that add the user's own folder of configs."""
    register()
    own = config_folders(config_dir)[1:]
    extra = [f"hydra.searchpath=[file://{folder.resolve()}]" for folder in own]
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        yield extra


def load(overrides: Sequence[str], config_dir: str | None = None) -> RunConfig:
    """The one run that `overrides` describe. Raises InputError, one line, for anything wrong in them."""
    check_grammar(overrides)
    with composing(config_dir) as extra:
        return typed(composed([*overrides, *extra]))


def load_sweep(overrides: Sequence[str], config_dir: str | None = None) -> list[RunConfig]:
    """Every run of a sweep: comma lists make a rectangle; an experiment brings its own grids. Duplicates are dropped."""
    check_grammar(overrides)
    with composing(config_dir) as extra:
        fixed, lists = split(overrides)
        base = composed([*fixed, *(o[0] for o in lists), *extra])
        known: dict[tuple[str, ...], DictConfig] = {}
        return [typed(job_config(job, fixed, extra, groups_of(base), known)) for job in jobs_of(base, fixed, lists)]


def jobs_of(base: DictConfig, fixed: list[str], lists: list[list[str]]) -> dict[tuple[str, ...], int]:
    """The varied overrides of every job, each job once, with the number of its grid in experiment.grids, from 0.

    What the command line says of a key, one value or several, stands in place of what the grids say.
    """
    grids: Any = OmegaConf.to_container(base.experiment.grids) if base.get("experiment") else []
    settled = {o.partition("=")[0] for o in (*fixed, *(axis[0] for axis in lists))}
    jobs: dict[tuple[str, ...], int] = {}
    for i, grid in enumerate(grids or [{}]):
        for job in itertools.product(*lists, *grid_axes(grid, settled)):
            jobs.setdefault(job, i)
    return jobs


def groups_of(cfg: DictConfig) -> set[str]:
    """The keys of a config that are sections."""
    return {str(key) for key in cfg if isinstance(cfg._get_node(key), DictConfig)}


def job_config(
    job: Sequence[str], fixed: list[str], extra: list[str], groups: set[str], known: dict[tuple[str, ...], DictConfig]
) -> DictConfig:
    """The config of a sweep's job. Hydra composes each choice of options (sae=..., model=...) once, kept in `known`; values are
    put into copies, as 0.2 s a job would add up."""
    options = tuple(o for o in job if o.partition("=")[0] in groups)
    if options not in known:
        known[options] = composed([*options, *fixed, *extra])
    cfg = copy.deepcopy(known[options])
    values = [o for o in job if o not in options]
    try:
        for o in OverridesParser.create().parse_overrides(values):
            OmegaConf.update(cfg, o.get_key_element(), o.value())
    except (HydraException, OmegaConfBaseException):
        return composed([*job, *fixed, *extra])  # which says what is wrong
    return cfg


def load_over(recorded: dict[str, Any], overrides: Sequence[str], config_dir: str | None = None) -> RunConfig:
    """The run that `overrides` make of a recorded one's model, data, training and seed; all else is as if nothing were recorded.

    A group that they choose anew (data=...) replaces the recorded one. Raises InputError, one line, for anything wrong.
    """
    with composing(config_dir) as extra:
        cfg = composed([*overrides, *extra])
        try:
            parsed = OverridesParser.create().parse_overrides(list(overrides))
            chosen = {o.get_key_element(): o for o in parsed}
            for section in ("model", "data", "train", "seed"):
                if section not in chosen and section in recorded:
                    OmegaConf.update(cfg, section, recorded[section])
            for key, override in chosen.items():
                if "." in key:
                    OmegaConf.update(cfg, key, override.value())
        except (HydraException, OmegaConfBaseException) as error:
            raise InputError(one_line(error, None)) from error
        return typed(cfg)


def load_claims(names: Sequence[str], config_dir: str | None = None) -> dict[str, Any]:
    """The claims of conf/claims/NAME.yaml, as YAML gives them, by id. Raises InputError for a file that is not there."""
    claims: dict[str, Any] = {}
    with composing(config_dir) as extra:
        for name in names:
            found = OmegaConf.to_container(composed(extra, f"claims/{name}"))
            assert isinstance(found, dict)
            twice = sorted({*claims} & {*found["claims"]})
            if twice:
                raise InputError(f"experiment.claims={list(names)}: {', '.join(twice)} is in two of these files")
            claims |= found["claims"]
    return claims


def check_grammar(overrides: Sequence[str]) -> None:
    """Raise InputError naming the first override that Hydra's grammar cannot read."""
    parser = OverridesParser.create()
    for override in overrides:
        try:
            parser.parse_override(override)
        except (HydraException, RecursionError) as error:
            reason = next(iter(str(error).splitlines()), "nested too deep")
            remedy = "write KEY=VALUE, and a value with special characters within quotes: KEY='VALUE'"
            raise InputError(f"{override}: is no override ({reason}); {remedy}") from error


def split(overrides: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Overrides with one value, and those with several as lists of overrides with one."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    fixed = [str(o.input_line) for o in parsed if not o.is_sweep_override()]
    swept = [o for o in parsed if o.is_sweep_override()]
    return fixed, [[f"{o.get_key_element()}={v}" for v in o.sweep_string_iterator()] for o in swept]


def grid_axes(grid: Any, settled: set[str]) -> list[list[str]]:
    """The axes of an experiment's grid: each key that is not settled with its value or list of values, as overrides."""
    if not isinstance(grid, dict):
        raise InputError(f"experiment.grids: each grid maps keys to values, this one is {grid!r}")
    axes = []
    for key, value in ((key, value) for key, value in grid.items() if key not in settled):
        values = value if isinstance(value, list) else [value]
        axes.append([f"{key}={quoted(v)}" for v in values])
    return axes


def quoted(value: Any) -> str:
    """A value in Hydra's override grammar."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return "[" + ",".join(quoted(v) for v in value) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def composed(overrides: list[str], name: str = "run") -> DictConfig:
    """Hydra's config for `overrides`. Raises InputError with the nearest right key or option."""
    try:
        return compose(name, overrides=overrides)
    except MissingConfigException as error:
        raise InputError(
            unknown_option(name) if error.missing_cfg_file == name else one_line(error, overrides)
        ) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(one_line(error, overrides)) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a file that is no YAML or no text, =VALUE
        given = " ".join(o for o in overrides if not o.startswith("hydra.searchpath="))
        raise InputError(
            f"{given}: cannot be composed ({error}); mend the YAML or the override that says so"
        ) from error


def typed(cfg: DictConfig) -> RunConfig:
    """The config as dataclasses, checked."""
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
        if missing:
            raise InputError(f"{', '.join(missing)}: no value; give one, as in {missing[0]}=...")
        run = OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        raise InputError(one_line(error, None)) from error
    assert isinstance(run, RunConfig)
    added = next(added_keys(run), None)
    if added is not None:
        raise InputError(unknown_key(added, ()))
    return run


def added_keys(config: Any, prefix: str = "") -> Iterator[str]:
    """The dotted keys that +KEY=VALUE added and no dataclass has: nothing would read them."""
    known = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    yield from (f"{prefix}{name}" for name in vars(config) if name not in known)
    for name, value in known.items():
        if dataclasses.is_dataclass(value):
            yield from added_keys(value, f"{prefix}{name}.")


def one_line(error: Exception, overrides: list[str] | None) -> str:
    """An error of Hydra or OmegaConf as one line, with the nearest right key or option if it was a wrong one."""
    text = str(error)
    cause = error.__cause__
    wrong_key = re.search(r"Could not override '([^']+)'", text)
    wrong_option = re.search(r"(?:Could not find|In '[^']*': Could not find) '([^']+)'", text)
    if wrong_key and overrides is not None and "Key " in str(cause or text):
        return unknown_key(wrong_key.group(1), overrides)
    if wrong_option:
        return unknown_option(wrong_option.group(1))
    group = re.search(r"Could not override '([^']+)'\.\s*No match in the defaults list", text)
    if group:
        return unknown_key(group.group(1), [])
    key = re.search(r"full_key: (\S+)", text + str(cause or ""))
    first = next(line.strip() for line in (str(cause or "") + "\n" + text).splitlines() if line.strip())
    return f"{key.group(1)}: {first}" if key else first


def unknown_key(key: str, overrides: Sequence[str]) -> str:
    """The message for a key that the configuration, with the options chosen in `overrides`, lacks."""
    options = [o for o in overrides if (conf_folder() / o.partition("=")[0]).is_dir()]
    cfg = compose("run", overrides=options)
    group, _, name = key.partition(".")
    schemas = VARIED.get(group, {})
    others = [option for option, schema in schemas.items() if name in {f.name for f in dataclasses.fields(schema)}]
    if others:
        return f"{key}: {group}={cfg[group].name} has no {name}; those that have: {', '.join(others)}"
    near = difflib.get_close_matches(key, keys_of(cfg), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "`saebench show` prints them all"
    return f"{key}: there is no such key; {hint}"


def keys_of(cfg: DictConfig, prefix: str = "") -> list[str]:
    """Every dotted key of a config."""
    names = []
    for key in cfg:
        names.append(f"{prefix}{key}")
        value = cfg._get_node(key)
        if isinstance(value, DictConfig) and not value._is_none():
            names += keys_of(value, f"{prefix}{key}.")
    return names


def unknown_option(path: str) -> str:
    """The message for an option that its group lacks."""
    group, _, name = path.rpartition("/")
    folder = conf_folder() / group
    options = sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml"))
    near = difflib.get_close_matches(name, options, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{group}={name}: {hint}the options are {', '.join(options)}"
