"""The language model: where it is, what its config says, and its activations at one site, read by plain PyTorch hooks.

Only safetensors are read and no remote code is run. transformers is imported inside the functions that need it.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from saebench.checks import require
from saebench.config import SITES, ModelConfig
from saebench.devices import resolve_dtype
from saebench.modelfiles import check_sizes, one_line_errors
from saebench.store import checksum, read_mapping
from saebench.textfiles import located

EMBEDDED = Path(__file__).parent / "assets" / "tiny-gpt2"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")


@dataclass(frozen=True)
class Family:
    """Names of submodules: of the model, of the base in it, and of a layer, whose outputs join the residual stream."""

    base: str
    layers: str
    norm: str  # the final one
    attn_out: str
    mlp_out: str


LLAMA = Family("model", "layers", "norm", "self_attn", "mlp")
GEMMA2 = Family("model", "layers", "norm", "post_attention_layernorm", "post_feedforward_layernorm")
FAMILIES = {  # by config.json's model_type
    "gpt2": Family("transformer", "h", "ln_f", "attn", "mlp"),
    "gpt_neox": Family("gpt_neox", "layers", "final_layer_norm", "attention", "mlp"),
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma": LLAMA,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA2,
}


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model before any weights are read."""

    source: str  # folder or hub id
    revision: str | None  # the commit of a hub model
    config: Any  # transformers' PretrainedConfig
    d_model: int
    n_layers: int
    vocab_size: int
    max_positions: int

    def fingerprint(self) -> dict[str, Any]:
        """What tells this model's weights and tokenizer from others', for cache keys; JSON-ready.

        A hub model: its id and commit. A folder: SHA-256 of the config and the tokenizer's files, and of every weight
        file the size and the SHA-256 of its first and last MiB.
        """
        if self.revision is not None:
            return {"hub": self.source, "revision": self.revision}
        folder = Path(self.source)
        names = ("config.json", "tokenizer_config.json", *TOKENIZER_FILES)
        whole = {name: checksum(folder / name) for name in names if (folder / name).is_file()}
        return whole | {p.name: checksum_ends(p) for p in sorted(folder.glob("*.safetensors"))}


def checksum_ends(path: Path) -> str:
    """The size of a file and the SHA-256 of its first and last MiB, as one string."""
    size, mib = path.stat().st_size, 1 << 20
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(mib))
        file.seek(max(0, size - mib))
        digest.update(file.read(mib))
    return f"{size}:{digest.hexdigest()}"


def find_config(cfg: ModelConfig) -> tuple[str, str | None, Path]:
    """Folder or hub id, commit (None for a folder), config.json; a hub model in the cache is not looked for again."""
    folder = EMBEDDED if cfg.path == "embedded" else located("model.path", cfg.path)
    if folder.is_dir():
        require(cfg.revision is None, f"model.revision={cfg.revision}: {folder} is a folder; use model.revision=null")
        has_config = (folder / "config.json").is_file()
        require(has_config, f"model.path={cfg.path}: no config.json there; give a folder that holds a model")
        return str(folder), None, folder / "config.json"
    is_path = cfg.path == "embedded" or cfg.path.startswith(("/", ".", "~"))
    require(not is_path, f"model.path={cfg.path}: there is no folder {folder}; give a folder that holds a model")

    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    with one_line_errors(cfg):
        file = try_to_load_from_cache(cfg.path, "config.json", revision=cfg.revision)
        if not isinstance(file, str):
            file = hf_hub_download(cfg.path, "config.json", revision=cfg.revision)
    return cfg.path, Path(file).parent.name, Path(file)


def describe(cfg: ModelConfig) -> ModelInfo:
    """Check path, family, site and layer against config.json alone, and return what it tells.

    Raises InputError for a folder without a model, a hub id out of reach, an unknown family and a layer out of range.
    """
    source, revision, file = find_config(cfg)
    kind = str(read_mapping(file).get("model_type"))
    known = ", ".join(FAMILIES)
    require(kind in FAMILIES, f"model.path={cfg.path}: its model_type is {kind}; choose a model of {known}")
    weights = revision is not None or any(file.parent.glob("*.safetensors"))
    require(weights, f"model.path={cfg.path}: no *.safetensors there; convert the weights, no other format is read")

    from transformers import AutoConfig

    with one_line_errors(cfg):
        config = AutoConfig.from_pretrained(file.parent, trust_remote_code=False)
    n = config.num_hidden_layers
    require(cfg.layer < n, f"model.layer={cfg.layer}: {cfg.name} has layers 0 to {n - 1}")
    positions = config.max_position_embeddings
    return ModelInfo(source, revision, config, config.hidden_size, n, config.vocab_size, positions)


def check_model(cfg: ModelConfig, info: ModelInfo, seq_len: int) -> None:
    """Raise InputError if blocks do not fit into the model, or the weights in its folder are fewer than config.json asks for.

    (Those of a hub model are not here yet.)
    """
    check_seq_len(seq_len, info.max_positions, cfg.name)
    if info.revision is None:
        check_sizes(cfg.path, info.config, Path(info.source))


