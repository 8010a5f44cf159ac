"""English text that needs no network: the running Python's own documentation, a document per topic and per module."""

from __future__ import annotations

import ast
import hashlib
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

from saebench.checks import InputError

MIN_CHARS = 200  # a shorter document is dropped
MIN_REPEAT = 40  # characters; a shorter paragraph may come twice ("Example:")
NOT_LIBRARY = {"idlelib", "lib2to3", "turtledemo", "pydoc_data", "ensurepip", "encodings", "antigravity", "this"}
DEFINITIONS = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
NOT_DOCUMENTATION = {"test", "tests", "__pycache__", "_vendor"}


def documents() -> list[str]:
    """The running Python's topics (language reference), then its modules (docstrings), in the order of their names.

    A paragraph that came before is left out, so that no document holds the text of another. About 2 MB in two or three
    seconds; the text depends on the Python version. Raises InputError if this Python has no source of its library.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    seen: set[str] = set()
    texts = [without_repeats(text, seen) for _, text in sorted(topics.items())]
    texts += [module_text(path, name, seen) for name, path in modules(folder)]
    found = [text for text in texts if len(text) >= MIN_CHARS]
    if len(found) <= len(topics):
        raise InputError(f"data.source=python-docs: {folder} holds no library source; use data=text data.path=FILE")
    return found


def fingerprint(documents: list[str]) -> str:
    """SHA-256 of the documents and of where one ends and the next begins, as 64 hex digits."""
    digest = hashlib.sha256()
    for document in documents:
        data = document.encode()
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


def modules(folder: Path) -> list[tuple[str, Path]]:
    """Dotted name and file of every standard-library module under `folder` written in Python, sorted by name."""
    found = {}
    for top in sys.stdlib_module_names - NOT_LIBRARY:
        for path in [folder / f"{top}.py", *(folder / top).rglob("*.py")]:
            parts = path.relative_to(folder).with_suffix("").parts
            if path.is_file() and NOT_DOCUMENTATION.isdisjoint(parts):
                found[".".join(parts).removesuffix(".__init__")] = path
    return sorted(found.items())


def module_text(path: Path, name: str, seen: set[str]) -> str:
    """The docstrings of a module in source order, each under its qualified name, without what `seen` holds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old modules have invalid escapes; they are not ours to mend
        tree = ast.parse(path.read_bytes())
    parts = ((qualified, without_repeats(text, seen)) for qualified, text in docstrings(tree, name))
    return "\n\n".join(f"{qualified}\n{text}" for qualified, text in parts if text)


def docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """Qualified name and docstring of `node`, called `name`, and of everything defined inside it."""
    if isinstance(node, ast.Module | DEFINITIONS):
        text = ast.get_docstring(node)
        if text:
            yield name, text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            own = f".{child.name}" if isinstance(child, DEFINITIONS) else ""
            yield from docstrings(child, name + own)


def without_repeats(text: str, seen: set[str]) -> str:
    """`text` without the paragraphs of MIN_REPEAT characters or more in `seen`, empty if all of it is; adds its own."""
    whole = normalised(text)
    kept = []
    paragraphs = [] if whole in seen else text.strip().split("\n\n")
    for paragraph in paragraphs:
        words = normalised(paragraph)
        if len(words) < MIN_REPEAT or words not in seen:
            kept.append(paragraph)
        if len(words) >= MIN_REPEAT:
            seen.add(words)
    seen.add(whole)
    return "\n\n".join(kept)


def normalised(text: str) -> str:
    """`text` with every run of white space as one space."""
    return " ".join(text.split())
