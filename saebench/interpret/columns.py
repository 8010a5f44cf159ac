"""Parquet files as columns: whole or a few rows at a time; what is wrong with a file is an InputError that names it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy import ndarray

from saebench.checks import InputError, require

ROWS = 2048  # read at once


@contextmanager
def opened(path: Path, columns: list[str]) -> Iterator[pq.ParquetFile]:
    """A Parquet file that has `columns`. Raises InputError if it does not, or cannot be read."""
    remedy = "remove its folder and make it again"
    try:
        with pq.ParquetFile(path) as file:
            missing = set(columns) - set(file.schema_arrow.names)
            require(not missing, f"{path}: no column {', '.join(sorted(missing))}; {remedy}")
            yield file
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read ({str(error).splitlines()[0]}); {remedy}") from error


def read_table(path: Path, columns: list[str]) -> pa.Table:
    """`columns` of a Parquet file."""
    with opened(path, columns) as file:
        return file.read(columns)


def batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """`columns` of a Parquet file, ROWS rows or fewer at a time."""
    with opened(path, columns) as file:
        yield from file.iter_batches(ROWS, columns=columns)


def empty_table(path: Path, columns: list[str]) -> pa.Table:
    """`columns` of a Parquet file, without any row."""
    with opened(path, columns) as file:
        return file.schema_arrow.empty_table().select(columns)


def metadata_json(path: Path, table: pa.Table, key: str) -> Any:
    """What the schema's metadata holds under `key`, as JSON."""
    metadata = table.schema.metadata or {}
    require(key.encode() in metadata, f"{path}: its schema does not tell {key}; remove its folder and make it again")
    return json.loads(metadata[key.encode()])


class Lists:
    """A column of lists of numbers: `flat`, one after another, and `offsets` [rows + 1], where each begins."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        array = column.combine_chunks()
        self.flat: ndarray = array.flatten().to_numpy(zero_copy_only=False)
        self.offsets: ndarray = np.concatenate([[0], np.cumsum(array.value_lengths().to_numpy())])

    def __getitem__(self, row: int) -> ndarray:
        return self.flat[self.offsets[row] : self.offsets[row + 1]]

    def between(self, start: int, stop: int) -> ndarray:
        """The numbers of rows [start, stop)."""
        return self.flat[self.offsets[start] : self.offsets[stop]]
