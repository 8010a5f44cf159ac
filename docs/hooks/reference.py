"""The reference pages, made from the code when the site is built: configuration, variants, commands, Python, experiments.

Config dataclasses and the commands are imported (neither imports torch), docstrings are read from the sources' trees, values from
the YAMLs of conf/. Every function whose name ends in `_page` returns a page in Markdown.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import typer
import yaml

import saebench
from saebench import config, engine_configs, sae_configs
from saebench.cli.main import app
from saebench.interpret.settings import CollectConfig

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
FIELD = re.compile(r"^    (\w+): ([^=#]+?)(?: = [^#]*?)?(?:  # (.*))?$")
KEY = re.compile(r"^(?: {2})?(\w+):[^#]*(?:#\s*(.*))?$")
SECTIONS = {
    "model": config.ModelConfig,
    "data": config.DataConfig,
    "sparsity": config.SparsityConfig,
    "train": config.TrainConfig,
    "evaluate": config.EvaluateConfig,
    "tracker": config.TrackerConfig,
}
PUBLIC = {  # what the page on Python tells of each file
    "interop/__init__.py": ["load"],
    "interop/targets.py": ["export"],
    "intervene.py": ["attach", "Attached"],
    "sparse.py": ["SparseLatents"],
    "saes/base.py": ["SAE", "Stats", "Normalised"],
}
PUBLIC_METHODS = {"encode", "decode", "normalise", "undo", "forward", "dense", "l0", "rows", "of_rows", "kept"}


def table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; bars in cells are escaped."""
    names = list(heads)
    lines = [names, ["---"] * len(names), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def code(value: object) -> str:
    """A value as YAML has it, in a code span."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
    return f"`{text}`"


def prose(text: str) -> str:
    """A docstring in Markdown: paragraphs that are formulas stand as they are, in others nothing is markup but code spans."""
    parts = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        runs = itertools.groupby(paragraph.splitlines(), lambda line: line.startswith(" "))
        parts += [inspect.cleandoc("\n".join(lines)) if deep else "\n".join(lines) for deep, lines in runs]
    return (
        "\n\n".join(f"```{{ .text .formula }}\n{part}\n```" if formula(part) else plain(part) for part in parts) + "\n"
    )


def formula(part: str) -> bool:
    """Whether a part of a docstring is to keep its lines: it begins with NAME = and is no text with code spans."""
    return "`" not in part and re.match(r"(\w+: )?[\w\[\]|^]+(\([\w, ]*\))? = ", part) is not None


def plain(paragraph: str) -> str:
    """Text whose asterisks, brackets and angles Markdown leaves alone."""
    spans = re.split(r"(`[^`]+`)", paragraph)
    return "".join(part if i % 2 else re.sub(r"([*<\[\]])", r"\\\1", part) for i, part in enumerate(spans))


@cache
def values_of(name: str) -> dict[str, Any]:
    """The keys of conf/NAME.yaml with their values."""
    found = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    return {key: value for key, value in found.items() if key != "defaults"}


def comments_of(schema: type) -> dict[str, tuple[str, str]]:
    """Type and comment of each field of a dataclass, its bases' first, as the source has them."""
    found: dict[str, tuple[str, str]] = {}
    for cls in reversed(schema.__mro__):
        if dataclasses.is_dataclass(cls):
            lines = map(FIELD.match, inspect.getsource(cls).splitlines())
            found |= {m[1]: (m[2], m[3] or "") for m in lines if m}
    return {field.name: found[field.name] for field in dataclasses.fields(schema)}


def yaml_comments(name: str) -> dict[str, str]:
    """The comment behind each key of conf/NAME.yaml."""
    lines = (CONF / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return {m[1]: m[2] or "" for m in map(KEY.match, lines) if m}


def about(name: str) -> str:
    """What the comment at the head of conf/NAME.yaml says, without the commands in it."""
    text = (CONF / f"{name}.yaml").read_text(encoding="utf-8")
    lines = [line[1:] for line in text.splitlines() if line.startswith("#") and not line.startswith("# @")]
    told = "\n".join(re.sub(r"^   .*", "", line).strip() for line in lines)
    return re.sub(r":\n*(\n|$)", ". ", told).replace("\n", " ").strip()


def keys(schema: type, prefix: str, name: str, only: Iterable[str] | None = None) -> str:
    """A table of the keys of a config dataclass: key, type, value in conf/NAME.yaml, meaning."""
    values, notes = values_of(name), yaml_comments(name)
    rows = []
    for key, (kind, comment) in comments_of(schema).items():
        if only is None or key in only:
            rows.append([f"`{prefix}{key}`", f"`{kind}`", code(values.get(key)), plain(comment or notes.get(key, ""))])
    return table(["key", "type", "default", "meaning"], rows)


def options(group: str) -> list[str]:
    """The options of a group of conf/, those in folders as folder/name."""
    return sorted(str(p.relative_to(CONF / group).with_suffix("")) for p in (CONF / group).rglob("*.yaml"))


def option_table(group: str, default: str) -> str:
    """The options of a group: what each is, and where it differs from the default one."""
    base = values_of(f"{group}/{default}")
    rows = []
    for option in options(group):
        values = values_of(f"{group}/{option}")
        differs = [f"`{key}: {value}`" for key, value in values.items() if key != "name" and base.get(key) != value]
        rows.append([f"`{group}={option}`", plain(about(f"{group}/{option}")), ", ".join(differs) or "the default"])
    return table(["option", "", f"unlike `{default}`"], rows)


def defaults() -> dict[str, str]:
    """The option of each group that conf/run.yaml takes."""
    listed = yaml.safe_load((CONF / "run.yaml").read_text(encoding="utf-8"))["defaults"]
    return {group: option for entry in listed if isinstance(entry, dict) for group, option in entry.items()}


def configuration_page() -> str:
    """Every key of a run but the variants'."""
    parts = [
        "# Configuration keys\n",
        "Defaults are those of `conf/`; `null` is no value. Made from the config dataclasses.\n",
    ]
    own = list(values_of("run"))
    parts += ["## Of the run\n", keys(config.RunConfig, "", "run", own)]
    for group, schema in SECTIONS.items():
        default = defaults()[group]
        parts += [f"## {group}\n", plain(inspect.getdoc(schema) or "") + "\n"]
        parts += [keys(schema, f"{group}.", f"{group}/{default}"), option_table(group, default)]
    parts += ["## engine\n", "What a sweep's gangs are handed to; see [engines](../engines.md).\n"]
    for name, schema in engine_configs.ENGINES.items():
        parts += [
            f"### engine={name}\n",
            plain(inspect.getdoc(schema) or "") + "\n",
            keys(schema, "engine.", f"engine/{name}"),
        ]
    parts += [
        "## interpret\n",
        "Of `saebench interpret`, from `conf/interpret.yaml`; see [interpretability](../interpretability.md).\n",
    ]
    return "\n".join([*parts, interpret_tables()])


def interpret_tables() -> str:
    """The sections of conf/interpret.yaml; their dataclasses but the first import torch, so their types are not shown."""
    notes = yaml_comments("interpret") | {key: text for key, (_, text) in comments_of(CollectConfig).items()}
    rows = []
    for section, values in values_of("interpret").items():
        rows += [[f"`{section}.{key}`", code(value), plain(notes.get(key, ""))] for key, value in values.items()]
    return table(["key", "default", "meaning"], rows)


def variants_page() -> str:
    """Each SAE variant: what its module says, and its keys."""
    shared = [field.name for field in dataclasses.fields(sae_configs.SAEConfig)]
    parts = ["# SAE variants\n", "Made from `saebench/saes/` and `conf/sae/`. All of them share:\n"]
    parts += [keys(sae_configs.SAEConfig, "sae.", "sae/topk", shared)]
    for name, schema in sae_configs.SAE_VARIANTS.items():
        tree = ast.parse((ROOT / "saebench" / "saes" / f"{name}.py").read_text(encoding="utf-8"))
        own = [key for key in comments_of(schema) if key not in shared]
        parts += [f"## sae={name}\n", prose(ast.get_docstring(tree) or ""), keys(schema, "sae.", f"sae/{name}", own)]
    return "\n".join(parts)


def commands_page() -> str:
    """Every command: its help, arguments and options."""
    group: Any = typer.main.get_command(app)
    parts = ["# Commands\n", "Made from the commands themselves; `saebench COMMAND --help` says the same.\n"]
    for name in group.list_commands(None):
        command = group.commands[name]
        context = command.make_context(f"saebench {name}", [], resilient_parsing=True)
        usage = " ".join(command.collect_usage_pieces(context))
        parts += [
            f"## {name}\n",
            f"```{{ .text .formula }}\nsaebench {name} {usage}\n```\n",
            plain(inspect.cleandoc(command.help)) + "\n",
        ]
        rows = [row(param, context) for param in command.params if param.name != "help"]
        parts += [table(["", "default", ""], rows)] if rows else []
    return "\n".join(parts)


def row(param: Any, context: Any) -> list[str]:
    """A row on an argument or an option."""
    named = ", ".join(f"`{opt}`" for opt in param.opts) if param.param_type_name == "option" else ""
    default = param.get_default(context)
    shown = str(default) if isinstance(default, Path) else default
    told = "" if param.required or shown is None or shown is False else code(shown)
    return [named or f"`{' '.join(param.get_usage_pieces(context))}`", told, plain(param.help or "")]


def python_page() -> str:
    """The docstrings and signatures of what users import."""
    parts = [
        "# Python\n",
        "`import saebench` gives `load`, `attach` and `export`; the classes are what they return and take.\n",
    ]
    for file, names in PUBLIC.items():
        tree = ast.parse((ROOT / "saebench" / file).read_text(encoding="utf-8"))
        nodes = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        module = f"saebench.{file.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}"
        parts += [described(nodes[name], "saebench" if name in saebench.__all__ else module, 2) for name in names]
    return "\n".join(parts)


def described(node: ast.FunctionDef | ast.ClassDef, home: str, level: int) -> str:
    """A heading, the signature and the docstring of a function, or of a class with its public methods."""
    methods = [n for n in node.body if isinstance(n, ast.FunctionDef)] if isinstance(node, ast.ClassDef) else []
    told = [described(n, node.name, level + 1) for n in methods if n.name in PUBLIC_METHODS and ast.get_docstring(n)]
    heading = f"{'#' * level} {home}.{node.name}\n"
    return "\n".join([heading, f"```python\n{signature(node)}\n```\n", prose(ast.get_docstring(node) or ""), *told])


def signature(node: ast.FunctionDef | ast.ClassDef) -> str:
    """How a function is called, or a class's fields, as in the source."""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, node.bases))
        fields = [f"\n    {ast.unparse(n)}" for n in node.body if isinstance(n, ast.AnnAssign)]
        return f"class {node.name}{f'({bases})' if bases else ''}:{''.join(fields) or ' ...'}"
    given = ast.unparse(node.args).removeprefix("self, ").removeprefix("self")
    line = f"{node.name}({given})" + (f" -> {ast.unparse(node.returns)}" if node.returns else "")
    return line if len(line) < 100 else line.replace("(", "(\n    ", 1).replace(", *, ", ",\n    *,\n    ")


def experiments_page() -> str:
    """The experiments and the claims that each judges."""
    parts = [
        "# Experiments and claims\n",
        "Made from `conf/experiment` and `conf/claims`; `saebench plan experiment=NAME` says how long.\n",
    ]
    rows = []
    for name in options("experiment"):
        files = values_of(f"experiment/{name}").get("experiment", {}).get("claims", [])
        linked = ", ".join(f"[{file}](#claims-of-{file})" for file in files)
        rows.append([f"`experiment={name}`", plain(about(f"experiment/{name}")), linked])
    parts.append(table(["experiment", "", "claims"], rows))
    for file in options("claims"):
        claims = values_of(f"claims/{file}").items()
        told = [[id_, plain(claim["text"]), claim.get("direction", ""), claim["source"]] for id_, claim in claims]
        parts += [
            f"## Claims of {file}\n",
            plain(about(f"claims/{file}")) + "\n",
            table(["claim", "", "direction", "source"], told),
        ]
    return "\n".join(parts)


PAGES = {
    "reference/configuration.md": configuration_page,
    "reference/variants.md": variants_page,
    "reference/commands.md": commands_page,
    "reference/python.md": python_page,
    "reference/experiments.md": experiments_page,
}
