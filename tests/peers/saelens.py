"""SAELens' trainers, as tests/peers/quality.py and tests/peers/speed.py use them."""

from __future__ import annotations

from typing import Any


def training_sae(variant: str, **config: Any) -> Any:
    """SAELens' training SAE of a variant, topk or batchtopk."""
    import sae_lens  # pyright: ignore[reportMissingImports]

    kind = {"topk": "TopKTrainingSAE", "batchtopk": "BatchTopKTrainingSAE"}[variant]
    return getattr(sae_lens, kind)(getattr(sae_lens, f"{kind}Config")(**config))


def trainer(sae: Any, **config: Any) -> Any:
    """SAELens' trainer of an SAE, fed by hand."""
    from sae_lens import SAETrainer  # pyright: ignore[reportMissingImports]
    from sae_lens.config import SAETrainerConfig  # pyright: ignore[reportMissingImports]

    return SAETrainer(cfg=SAETrainerConfig(**config), sae=sae, data_provider=iter([]))
