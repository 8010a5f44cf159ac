"""A model's folder that a stranger wrote: its faults as one line, and no memory for weights that are not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from saebench.checks import InputError, require
from saebench.config import ModelConfig

SPARE = 1.05  # parameters may outnumber the weights by so much, as some are made of others


@contextmanager
def one_line_errors(cfg: ModelConfig) -> Iterator[None]:
    """Turn what transformers and the hub raise about missing, broken or mismatched files into an InputError."""
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except InputError:
        raise
    except (EntryNotFoundError, HFValidationError, SafetensorError, StrictDataclassError) as error:
        raise broken(cfg, error) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError) as error:
        raise broken(cfg, error) from error
    except Exception as error:
        if type(error) is not Exception:  # as tokenizers raises for a file that it cannot read
            raise
        raise broken(cfg, error) from error


def broken(cfg: ModelConfig, error: Exception) -> InputError:
    """An error of transformers as one line."""
    reason = (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(". ")
    remedy = "give a folder that holds the model (model.path=FOLDER), or a hub id while the hub can be reached"
    return InputError(f"model.path={cfg.path}: cannot be loaded ({reason[:300]}); {remedy}")


def check_sizes(path: str, config: Any, folder: Path) -> None:
    """Raise InputError unless the weights in a folder are as many as its config.json asks for; reads their headers alone.

    So nothing is allocated for a config that promises more layers, width or vocabulary than there are weights.
    """
    from transformers import AutoModelForCausalLM

    there, tensors = weights_in(path, folder)
    few = f"model.path={path}: its config.json asks for more layers than its weights have; give those that belong together"
    layers = config.num_hidden_layers
    require(type(layers) is int and 0 < layers <= tensors, few)
    try:
        with torch.device("meta"):
            wanted = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    except (ValueError, TypeError, RuntimeError, AttributeError, KeyError, OverflowError, ZeroDivisionError) as error:
        raise InputError(f"model.path={path}: config.json describes no model ({error}); give another folder") from error
    text = f"model.path={path}: config.json asks for {wanted:,} weights and the files hold {there:,}"
    require(wanted <= SPARE * there, f"{text}; give those that belong together")


def weights_in(path: str, folder: Path) -> tuple[int, int]:
    """How many numbers and how many tensors the safetensors files in a folder hold, by their headers."""
    from safetensors import SafetensorError, safe_open

    numbers = tensors = 0
    for name in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(name, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (no mapping)
                    size = 1
                    for length in file.get_slice(key).get_shape():
                        size *= length
                    numbers, tensors = numbers + size, tensors + 1
        except (SafetensorError, OSError) as error:
            raise InputError(f"model.path={path}: {name.name} cannot be read ({error}); fetch it again") from error
    return numbers, tensors
