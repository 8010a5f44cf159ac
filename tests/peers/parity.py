"""Train the peer libraries on the problem of recipe.py and write what they did as fixtures for tests/test_peers.py.

Run from the repository's root by a Python that has the peers (pip install sae-lens eai-sparsify), never by ours:

    python -m tests.peers.parity [FOLDER]        (FOLDER: tests/golden/peers)

It writes initial.safetensors, one CASE.safetensors of final tensors for each case (float32), and trajectories.json: the loss
of every step, BatchTopK's thresholds, AuxK's values at the initial tensors, the recipe and the versions. Everything is trained
in float64, which both libraries allow, so that rounding does not hide a difference between definitions. A step is the
library's own: sparsify's methods in the order of its Trainer with torch's Adam, SAELens' SAETrainer.step.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from sae_lens import (  # pyright: ignore[reportMissingImports]
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    SAETrainer,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig  # pyright: ignore[reportMissingImports]
from sae_lens.saes.sae import TrainStepInput  # pyright: ignore[reportMissingImports]
from safetensors.torch import save_file
from sparsify import SparseCoder, SparseCoderConfig  # pyright: ignore[reportMissingImports]
from torch import Tensor

from tests.peers.recipe import (
    CASES,
    D_IN,
    D_SAE,
    LR,
    N_DEAD,
    PARAMETERS,
    PREFIXES,
    STEPS,
    Case,
    K,
    N,
    batches,
    described,
    initial,
)

FOLDER = Path(__file__).parent.parent / "golden" / "peers"


def sparse_coder() -> SparseCoder:
    """sparsify's TopK with the initial tensors; its encoder is stored as [d_sae, d_in]."""
    coder = SparseCoder(D_IN, SparseCoderConfig(num_latents=D_SAE, k=K), dtype=torch.float64)
    start = initial()
    with torch.no_grad():
        coder.encoder.weight.copy_(start["W_enc"].T)
        coder.encoder.bias.copy_(start["b_enc"])
        coder.W_dec.copy_(start["W_dec"])
        coder.b_dec.copy_(start["b_dec"])
    return coder


def train_sparsify() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Losses (FVU) and final tensors; the decoder is normalised once more at the end, as before each of its steps."""
    coder, losses = sparse_coder(), []
    adam = torch.optim.Adam(coder.parameters(), lr=LR)
    for x in batches():
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x)
        out.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()
        losses.append(out.fvu.item())
    coder.set_decoder_norm_to_unit_norm()
    final = {"W_enc": coder.encoder.weight.T, "W_dec": coder.W_dec, "b_enc": coder.encoder.bias, "b_dec": coder.b_dec}
    return {"loss": losses}, final


def training_sae(case: Case) -> Any:
    """SAELens' training SAE of this case, with the initial tensors."""
    shared = {"d_in": D_IN, "d_sae": D_SAE, "k": K, "dtype": "float64", "rescale_acts_by_decoder_norm": case.rescale}
    if case.variant == "topk":
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(**shared))
    elif case.variant == "batchtopk":
        sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**shared))
    else:
        cfg = MatryoshkaBatchTopKTrainingSAEConfig(**shared, matryoshka_widths=list(PREFIXES))
        sae = MatryoshkaBatchTopKTrainingSAE(cfg)
    with torch.no_grad():
        for name, value in initial().items():
            getattr(sae, name).copy_(value)
    return sae


def train_sae_lens(case: Case) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Losses, the threshold where the variant has one, and final tensors."""
    sae, losses = training_sae(case), []
    cfg = SAETrainerConfig(total_training_samples=N * STEPS, train_batch_size_samples=N, lr=LR, lr_end=LR)  # constant
    trainer = SAETrainer(cfg=cfg, sae=sae, data_provider=iter([]))
    for x in batches():
        losses.append(trainer.step(x).loss.item())
        trainer.n_training_steps += 1
    result: dict[str, Any] = {"loss": losses}
    if case.variant != "topk":
        result |= {"threshold": sae.topk_threshold.item(), "threshold_lr": sae.cfg.topk_threshold_lr}
    return result, {name: getattr(sae, name) for name in PARAMETERS}


def auxk() -> dict[str, float]:
    """AuxK's loss on the first batch at the initial tensors, in each library's own scale."""
    x, dead = batches()[0], torch.arange(D_SAE) < N_DEAD
    given = TrainStepInput(sae_in=x, coefficients={}, dead_neuron_mask=dead, n_training_steps=0, is_logging_step=False)
    output = training_sae(CASES["sae-lens-topk-plain"]).training_forward_pass(given)
    return {
        "sparsify": sparse_coder()(x, dead_mask=dead).auxk_loss.item(),
        "sae-lens": output.losses["auxiliary_reconstruction_loss"].item(),
    }


def write(tensors: dict[str, Tensor], path: Path) -> None:
    """The tensors in float32, in `path`."""
    save_file({name: t.detach().float().contiguous() for name, t in tensors.items()}, path)


def main() -> None:
    """Train every case and write the fixtures."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    write(initial(), folder / "initial.safetensors")
    results = {}
    for name, case in CASES.items():
        results[name], final = train_sparsify() if case.library == "sparsify" else train_sae_lens(case)
        write(final, folder / f"{name}.safetensors")
    versions = {name: version(name) for name in ("sae-lens", "eai-sparsify", "torch", "numpy")}
    content = {"versions": versions, "recipe": described(), "auxk": auxk(), "cases": results}
    (folder / "trajectories.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
