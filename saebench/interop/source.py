"""Where an SAE is, and in which format: a folder, a file, or a repository of the hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saebench.checks import InputError, one_of, require
from saebench.interop import dictionary_learning, gemma_scope, hub, openai, own, saelens, sparsify
from saebench.interop.facts import Facts
from saebench.interop.plain import Plain, sae_of
from saebench.saes import SAE
from saebench.store import checksum, read_json


@dataclass(frozen=True)
class Format:
    """One library's format: the files that a folder must have, the first of them with the weights."""

    files: tuple[str, ...]
    read: Callable[[Path], tuple[Plain | SAE, Facts]]


FORMATS: dict[str, Format] = {  # in the order in which they are looked for
    "saebench": Format((own.WEIGHTS, own.CONFIG), own.read),
    "saelens": Format((saelens.WEIGHTS, saelens.CONFIG), saelens.read),
    "sparsify": Format((sparsify.WEIGHTS, sparsify.CONFIG), sparsify.read),
    "dictionary_learning": Format((dictionary_learning.WEIGHTS, dictionary_learning.CONFIG), dictionary_learning.read),
    "gemma_scope": Format((gemma_scope.NPZ,), gemma_scope.read),
    "gemma_scope_2": Format((gemma_scope.SAFETENSORS,), gemma_scope.read2),
    "openai": Format((), openai.read),  # a single file under any name
}
PARTS = sorted({name for known in FORMATS.values() for name in known.files})


@dataclass(frozen=True)
class Found:
    """An SAE of any format as ours, with where it is from: `name` tells it from others in tables."""

    sae: SAE
    facts: Facts
    format: str
    path: Path
    name: str

    def sha256(self) -> str:
        """The checksum of the file with the weights."""
        return checksum(self.path / FORMATS[self.format].files[0] if self.path.is_dir() else self.path)


def read_sae(source: str | Path, format: str | None = None) -> Found:
    """The SAE at a folder, a file or a hub id (owner/name, owner/name/folder, owner/name@revision).

    Raises InputError, one line naming file and key, for what is no SAE, is damaged, or works as none of ours.
    """
    if format is not None:
        one_of("--from", format, tuple(FORMATS))
    path = local(str(source))
    found = format or detect(path)
    known = FORMATS[found]
    if known.files and path.is_file():
        path = path.parent
    made, facts = known.read(path)
    sae = sae_of(made) if isinstance(made, Plain) else made
    return Found(sae, facts, found, path, str(source) if not Path(source).exists() else path.resolve().name)


def local(source: str) -> Path:
    """The folder or file of a source; one of the hub is fetched. Raises InputError."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    require(hub.is_id(source), f"{source}: there is no such folder, and it is no hub id such as owner/name")
    return hub.fetch(source, [*PARTS, "config.json", "config.yaml", saelens.SCALER])


def detect(path: Path) -> str:
    """The format of a folder or file. Raises InputError if it is none."""
    folder = path.parent if path.is_file() else path
    for name, known in FORMATS.items():
        if known.files and all((folder / part).is_file() for part in known.files) and named(path, known):
            return name
    if path.is_file():
        require(path.suffix in (".pt", ".pth"), f"{path}: no SAE of a known format; {told()}")
        return "openai"
    below = sorted(
        {
            str(p.parent.relative_to(path))
            for part in PARTS
            for p in (*path.glob(f"*/{part}"), *path.glob(f"*/*/{part}"))
        }
    )
    if below:
        raise InputError(
            f"{path}: holds several SAEs; name one of {', '.join(below[:6])}{', ...' if below[6:] else ''} in it"
        )
    raise InputError(f"{path}: no SAE of a known format there; {told()}")


def named(path: Path, known: Format) -> bool:
    """Whether a path is a folder or one of a format's files."""
    return path.is_dir() or path.name in known.files


def told() -> str:
    """What would be an SAE."""
    return "saebench reads " + ", ".join(f"{n} ({' + '.join(f.files) or 'one .pt file'})" for n, f in FORMATS.items())


def origin_of(found: Found) -> dict[str, Any]:
    """What sae.json says of where an imported SAE is from; of an imported run, what it says itself."""
    said = read_json(found.path / own.CONFIG).get("imported") if found.format == "saebench" else None
    if isinstance(said, dict) and all(isinstance(said.get(key), str) for key in ("name", "format", "sha256")):
        return said
    known = {key: value for key, value in vars(found.facts).items() if value is not None}
    return {"name": found.name, "format": found.format, "sha256": found.sha256(), **known}
