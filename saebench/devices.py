"""What the keys of devices and of a model's precision mean on this machine."""

from __future__ import annotations

import torch

from saebench.checks import require
from saebench.progress import say


def resolve_device(device: str, key: str = "device") -> torch.device:
    """The device meant by `device` (auto, cpu, cuda, cuda:N). Raises InputError for a GPU that is not there, naming `key`."""
    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return torch.device("cuda" if n else "cpu")
    found = torch.device(device)
    if found.type == "cuda":
        require(n > 0, f"{key}={device}: no CUDA device is visible; use {key}=cpu")
        require((found.index or 0) < n, f"{key}={device}: there are {n} CUDA devices, counted from 0")
    return found


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype meant by `dtype`: auto is bfloat16 on a GPU and float32 on a CPU; any other is obeyed."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if dtype == "bfloat16" and device.type == "cpu":
        say("model.dtype=bfloat16 is slow on a CPU without hardware support for it; model.dtype=float32 may be faster")
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
