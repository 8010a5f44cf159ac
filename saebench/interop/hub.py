"""The Hugging Face hub: fetch named files of a repository, and push a folder. Only errors of one line leave this file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from saebench.checks import InputError, require

ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?P<folder>(?:/[\w.=-]+)*?)(?:@(?P<revision>[\w.-]+))?/?$")


def is_id(source: str) -> bool:
    """Whether a source looks like owner/name, with a folder in it or a revision behind @."""
    return not source.startswith(("/", ".", "~")) and ".." not in source and ID.match(source) is not None


def parts_of(source: str) -> tuple[str, str, str | None]:
    """Repository, folder in it (or nothing) and revision. Raises InputError."""
    found = ID.match(source) if is_id(source) else None
    if found is None:
        raise InputError(f"{source}: is no hub id; one is owner/name, owner/name/folder or owner/name@revision")
    return found["repo"], found["folder"].strip("/"), found["revision"]


@contextmanager
def one_line_errors(source: str) -> Iterator[None]:
    """Turn what the hub's client raises, without a network or for a wrong id, into an InputError."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    raised: tuple[type[Exception], ...] = (OSError, EntryNotFoundError, HFValidationError)
    raised += tuple(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception))  # of its HTTP library
    try:
        yield
    except raised as error:
        if isinstance(error, InputError):
            raise
        first = next((line for line in str(error).strip().splitlines() if line.strip()), type(error).__name__)
        raise InputError(
            f"{source}: the hub cannot be used for it ({first.rstrip('. ')}); a folder needs no hub"
        ) from error


def fetch(source: str, names: Sequence[str]) -> Path:
    """The local folder of a hub id, with those files of `names` that it has. Raises InputError if it has none."""
    from huggingface_hub import snapshot_download

    repo, folder, revision = parts_of(source)
    wanted = [f"{folder}/{name}" if folder else name for name in names]
    with one_line_errors(source):
        path = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted)) / folder
    if not any((path / name).is_file() for name in names):
        require(False, f"{source}: no SAE there; {listing(repo, revision, names)}")
    return path


def listing(repo: str, revision: str | None, names: Sequence[str]) -> str:
    """The first folders of a repository that hold one of `names`."""
    from huggingface_hub import HfApi

    with one_line_errors(repo):
        files = HfApi().list_repo_files(repo, revision=revision)
    folders = sorted({name.rpartition("/")[0] for name in files if name.rpartition("/")[2] in names})
    return (
        f"name a folder of it: {', '.join(folders[:6])}{', ...' if folders[6:] else ''}"
        if folders
        else "none in it at all"
    )


def push(folder: Path, repo: str, private: bool) -> str:
    """Upload a folder as a model repository, made if missing; its address. Raises InputError."""
    from huggingface_hub import HfApi

    api = HfApi()
    with one_line_errors(repo):
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload an SAE of saebench")
    return f"https://huggingface.co/{repo}"