def check_seq_len(seq_len: int, max_positions: int, name: str) -> None:
    """Raise InputError if blocks of `seq_len` tokens do not fit into the model."""
    require(
        seq_len <= max_positions, f"data.seq_len={seq_len}: {name} has {max_positions} positions; choose fewer tokens"
    )


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of every special token of a tokenizer: BOS, EOS, padding, unknown, and those added and marked special."""
    added = (i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset(tokenizer.all_special_ids).union(added)


def load_tokenizer(cfg: ModelConfig) -> Any:
    """The model's tokenizer. Raises InputError as `describe` does, and for a folder without a tokenizer."""
    info = describe(cfg)
    found = info.revision is not None or any((Path(info.source) / name).is_file() for name in TOKENIZER_FILES)
    require(found, f"model.path={cfg.path}: no tokenizer.json there; save the model's tokenizer in the same folder")
    from transformers import AutoTokenizer

    with one_line_errors(cfg):
        tokenizer = AutoTokenizer.from_pretrained(info.source, revision=info.revision, trust_remote_code=False)
    n = tokenizer.vocab_size
    fits = f"model.path={cfg.path}: its tokenizer has {n} tokens and the model {info.vocab_size}; give those that belong together"
    require(n <= info.vocab_size, fits)
    return tokenizer


def load_lm(cfg: ModelConfig, device: torch.device) -> LM:
    """The model of `cfg` on `device`, in evaluation mode. Raises InputError as `describe` and `load_tokenizer` do."""
    info, tokenizer = describe(cfg), load_tokenizer(cfg)
    model = load_weights(cfg, info, resolve_dtype(cfg.dtype, device))
    return LM(model.to(device), tokenizer, cfg)


def load_weights(cfg: ModelConfig, info: ModelInfo, dtype: torch.dtype) -> Any:
    """The causal language model on the CPU. Raises InputError if a weight that config.json asks for is not there."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    newer = tuple(map(int, version("transformers").split(".")[:2])) >= (4, 56)
    capped = getattr(info.config, "attn_logit_softcapping", None) is not None  # which SDPA cannot do
    with one_line_errors(cfg):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            info.source,
            revision=info.revision,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="eager" if capped else None,
            output_loading_info=True,
            **{"dtype" if newer else "torch_dtype": dtype},
        )
    model, report = loaded
    missing = sorted(report["missing_keys"])
    remedy = "give a folder whose weights belong to its config.json"
    require(not missing, f"model.path={cfg.path}: {len(missing)} weights are missing, {missing[:1]} first; {remedy}")
    return model


class Site(NamedTuple):
    """A place in a model: layer, counted from 0, and one of SITES."""

    layer: int
    site: str


class SiteReached(Exception):  # noqa: N818 (not an error: it ends a forward pass early)
    """Raised by a hook when the activations are known, and caught around the forward pass."""


class LM:
    """A causal language model and one site in it.

    Attributes: name, layer, site, d_model (width of the site), n_layers, vocab_size (width of the logits),
    max_positions, tokenizer, special_ids, device, dtype; model (with the output embedding), base (without), layers,
    norm (the final one), entry (the site's layer), module (whose output is the site; for resid_pre, whose input).
    """

    def __init__(self, model: Any, tokenizer: Any, cfg: ModelConfig) -> None:
        assert cfg.site in SITES
        family, config = FAMILIES[model.config.model_type], model.config
        self.name, self.layer, self.site = cfg.name, cfg.layer, cfg.site
        self.d_model, self.n_layers = config.hidden_size, config.num_hidden_layers
        self.vocab_size, self.max_positions = config.vocab_size, config.max_position_embeddings
        self.tokenizer, self.special_ids = tokenizer, special_ids(tokenizer)
        self.model: Any = model.eval()
        self.base: Any = model.get_submodule(family.base)
        self.device, self.dtype = model.device, model.dtype
        self.layers = cast(nn.ModuleList, self.base.get_submodule(family.layers))
        self.norm: nn.Module = self.base.get_submodule(family.norm)
        self.inner = {"attn_out": family.attn_out, "mlp_out": family.mlp_out}
        self.at = Site(self.layer, self.site)
        self.entry, self.module = self.layers[self.layer], self.module_of(self.at)

    def module_of(self, at: Site) -> nn.Module:
        """The submodule whose output is a site; for resid_pre, whose input."""
        layer, inner = self.layers[at.layer], self.inner.get(at.site)
        return layer.get_submodule(inner) if inner else layer

    def activations(self, tokens: Tensor) -> Tensor:
        """Activations [b, t, d_model] at the site for `tokens` [b, t]; nothing above the site runs.

        They have the model's dtype. Rows are blocks without padding. Raises InputError if t exceeds max_positions.
        """
        return self.activations_at(tokens, [self.at])[0]

    @torch.no_grad()
    def activations_at(self, tokens: Tensor, sites: Sequence[Site]) -> list[Tensor]:
        """`activations` at several different sites, from one pass that ends at the last of them."""
        check_seq_len(tokens.shape[1], self.max_positions, self.name)
        seen: dict[Site, Tensor] = {}

        def keep(at: Site, x: Tensor) -> None:
            seen[at] = x
            if len(seen) == len(sites):
                raise SiteReached

        with ExitStack() as hooks, suppress(SiteReached):
            for at in sites:
                hooks.enter_context(hooked(self.module_of(at), at, keep))
            self.base(input_ids=tokens.to(self.device), use_cache=False)
        return [seen[at] for at in sites]


def hooked(module: nn.Module, at: Site, keep: Callable[[Site, Tensor], None]) -> RemovableHandle:
    """Hand a site's activations to `keep` whenever the module that has them runs."""

    def enter(_module: nn.Module, args: tuple[Any, ...]) -> None:
        keep(at, args[0])

    def leave(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        keep(at, output[0] if isinstance(output, tuple) else output)

    if at.site == "resid_pre":
        return module.register_forward_pre_hook(enter)
    return module.register_forward_hook(leave)
