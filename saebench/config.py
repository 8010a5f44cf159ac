"""Every configuration key but the SAEs' (sae_configs.py), its type and its checks; conf/ holds the numbers.

This file imports no torch, so that a wrong key is reported before the heavy libraries load. A dataclass here is what the
code receives: `OmegaConf.to_object` turns the composed YAML into a `RunConfig` once, at the door.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from saebench.checks import InputError, a_device, at_least, made_of, one_of, positive, require, seed, share
from saebench.engine_configs import ENGINES, LocalConfig
from saebench.sae_configs import SAE_VARIANTS, SAEConfig, with_neutral

SITES = ("resid_pre", "resid_post", "mlp_out", "attn_out")
RULES = ("energy", "frequency", "norm_energy", "decoder_norm", "random", "unsorted")
ORDERS = ("select_then_prune", "prune_then_select")
TRACKERS = ("none", "wandb", "tensorboard", "trackio", "mlflow")
UNRECORDED = (
    "engine",
    "tracker",
    "memory_gb",
)  # what says nothing of a run: who makes it, in what room, who is told of it


@dataclass
class ModelConfig:
    """The language model and the place in it whose activations are read."""

    name: str
    path: str  # hub id or folder; "embedded" is the model that ships with saebench
    layer: int  # counted from 0
    site: str
    dtype: str  # auto is bfloat16 on a GPU and float32 on a CPU
    revision: str | None
    batch: int  # sequences in a forward pass; part of the cache key, as it moves the last digits

    def __post_init__(self) -> None:
        one_of("model.site", self.site, SITES)
        one_of("model.dtype", self.dtype, ("auto", "float32", "bfloat16"))
        at_least("model.layer", self.layer, 0)
        at_least("model.batch", self.batch, 1)


@dataclass
class DataConfig:
    """The text, how it is split into training and held-out documents, and how it is cut into blocks of tokens."""

    name: str
    source: str  # python-docs, text or hub
    path: str | None  # text: a file or a folder; hub: the data set's id
    heldout_path: str | None  # text: separate held-out documents; without it they are taken from `path`
    subset: str | None  # hub
    split: str  # hub
    text_column: str
    n_tokens: int  # training tokens, in whole blocks
    eval_tokens: int  # held-out tokens, in whole blocks
    seq_len: int
    bos: str  # block: every block begins with BOS, documents are parted by it; document: only parted; none: neither
    seed: int  # the order of documents and of blocks
    dtype: str  # of the cached activations
    stats_tokens: int  # training tokens from which mean, scale and norm quantiles are measured
    outlier_norm: float  # tokens whose norm exceeds this multiple of the median norm are flagged
    shard_tokens: int  # tokens in one file of the cache
    special: str = "exclude"  # special tokens (BOS among them): exclude them, or keep them as any other token

    def __post_init__(self) -> None:
        one_of("data.source", self.source, ("python-docs", "text", "hub"))
        one_of("data.bos", self.bos, ("block", "document", "none"))
        one_of("data.special", self.special, ("exclude", "keep"))
        one_of("data.dtype", self.dtype, ("bfloat16", "float32"))
        require(
            self.source == "python-docs" or bool(self.path), f"data.path={self.path}: data={self.name} needs a path"
        )
        at_least("data.seq_len", self.seq_len, 2)
        for key in ("n_tokens", "eval_tokens", "stats_tokens", "shard_tokens"):
            at_least(f"data.{key}", getattr(self, key), self.seq_len)
        require(
            1 < self.outlier_norm < math.inf, f"data.outlier_norm={self.outlier_norm}: must exceed 1, and be finite"
        )
        seed("data.seed", self.seed)


@dataclass
class SparsityConfig:
    """How the sparsity knob (k, or the penalty's coefficient) moves during training: from start * knob to the knob itself."""

    name: str
    start: float  # factor at step 0
    fraction: float  # of the training tokens over which the factor goes to 1

    def __post_init__(self) -> None:
        at_least("sparsity.start", self.start, 0)
        share("sparsity.fraction", self.fraction)


@dataclass
class TrainConfig:
    """Optimiser, batches and schedules."""

    batch_size: int  # tokens in a step
    n_tokens: int | None  # tokens to train on, more than data.n_tokens means more epochs; None: data.n_tokens
    lr: float | None  # None: lr_scale * sqrt(16384 / d_sae)
    lr_scale: float
    beta1: float
    beta2: float
    warmup: float  # fraction of the steps over which the learning rate rises from 0
    decay: float  # fraction of the steps, at the end, over which it falls to 0
    clip: float  # gradient norm; 0 turns clipping off
    order_seed: int
    window_tokens: int  # activations shuffled together in memory
    log_every: int  # steps
    importance_tokens: int  # training tokens over which each latent's frequency and energy are measured at the end
    precision: str  # of products, float32 or bfloat16 (weights and sums stay float32); auto: bfloat16 on a GPU
    lm_device: str | None = None  # where the language model runs, and SAEs are evaluated; None: device

    def __post_init__(self) -> None:
        if self.lm_device is not None:
            a_device("train.lm_device", self.lm_device)
        for key in ("batch_size", "log_every", "importance_tokens"):
            at_least(f"train.{key}", getattr(self, key), 1)
        at_least("train.n_tokens", self.n_tokens, self.batch_size)
        require(
            self.window_tokens >= self.batch_size,
            f"train.window_tokens={self.window_tokens}: must be at least train.batch_size={self.batch_size}",
        )
        for key in ("warmup", "decay", "beta1", "beta2"):
            share(f"train.{key}", getattr(self, key))
        require(self.warmup + self.decay <= 1, f"train.decay={self.decay}: with train.warmup it must not exceed 1")
        positive("train.lr", self.lr)
        positive("train.lr_scale", self.lr_scale)
        seed("train.order_seed", self.order_seed)
        at_least("train.clip", self.clip, 0)
        one_of("train.precision", self.precision, ("auto", "float32", "bfloat16"))

    def resolve_precision(self, device: str) -> str:
        """float32 or bfloat16 for a device type."""
        return self.precision if self.precision != "auto" else ("bfloat16" if device == "cuda" else "float32")

    def learning_rate(self, d_sae: int) -> float:
        """train.lr, or else lr_scale * sqrt(16384 / d_sae) (Gao et al. 2024, section 3: lr falls as the root of the width)."""
        return self.lr if self.lr is not None else self.lr_scale * (16384 / d_sae) ** 0.5


@dataclass
class EvaluateConfig:
    """The views of a trained SAE that are measured, and how many held-out tokens pay for the dear metrics."""

    sizes: list[float]  # pruned and prefix views keep these shares of d_sae
    rules: list[str]
    orders: list[str]
    scale_k: bool  # prune_then_select also with k scaled by the share kept
    budgets: list[int]  # budget views: the token's largest latents, and a threshold tuned to that mean L0
    ce_tokens: int  # held-out tokens with the reconstruction spliced into the language model; 0: none
    ce_views: int  # at most so many views per SAE, the full one first, then spread over the kinds
    rsa_tokens: int  # held-out tokens between whose pairs representational similarity is measured
    threshold_tokens: int  # training tokens on which the thresholds of budget views are tuned
    batch: int  # tokens encoded at once
    logit_chunk: int  # positions whose logits are held at once
    seed: int  # of random pruning and of the RSA sample
    cross: bool = False  # prefix and pruned views at each of the budgets, too: every dictionary size with every budget

    def __post_init__(self) -> None:
        for s in self.sizes:
            require(0 < s <= 1, f"evaluate.sizes={self.sizes}: each must lie above 0 and not exceed 1")
        for rule in self.rules:
            one_of("evaluate.rules", rule, RULES)
        for order in self.orders:
            one_of("evaluate.orders", order, ORDERS)
        for b in self.budgets:
            at_least("evaluate.budgets", b, 1)
        at_least("evaluate.ce_tokens", self.ce_tokens, 0)
        at_least("evaluate.ce_views", self.ce_views, 0)
        at_least("evaluate.rsa_tokens", self.rsa_tokens, 3)
        at_least("evaluate.threshold_tokens", self.threshold_tokens, 1)
        at_least("evaluate.batch", self.batch, 1)
        at_least("evaluate.logit_chunk", self.logit_chunk, 1)
        seed("evaluate.seed", self.seed)


@dataclass
class ExperimentConfig:
    """A named set of grids; each grid maps override keys to one value or a list, and is swept as a rectangle."""

    name: str = ""
    grids: list[Any] = field(default_factory=list)
    claims: list[str] = field(default_factory=list)  # files of conf/claims, judged by `saebench claims`
    lr_factors: list[float] = field(default_factory=list)  # of the default rate, tried per variant and size (search.py)

    def __post_init__(self) -> None:
        for factor in self.lr_factors:
            positive("experiment.lr_factors", factor)


@dataclass
class TrackerConfig:
    """Who is told of runs beside the CSV files (track.py); nothing depends on it."""

    name: str = "none"
    project: str = "saebench"
    folder: str | None = None  # None: outputs/trackers/<name>

    def __post_init__(self) -> None:
        one_of("tracker.name", self.name, TRACKERS)


@dataclass
class RunConfig:
    """One run: a model, its data, an SAE, a schedule, how to train and how to measure it."""

    model: ModelConfig
    data: DataConfig
    sae: Any  # one of SAE_VARIANTS
    sparsity: SparsityConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    engine: Any  # one of ENGINES
    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    cache: str = "disk"
    compile: str = "auto"
    shard: str = "off"
    seed: int = 0
    device: str = "auto"
    checkpoint: float = 600.0
    memory_gb: float | None = None
    outputs: str = "outputs"

    def __post_init__(self) -> None:
        one_of("cache", self.cache, ("disk", "stream"))
        one_of("compile", self.compile, ("auto", "on", "off"))
        one_of("shard", self.shard, ("on", "off"))
        both = self.shard == "on" and self.compile == "on"
        require(not both, "compile=on: shard=on gathers the weights of a loss that is not compiled; use auto")
        a_device("device", self.device)
        at_least("checkpoint", self.checkpoint, 0)
        require(self.memory_gb is None or self.memory_gb > 0, f"memory_gb={self.memory_gb}: must be positive, or null")
        seed("seed", self.seed)
        require(bool(self.outputs), "outputs=: has no name; name a folder")

    @property
    def train_tokens(self) -> int:
        """Tokens to train on: train.n_tokens, or one epoch of data.n_tokens."""
        return self.data.n_tokens if self.train.n_tokens is None else self.train.n_tokens


def as_dict(cfg: Any) -> dict[str, Any]:
    """A config dataclass as plain nested dictionaries, ready for JSON."""
    return dataclasses.asdict(cfg)


def recorded(cfg: RunConfig) -> dict[str, Any]:
    """What config.yaml holds of a run."""
    kept = {name: value for name, value in as_dict(cfg).items() if name not in UNRECORDED}
    del kept["train"]["lm_device"]
    return kept


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested dictionaries as dotted keys and text; lists joined by spaces."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            flat[prefix + key] = "null" if value is None else text
    return flat


def from_dict(values: dict[str, Any]) -> RunConfig:
    """The config that `as_dict` or `recorded` made `values` of. Raises InputError for keys of another version."""
    sections = {
        "model": ModelConfig,
        "data": DataConfig,
        "sae": SAE_VARIANTS.get(str(section(values, "sae").get("name")), SAEConfig),
        "sparsity": SparsityConfig,
        "train": TrainConfig,
        "evaluate": EvaluateConfig,
        "experiment": ExperimentConfig,
        "engine": ENGINES.get(str(section(values, "engine").get("name")), LocalConfig),
        "tracker": TrackerConfig,
    }
    made: dict[str, Any] = {"engine": {}, "tracker": {}} | values | {"sae": with_neutral(section(values, "sae"))}
    made.pop("origin", None)  # of an imported SAE, for tables
    for name, schema in sections.items():
        made[name] = made_of(schema, section(made, name), f"config.yaml: {name}")
    return made_of(RunConfig, made, "config.yaml")


def section(values: Any, name: str) -> dict[str, Any]:
    """A section of a config read from a file. Raises InputError if it is not one."""
    found = values.get(name, {}) if isinstance(values, dict) else None
    if not isinstance(found, dict):
        raise InputError(f"config.yaml: {name}: is no section; it was written by another version of saebench")
    return found
