"""Where documents come from, as a stream in a seeded order: files, the hub, Python's own documentation.

What is wrong with a file is an InputError naming file and line.

A .txt file's documents are parted by blank lines; a .jsonl file holds one JSON object a line and a .parquet file one
document a row, both in the column `data.text_column`. Text is UTF-8. Documents of white space alone are left out.
"""

from __future__ import annotations

import codecs
import functools
import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from saebench.checks import InputError, require
from saebench.config import DataConfig

BUFFER = 10_000  # documents shuffled together,
BUFFER_CHARS = 1 << 28  # or fewer if they are long
LONGEST = 1 << 26  # bytes of one document in a .txt file; above it the blank lines are most likely missing
EDGE = 8 << 20  # bytes hashed at either end of a file
ROWS = 256  # rows of a .parquet file held at once


def corpus_fingerprint(cfg: DataConfig) -> Any:
    """What identifies the text: a hash of its files or documents, or the data set's name on the hub."""
    if cfg.source == "python-docs":
        from saebench import pythondocs

        return pythondocs.fingerprint(python_docs())
    if cfg.source == "text":
        assert cfg.path is not None
        return fingerprint("data.path", cfg.path)
    return {"path": cfg.path, "subset": cfg.subset, "split": cfg.split}


def corpus(cfg: DataConfig) -> Iterator[str]:
    """The documents of `cfg` in their order of use, which depends on data.seed."""
    if cfg.source == "hub":
        return hub(cfg)
    if cfg.source == "python-docs":
        return shuffled(iter(python_docs()), cfg.seed)
    assert cfg.path is not None
    return shuffled(documents("data.path", cfg.path, cfg.text_column), cfg.seed)


@functools.cache
def python_docs() -> list[str]:
    """Python's own documentation, gathered once in a process as that takes seconds."""
    from saebench import pythondocs

    return pythondocs.documents()


def heldout(cfg: DataConfig) -> Iterator[str]:
    """The documents of data.heldout_path in their order of use."""
    assert cfg.heldout_path is not None
    return shuffled(documents("data.heldout_path", cfg.heldout_path, cfg.text_column), cfg.seed)


def hub(cfg: DataConfig) -> Iterator[str]:
    """The documents of a data set of the Hugging Face hub, streamed, shuffled by `datasets` with a buffer of BUFFER."""
    import datasets

    assert cfg.path is not None
    where = f"data.path={cfg.path}"
    try:
        stream = datasets.load_dataset(cfg.path, cfg.subset, split=cfg.split, streaming=True)
        rows = iter(stream.shuffle(seed=cfg.seed, buffer_size=BUFFER))
        while (row := next(rows, None)) is not None:
            yield from text_of(row, cfg.text_column, where)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = "check the name, data.subset and data.split, or use a local copy: data=text data.path=FILE_OR_FOLDER"
        raise InputError(f"{where}: cannot read it from the Hugging Face hub ({reason}); {remedy}") from error


def shuffled(stream: Iterator[str], seed: int) -> Iterator[str]:
    """The documents in a seeded order, each drawn evenly from a buffer that is kept full.

    A full permutation if all fit (BUFFER documents, BUFFER_CHARS characters). Uses only `random()`, whose sequence
    Python guarantees.
    """
    rng = random.Random(seed)
    buffer: list[str] = []
    chars = 0
    for document in chain(stream, [None]):
        if document is not None:
            buffer.append(document)
            chars += len(document)
        while buffer and (document is None or len(buffer) > BUFFER or chars > BUFFER_CHARS):
            i = int(rng.random() * len(buffer))
            buffer[i], buffer[-1] = buffer[-1], buffer[i]
            chars -= len(buffer[-1])
            yield buffer.pop()


def find(key: str, path: str) -> list[Path]:
    """The text files at `path`, itself or all below it, sorted. Raises InputError naming `key` if there is none."""
    kinds = ", ".join(READERS)
    root = located(key, path)
    with readable(key, path):
        require(root.exists(), f"{key}={path}: no such file or folder; give one with files that end in {kinds}")
        if root.is_file():
            require(root.suffix.lower() in READERS, f"{key}={path}: must end in {kinds}")
            return [root]
        require(root.is_dir(), f"{key}={path}: is neither a file nor a folder; give one")
        found = sorted(p for p in root.rglob("*") if p.suffix.lower() in READERS)
        lost = [p for p in found if p.is_symlink() and not p.exists()]
        require(not lost, f"{key}={path}: {', '.join(map(str, lost[:1]))} leads nowhere; remove the link, or mend it")
        files = [p for p in found if p.is_file()]
    require(bool(files), f"{key}={path}: the folder holds no {kinds} file")
    return files


