"""Reading files of unknown origin: nothing is unpickled, and no header makes us allocate much more than the file's own size.

Every fault is an InputError of one line that names the file and the key.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saebench.checks import InputError, require
from saebench.store import read_json

MOST_JSON = 16 << 20  # bytes of a configuration
GROWTH, SLACK = 16, 64 << 20  # an archive may grow by this factor and so many bytes more when it is unpacked
NUMBERS = ("f", "i", "u")  # kinds of numpy dtypes


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises InputError."""
    require(path.is_file(), f"{path}: missing; name a folder that holds an SAE")
    require(path.stat().st_size <= MOST_JSON, f"{path}: larger than {MOST_JSON >> 20} MiB, so not a configuration")
    found = read_json(path)
    require(isinstance(found, dict), f"{path}: not a JSON object")
    return found


def read_safetensors(path: Path) -> Tensors:
    """The tensors of a safetensors file, whose format bounds every shape by the file's size."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    require(path.is_file(), f"{path}: missing; name a folder that holds an SAE")
    try:
        return Tensors(path, load_file(path))
    except (SafetensorError, ValueError, KeyError) as error:  # KeyError: a dtype that torch lacks
        raise InputError(f"{path}: not a valid safetensors file ({error})") from error


def read_pt(path: Path) -> dict[str, Any]:
    """The dictionary that torch.save wrote: its tensors and plain values (weights_only), nothing else."""
    require(path.is_file(), f"{path}: missing; name a folder that holds an SAE")
    check_archive(path, "not the archive that torch.save writes, perhaps a pickle; no pickle is read")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(
            f"{path}: holds more than tensors and plain values, and no pickle is read ({first})"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: torch.load cannot read it ({error})") from error
    require(isinstance(found, dict), f"{path}: holds a {type(found).__name__}, not a dictionary of tensors")
    for key, value in found.items():
        if isinstance(value, Tensor):
            fits = value.numel() * value.element_size() <= value.untyped_storage().nbytes()
            require(fits, f"{path}: {key}: shape {tuple(value.shape)} is larger than its data")
    return found


def read_npz(path: Path) -> Tensors:
    """The arrays of an npz file; each must hold exactly the bytes that its shape says."""
    import numpy as np

    require(path.is_file(), f"{path}: missing; name a folder that holds an SAE")
    check_archive(path, "not an npz archive")
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                check_array(path, archive, member)
        with np.load(path, allow_pickle=False) as arrays:
            return Tensors(path, {name: torch.from_numpy(arrays[name]) for name in arrays.files})
    except (ValueError, OSError, TypeError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a valid npz file ({error})") from error


def check_archive(path: Path, otherwise: str) -> None:
    """Raise InputError unless a file is a zip archive that does not grow beyond GROWTH and SLACK."""
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: {otherwise}")
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{path}: {otherwise} ({error})") from error
    most = GROWTH * path.stat().st_size + SLACK
    require(unpacked <= most, f"{path}: would unpack to {unpacked:,} bytes from {path.stat().st_size:,}; refused")


def check_array(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Raise InputError unless an array's header says numbers, and as many bytes as follow it."""
    from numpy.lib import format as npy

    with archive.open(member) as file:
        version = npy.read_magic(file)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = header(file)
        left = member.file_size - file.tell()
    name = member.filename.removesuffix(".npy")
    require(dtype.kind in NUMBERS, f"{path}: {name}: holds {dtype}, not numbers")
    wanted = math.prod(shape) * dtype.itemsize
    require(wanted == left, f"{path}: {name}: its header says {wanted:,} bytes, and {left:,} follow")


class Tensors:
    """Tensors taken by name with the shapes that they must have; `close` refuses what was not taken."""

    def __init__(self, path: Path, tensors: dict[str, Tensor]) -> None:
        self.path, self.tensors, self.taken = path, tensors, set[str]()

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def shape(self, name: str) -> tuple[int, int]:
        """The shape of a matrix. Raises InputError if it is missing, no matrix, or empty."""
        require(name in self.tensors, f"{self.path}: {name}: missing; the file has {listed(self.tensors)}")
        found = tuple(self.tensors[name].shape)
        require(len(found) == 2 and min(found) > 0, f"{self.path}: {name}: shape {found} is not that of a matrix")
        return found[0], found[1]

    def take(self, name: str, *shape: int) -> Tensor:
        """The finite numbers of `name` as float32. Raises InputError."""
        require(name in self.tensors, f"{self.path}: {name}: missing; the file has {listed(self.tensors)}")
        tensor = self.tensors[name]
        found = tuple(tensor.shape)
        require(found == shape, f"{self.path}: {name}: has shape {found}, and {shape} is needed")
        real = not tensor.is_complex() and tensor.dtype != torch.bool
        require(real, f"{self.path}: {name}: has dtype {tensor.dtype}, and real numbers are needed")
        tensor = tensor.float()
        require(bool(tensor.isfinite().all()), f"{self.path}: {name}: holds NaN or inf")
        self.taken.add(name)
        return tensor

    def close(self, *ignored: str) -> None:
        """Raise InputError if a tensor was left: an SAE without it would be another. `ignored` may be."""
        left = self.tensors.keys() - self.taken - set(ignored)
        require(not left, f"{self.path}: {listed(left)}: saebench does not know what this does in such an SAE")


def listed(names: Any) -> str:
    """Some names, the first few of many."""
    ordered = sorted(map(str, names))
    return ", ".join(ordered[:8]) + (", ..." if len(ordered) > 8 else "") if ordered else "nothing"


def integer(path: Path, key: str, value: Any, low: int = 1) -> int:
    """A whole number of at least `low`. Raises InputError."""
    whole = (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value == int(value)
    )
    require(whole and value >= low, f"{path}: {key}={value}: must be a whole number of at least {low}")
    return int(value)
