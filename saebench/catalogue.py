"""What conf/ and a user's own folder offer, from their YAML files alone: no Hydra and no torch, so that it takes no time."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from saebench.checks import InputError, one_of, require
from saebench.engine_configs import ENGINES
from saebench.sae_configs import SAE_VARIANTS

LEGEND = "* unless another is chosen: GROUP=OPTION. `saebench configs GROUP/OPTION` prints an option with what its keys mean."
VARIED: Mapping[str, Mapping[str, type]] = {
    "sae": SAE_VARIANTS,
    "engine": ENGINES,
}  # groups whose options differ in keys
CLAIMS = "what papers claim, judged by `saebench claims`; an experiment names its own in experiment.claims"


@dataclass(frozen=True)
class Option:
    """A YAML of a group: `line` is the sentence that it begins with, `default` whether a run has it if nothing is chosen."""

    group: str
    name: str
    path: Path
    line: str
    default: bool


def conf_folder() -> Path:
    """The folder of configs: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def config_folders(config_dir: str | None = None) -> list[Path]:
    """conf/ and the user's own folder. Raises InputError if that is no folder, or has a file that conf/ hides."""
    if config_dir is None:
        return [conf_folder()]
    own = Path(config_dir)
    require(own.is_dir(), f"--config-dir={config_dir}: no such folder")
    for path in conf_folder().rglob("*.yaml"):
        name = path.relative_to(conf_folder())
        hidden = (own / name).is_file() and read(own / name) != read(path)
        require(
            not hidden, f"--config-dir={config_dir}: {name} is also in conf/, which is read first; give it a new name"
        )
    return [conf_folder(), own]


def shown(path: Path) -> str:
    """A YAML's path as a user knows it: within conf/, or as --config-dir was typed."""
    inside = path.is_relative_to(conf_folder())
    return str(Path("conf") / path.relative_to(conf_folder())) if inside else str(path)


def groups() -> dict[str, str]:
    """The groups by name, as conf/run.yaml orders them, and what each is; claims last."""
    told = comments(conf_folder() / "run.yaml")
    return {name: told[f"defaults.{name}"] for name in defaults()} | {"claims": CLAIMS}


@functools.cache
def defaults() -> dict[str, str | None]:
    """The option of each group that a run has if nothing is chosen; None: none."""
    entries = read(conf_folder() / "run.yaml")["defaults"]
    return {group: name for entry in entries if isinstance(entry, dict) for group, name in entry.items()}


def options(group: str, config_dir: str | None = None) -> list[Option]:
    """The options of a group by name, nested ones (progressive/cpu) among them; the user's own after those of conf/."""
    found: dict[str, Option] = {}
    for folder in config_folders(config_dir):
        for path in sorted((folder / group).rglob("*.yaml")):
            name = path.relative_to(folder / group).with_suffix("").as_posix()
            found.setdefault(name, Option(group, name, path, sentence(path), defaults().get(group) == name))
    return list(found.values())


def option(group: str, name: str, config_dir: str | None = None) -> Option:
    """One option. Raises InputError with the nearest one there is."""
    found = {o.name: o for o in options(group, config_dir)}
    one_of(group, name, tuple(found))
    return found[name]


def listing(name: str | None = None, config_dir: str | None = None) -> str:
    """What `saebench configs` prints: every group, or one, with a line for each option; or the YAML GROUP/OPTION or of the root.

    Raises InputError with the nearest name there is.
    """
    known = groups()
    roots = {path.stem: path for path in sorted(conf_folder().glob("*.yaml"))}
    group, _, rest = (name or "").strip("/").partition("/")
    if group in known and rest:
        return text_of(option(group, rest, config_dir).path)
    if group in roots and not rest:
        return text_of(roots[group])
    one_of("configs", group or "model", (*known, *roots))
    blocks = [
        block(group, told, config_dir) for group, told in known.items() if name is None or group == name.strip("/")
    ]
    if name is None:
        blocks.append("\n".join(f"{stem}  {sentence(path)}" for stem, path in roots.items()))
    return "\n\n".join([*blocks, LEGEND])


def block(group: str, told: str, config_dir: str | None) -> str:
    """A group and its options, one line each; those of the user's own folder with their paths."""
    found = options(group, config_dir)
    width = max((len(o.name) for o in found), default=0)
    lines = [f"{'*' if o.default else ' '} {o.name:<{width}}  {o.line or shown(o.path)}" for o in found]
    return "\n".join([f"{group}: {told}", *lines])


def text_of(path: Path) -> str:
    """A YAML behind a line with its path."""
    return f"# {shown(path)}\n{path.read_text(encoding='utf-8').rstrip()}"


def values(group: str, name: str, config_dir: str | None = None) -> dict[str, Any]:
    """The keys and values of an option's YAML, over those of the options of its group that its defaults list names."""
    content = read(option(group, name, config_dir).path)
    bases = [str(entry) for entry in content.pop("defaults", [])]
    known = {o.name for o in options(group, config_dir)}
    made: dict[str, Any] = {}
    for base in [*bases, *([] if "_self_" in bases else ["_self_"])]:
        made |= content if base == "_self_" else values(group, base, config_dir) if base in known else {}
    return made


def read(path: Path) -> dict[str, Any]:
    """A YAML file that holds keys and values. Raises InputError naming it."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: is no YAML ({error}); mend it") from error
    require(isinstance(content or {}, dict), f"{path}: holds no keys and values; write KEY: VALUE lines")
    return content or {}


def sentence(path: Path) -> str:
    """The first comment line of a YAML, without its #; Hydra's own (# @package ...) do not count. "" if there is none."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.strip() and not re.match(r"\s*#\s*@", line):
                return line.strip("# \n") if line.startswith("#") else ""
    return ""


def comments(path: Path) -> dict[str, str]:
    """The comments at the ends of a YAML's lines, by the dotted key that the line is of; entries of a list go by their keys."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    found: dict[str, str] = {}

    def walk(node: yaml.Node | None, prefix: str) -> None:
        for child in node.value if isinstance(node, yaml.SequenceNode) else []:
            walk(child, prefix)
        for key, value in node.value if isinstance(node, yaml.MappingNode) else []:
            scalar = isinstance(value, yaml.ScalarNode) or value.flow_style
            mark = value.end_mark if scalar else key.end_mark
            told = re.search(r"\s# (.*)", lines[mark.line][mark.column :]) if mark.line < len(lines) else None
            if told:
                found[f"{prefix}{key.value}"] = told.group(1)
            walk(value, f"{prefix}{key.value}.")

    walk(yaml.compose(text, yaml.SafeLoader), "")
    return found