def located(key: str, path: str) -> Path:
    """The path, with ~ at its beginning read as the home folder. Raises InputError naming `key` for one of nobody."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{key}={path}: {error}; write the folder out") from error


def documents(key: str, path: str, column: str) -> Iterator[str]:
    """Every document of the files at `path`, in the files' order, with no more than a few of them in memory."""
    empty = True
    for file in find(key, path):
        with readable(key, path):
            for document in READERS[file.suffix.lower()](file, column):
                empty = False
                yield document
    require(not empty, f"{key}={path}: holds no text; give a file with text in it")


def fingerprint(key: str, path: str) -> str:
    """SHA-256 over each file's name below `path`, size, first and last EDGE bytes (small files count whole)."""
    root = located(key, path)
    digest = hashlib.sha256()
    for file in find(key, path):
        name = file.name if file == root else file.relative_to(root).as_posix()
        with readable(key, path):
            digest.update(json.dumps([name, file.stat().st_size, edges(file)]).encode())
    return digest.hexdigest()


@contextmanager
def readable(key: str, path: str) -> Iterator[None]:
    """Turn an OSError while reading below `path` into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{key}={path}: cannot be read ({error}); check the file and its permissions") from error


def edges(path: Path) -> str:
    """SHA-256 of a file's first and last EDGE bytes."""
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(EDGE))
        file.seek(max(EDGE, path.stat().st_size - EDGE))
        digest.update(file.read())
    return digest.hexdigest()


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 file, counted from 1, without a byte order mark, each in memory alone.

    Raises InputError at any other encoding and at a line above LONGEST.
    """
    with path.open("rb") as file:
        for number, data in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), 1):
            require(len(data) <= LONGEST, f"{path}, line {number}: longer than {LONGEST:,} bytes; part it into lines")
            try:
                text = data.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode()
            except UnicodeDecodeError as error:
                raise InputError(f"{path}, line {number}: not UTF-8 ({error.reason}); convert the file") from error
            yield number, text


def read_txt(path: Path, column: str) -> Iterator[str]:
    """Runs of lines between blank lines (empty or white space), each a document; `column` has no meaning here."""
    document: list[str] = []
    size = 0
    for number, line in lines(path):
        if line.strip():
            document.append(line)
            size += len(line)
            require(size <= LONGEST, f"{path}, line {number}: document too long; part documents by blank lines")
        elif document:
            yield "".join(document).rstrip("\r\n")
            document, size = [], 0
    if document:
        yield "".join(document).rstrip("\r\n")


def read_jsonl(path: Path, column: str) -> Iterator[str]:
    """`column` of the JSON object in each line; empty lines are passed over."""
    for number, line in lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError: syntax, a number of too many digits
            raise InputError(f"{path}, line {number}: not JSON ({error}); give one JSON object a line") from error
        require(isinstance(row, dict), f"{path}, line {number}: not a JSON object; give one JSON object a line")
        yield from text_of(row, column, f"{path}, line {number}")


def read_parquet(path: Path, column: str) -> Iterator[str]:
    """`column` of each row, ROWS rows at a time."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            check_column(file.schema_arrow.names, column, str(path))
            number = 0
            for batch in file.iter_batches(ROWS, columns=[column]):
                for row in batch.to_pylist():
                    number += 1
                    yield from text_of(row, column, f"{path}, row {number}")
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable Parquet file of UTF-8 text ({error}); write it again") from error


def text_of(row: dict[str, object], column: str, where: str) -> Iterator[str]:
    """The document in a row, or nothing if it is white space. Raises InputError unless `column` holds proper text."""
    check_column(list(row), column, where)
    text = row[column]
    if not isinstance(text, str):
        raise InputError(
            f"{where}: {column} holds {type(text).__name__}, not text; choose another data.text_column=..."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON may spell half of a surrogate pair
        raise InputError(f"{where}: not text that UTF-8 can hold ({error.reason}); remove the character") from error
    if text.strip():
        yield text


def check_column(names: list[str], column: str, where: str) -> None:
    """Raise InputError naming the columns there are unless `column` is among them."""
    known = ", ".join(names) or "none"
    require(column in names, f"{where}: no column {column} (there are: {known}); choose one with data.text_column=...")


READERS = {".txt": read_txt, ".jsonl": read_jsonl, ".parquet": read_parquet}
