"""`saebench show`: a run's config as YAML, each value with what set it: a file of conf/, the command line, a grid, or code.

Hydra says which files it merges, in which order and where in the config; each sets the keys that it has, the later the
stronger. Over them stand the values of the command line, and those of an experiment's grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from saebench.catalogue import config_folders, read, shown
from saebench.checks import require
from saebench.compose import check_grammar, composed, composing, groups_of, job_config, jobs_of, split, typed
from saebench.config import RunConfig, as_dict

COLUMN = 40  # where origins begin, behind values that are shorter
TYPED = "command line"
CODE = "default in code"


@dataclass(frozen=True)
class Resolved:
    """A run's config with its origins. Keys are dotted.

    `raw` holds the values before the config checked itself and filled in what was left out, `origins` what set them (what code
    set is not there), `chosen` the option of each group and what chose it, `heading` what there is beside it in a sweep.
    """

    cfg: RunConfig
    raw: dict[str, Any]
    origins: dict[str, str]
    chosen: dict[str, tuple[str, str]]
    heading: list[str]


def show(overrides: Sequence[str], config_dir: str | None = None, number: int = 1) -> str:
    """The config of a run, or of a sweep's job `number`, as YAML with what set each value in comments. Raises InputError."""
    found = resolve(overrides, config_dir, number)
    return "\n".join([*(f"# {line}" for line in found.heading), *written(as_dict(found.cfg), found)])


def resolve(overrides: Sequence[str], config_dir: str | None = None, number: int = 1) -> Resolved:
    """The config of a run, or of a sweep's job `number` (from 1), with its origins. Raises InputError, one line."""
    check_grammar(overrides)
    with composing(config_dir) as extra:
        fixed, lists = split(overrides)
        base = composed([*fixed, *(o[0] for o in lists), *extra])
        jobs = jobs_of(base, fixed, lists)
        require(1 <= number <= len(jobs), f"--job={number}: choose one of the jobs, 1 to {len(jobs)}")
        job, grid = list(jobs.items())[number - 1]
        cfg = job_config(job, fixed, extra, groups_of(base), {})
        options = [o for o in job if key_of(o) in groups_of(base)]
        origins, choices = files_of([*options, *fixed, *extra], config_folders(config_dir))
        run = typed(cfg)
    by_grid = f"grid {grid + 1} of {origins.get('experiment.grids', TYPED)}"
    setters = dict.fromkeys(fixed, TYPED) | {o: TYPED if i < len(lists) else by_grid for i, o in enumerate(job)}
    origins |= {key: by for o, by in setters.items() for key in keys_set(o)}
    chosen = choices | {key_of(o): (value_of(o), by) for o, by in setters.items() if key_of(o) in choices}
    raw = dict(leaves(OmegaConf.to_container(cfg, resolve=True)))
    return Resolved(run, raw, origins, chosen, heading(jobs, number))


def files_of(overrides: list[str], folders: Sequence[Path]) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """Which file set each key, and of each group the option and the file that chose it; within `composing`."""
    found = GlobalHydra.instance().config_loader().compute_defaults_list("run", overrides, RunMode.RUN)
    origins: dict[str, str] = {}
    for default in found.defaults:
        path = file_of(default.config_path, folders)
        if path is not None:
            content = {key: value for key, value in read(path).items() if key != "defaults"}
            prefix = f"{default.package}." if default.package else ""
            origins |= {key: shown(path) for key, value in leaves(content, prefix) if value != "???"}
    chosen: dict[str, tuple[str, str]] = {}
    for group, option in found.overrides.known_choices.items():
        told = found.overrides.override_metadata.get(group)
        by = file_of(told.containing_config_path or "run" if told else "run", folders)
        if not group.startswith("hydra/") and option is not None:
            assert by is not None
            chosen[group] = (str(option), shown(by))
    return origins, chosen


def file_of(name: str, folders: Sequence[Path]) -> Path | None:
    """The file that Hydra reads for a config; None for those that are in code."""
    paths = [folder / f"{name}.yaml" for folder in folders]
    return next((path for path in paths if path.is_file()), None)


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys and values of nested dictionaries; an empty one is a value."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def key_of(override: str) -> str:
    """The key of an override, without the signs that add or remove."""
    return override.partition("=")[0].lstrip("+~")


def value_of(override: str) -> str:
    """The value of an override, as it was typed."""
    return override.partition("=")[2]


def keys_set(override: str) -> list[str]:
    """The dotted keys that an override sets: several if its value is a mapping."""
    value = OverridesParser.create().parse_override(override).value()
    return [key for key, _ in leaves({key_of(override): value})]


def heading(jobs: Mapping[tuple[str, ...], int], number: int) -> list[str]:
    """What a sweep's jobs are, and which of them is shown; nothing for a single run."""
    if len(jobs) == 1:
        return []
    lines = [f"job {number} of {len(jobs)}, --job N shows another: {' '.join(list(jobs)[number - 1])}"]
    for grid in dict.fromkeys(jobs.values()):
        mine = [job for job, i in jobs.items() if i == grid]
        values: dict[str, dict[str, None]] = {}
        for override in (o for job in mine for o in job):
            values.setdefault(key_of(override), {})[value_of(override)] = None
        axes = " ".join(f"{key}={','.join(found)}" for key, found in values.items())
        lines.append(f"grid {grid + 1}, {len(mine)} job{'s' * (len(mine) > 1)}: {axes}")
    return lines


def written(node: Mapping[str, Any], found: Resolved, prefix: str = "") -> Iterator[str]:
    """The lines of a section of the config."""
    indent = "  " * prefix.count(".")
    for key, value in node.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            option, by = found.chosen.get(name, ("", ""))
            yield line(f"{indent}{key}:", f"{option}: {by}" if option else "")
            yield from written(value, found, f"{name}.")
        elif value and isinstance(value, list) and isinstance(value[0], dict):
            yield line(f"{indent}{key}:", origin(name, value, found))
            yield from (f"{indent}  - {inline(item)}" for item in value)
        else:
            yield line(f"{indent}{key}: {inline(value)}", origin(name, value, found))


def line(text: str, comment: str) -> str:
    """A line of YAML with its comment, aligned."""
    return f"{text:<{COLUMN}} # {comment}" if comment else text


def inline(value: Any) -> str:
    """A value in YAML, on one line."""
    return yaml.safe_dump([value], default_flow_style=True, width=math.inf, allow_unicode=True, sort_keys=False)[1:-2]


def origin(name: str, value: Any, found: Resolved) -> str:
    """What set a value; and what it becomes, if it was left out."""
    by = found.origins.get(name, CODE)
    raw = found.raw.get(name, value)
    if raw != value:
        return f"{by} has {inline(raw)}"
    meant = meaning(name, found.cfg) if value is None else ""
    return f"{by}; {meant}" if meant else by


def meaning(name: str, cfg: RunConfig) -> str:
    """What a value that is null comes to in this run, where the config alone says it."""
    if name == "train.lr":
        rate, factors = cfg.train.learning_rate(cfg.sae.d_sae), cfg.experiment.lr_factors
        tried = ", ".join(f"{rate * factor:.4g}" for factor in factors)
        return f"in a sweep the best of {tried}" if factors else f"here {rate:.4g}"
    if name == "train.n_tokens":
        return f"here {cfg.train_tokens}"
    return ""
