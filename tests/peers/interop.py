"""SAEs made by other libraries as fixtures of tests/test_interop.py, and our exports run by their loaders.

Run from the repository's root by a Python that has sae-lens, eai-sparsify and dictionary-learning, never by ours:

    python -m tests.peers.interop make [FOLDER]      (FOLDER: tests/fixtures/interop)
    python -m tests.peers.interop run FOLDER         every SAE in it by its own library, into FOLDER/NAME/theirs.safetensors

Beside each SAE stands expected.safetensors: activations x, the library's dense latents and its reconstructions. Gemma Scope and
openai/sparse_autoencoder are no packages; theirs are written by numpy and torch, and computed by their published formulas.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FOLDER = Path(__file__).parent.parent / "fixtures" / "interop"
D_IN, D_SAE, K, N = 6, 16, 3, 24
PREFIXES = (4, 8, 16)
Encode = Callable[[Tensor], Tensor]


def activations() -> Tensor:
    """x [N, D_IN] with a mean of its own."""
    return 2 * torch.randn(N, D_IN, generator=torch.Generator().manual_seed(1)) + torch.arange(D_IN) - 2.0


def perturb(module: nn.Module) -> None:
    """Make every parameter matter, the same each time: decoder rows of other norms than 1, thresholds that cut."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=g))
            if name == "threshold":
                p.abs_().add_(0.3)


def expected(folder: Path, encode: Encode, decode: Encode) -> None:
    """Write what the library makes of the activations."""
    with torch.no_grad():
        latents = encode(activations())
        x_hat = decode(latents)
    found = {"x": activations(), "latents": latents, "x_hat": x_hat}
    save_file({name: t.detach().float().contiguous() for name, t in found.items()}, folder / "expected.safetensors")


def of_saelens(folder: Path, name: str, training: str = "", **config: Any) -> None:
    """An SAE of SAELens by its own saving; a `training` SAE as it saves itself for inference, or as a checkpoint."""
    import sae_lens  # pyright: ignore[reportMissingImports]

    metadata = sae_lens.saes.sae.SAEMetadata(
        model_name="gpt2-small", hook_name="blocks.2.hook_resid_pre", context_size=64
    )
    kind = f"{name}TrainingSAE" if training else f"{name}SAE"
    cfg = getattr(sae_lens, f"{kind}Config")(d_in=D_IN, d_sae=D_SAE, metadata=metadata, **config)
    sae = getattr(sae_lens, kind)(cfg)
    perturb(sae)
    if not training:
        sae.save_model(folder)
        expected(folder, sae.encode, sae.decode)
        return
    sae.topk_threshold.fill_(0.7)
    sae.save_inference_model(folder)
    served = sae_lens.SAE.load_from_disk(folder)
    if training == "checkpoint":
        sae.save_model(folder)
    expected(folder, served.encode, served.decode)


def of_sparsify(folder: Path) -> None:
    """A TopK of sparsify."""
    from sparsify import SparseCoder, SparseCoderConfig  # pyright: ignore[reportMissingImports]

    coder = SparseCoder(D_IN, SparseCoderConfig(num_latents=D_SAE, k=K))
    perturb(coder)
    coder.save_to_disk(folder)
    expected(folder, lambda x: dense(coder.encode(x)), lambda z: z @ coder.W_dec + coder.b_dec)


def dense(out: Any) -> Tensor:
    """sparsify's chosen latents as [n, D_SAE]."""
    return torch.zeros(len(out.top_acts), D_SAE).scatter_(1, out.top_indices, out.top_acts)


def learning() -> dict[str, Any]:
    """dictionary_learning's classes. Its package imports nnsight, for language models, which none of them needs."""
    sys.modules.setdefault("nnsight", types.ModuleType("nnsight")).LanguageModel = object  # pyright: ignore
    from dictionary_learning import dictionary  # pyright: ignore[reportMissingImports]
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE  # pyright: ignore[reportMissingImports]
    from dictionary_learning.trainers.matryoshka_batch_top_k import (  # pyright: ignore[reportMissingImports]
        MatryoshkaBatchTopKSAE,
    )
    from dictionary_learning.trainers.top_k import AutoEncoderTopK  # pyright: ignore[reportMissingImports]

    named = {name: getattr(dictionary, name) for name in ("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder")}
    named |= {"JumpReluAutoEncoder": dictionary.JumpReluAutoEncoder, "AutoEncoderTopK": AutoEncoderTopK}
    return named | {"BatchTopKSAE": BatchTopKSAE, "MatryoshkaBatchTopKSAE": MatryoshkaBatchTopKSAE}


def of_learning(folder: Path, name: str) -> None:
    """A dictionary of dictionary_learning, saved as its training does."""
    k = {"k": K} if "TopK" in name else {}
    sizes = {"group_sizes": [4, 4, 8]} if "Matryoshka" in name else {}
    made = learning()[name](D_IN, D_SAE, **k, **sizes)
    perturb(made)
    if "Batch" in name:
        made.threshold.fill_(0.7)
    folder.mkdir(parents=True)
    torch.save({key: value.cpu() for key, value in made.state_dict().items()}, folder / "ae.pt")
    trainer = {"dict_class": name, "layer": 2, "lm_name": "gpt2", "submodule_name": "resid_post_layer_2", **k}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 64}}) + "\n")
    expected(folder, made.encode, made.decode)


def of_gemma(folder: Path, second: bool) -> None:
    """A JumpReLU SAE in the layout of Gemma Scope, or of Gemma Scope 2."""
    g = torch.Generator().manual_seed(0)
    W_dec = torch.randn(D_SAE, D_IN, generator=g)
    tensors = {"W_enc": W_dec.T.contiguous(), "W_dec": W_dec, "b_enc": torch.randn(D_SAE, generator=g)}
    tensors |= {"b_dec": torch.randn(D_IN, generator=g), "threshold": torch.rand(D_SAE, generator=g) + 0.3}
    folder.mkdir(parents=True)
    if second:
        save_file({key.replace("W_", "w_"): tensor for key, tensor in tensors.items()}, folder / "params.safetensors")
        config = {
            "architecture": "jump_relu",
            "model_name": "gemma-v3-270m-pt",
            "affine_connection": False,
            "type": "sae",
        }
        (folder / "config.json").write_text(json.dumps(config) + "\n")
    else:
        arrays: dict[str, Any] = {key: tensor.numpy() for key, tensor in tensors.items()}
        np.savez(folder / "params.npz", **arrays)

    def encode(x: Tensor) -> Tensor:
        pre = x @ tensors["W_enc"] + tensors["b_enc"]
        return pre.relu() * (pre > tensors["threshold"])

    expected(folder, encode, lambda z: z @ W_dec + tensors["b_dec"])


def of_openai(folder: Path, topk: bool) -> None:
    """The state that openai/sparse_autoencoder saves, of its ReLU or its TopK (which standardises tokens)."""
    g = torch.Generator().manual_seed(0)
    state: dict[str, Any] = {"encoder.weight": torch.randn(D_SAE, D_IN, generator=g)}
    state |= {"decoder.weight": torch.randn(D_IN, D_SAE, generator=g), "pre_bias": torch.randn(D_IN, generator=g)}
    state |= {
        "latent_bias": torch.randn(D_SAE, generator=g),
        "stats_last_nonzero": torch.zeros(D_SAE, dtype=torch.long),
    }
    state |= {
        "activation": "TopK" if topk else "ReLU",
        "activation_state_dict": {"k": K, "postact_fn": "ReLU"} if topk else {},
    }
    folder.mkdir(parents=True)
    torch.save(state, folder / "8.pt")
    x = activations()
    mean, std = (x.mean(1, keepdim=True), x.std(1, keepdim=True)) if topk else (torch.zeros(()), torch.ones(()))

    def encode(x: Tensor) -> Tensor:
        seen = (x - mean) / (std + 1e-5) if topk else x
        pre = (seen - state["pre_bias"]) @ state["encoder.weight"].T + state["latent_bias"]
        best = pre.topk(K, dim=1)
        return torch.zeros_like(pre).scatter_(1, best.indices, best.values.relu()) if topk else pre.relu()

    expected(folder, encode, lambda z: (z @ state["decoder.weight"].T + state["pre_bias"]) * std + mean)


def make(folder: Path) -> None:
    """Write every fixture."""
    of_saelens(folder / "saelens-standard", "Standard")
    of_saelens(folder / "saelens-standard-token", "Standard", normalize_activations="layer_norm")
    of_saelens(folder / "saelens-jumprelu", "JumpReLU", apply_b_dec_to_input=False)
    of_saelens(folder / "saelens-gated", "Gated")
    of_saelens(folder / "saelens-gated-unsubtracted", "Gated", apply_b_dec_to_input=False)
    of_saelens(folder / "saelens-topk", "TopK", k=K)
    of_saelens(folder / "saelens-topk-rescaled", "TopK", k=K, rescale_acts_by_decoder_norm=True)
    nested = {"k": K, "matryoshka_widths": list(PREFIXES)}
    of_saelens(folder / "saelens-batchtopk", "BatchTopK", training="inference", k=K)
    of_saelens(folder / "saelens-batchtopk-checkpoint", "BatchTopK", training="checkpoint", k=K)
    of_saelens(folder / "saelens-matryoshka-checkpoint", "MatryoshkaBatchTopK", training="checkpoint", **nested)
    of_sparsify(folder / "sparsify-topk")
    for name in learning():
        of_learning(folder / f"dictionary_learning-{name}", name)
    of_gemma(folder / "gemma_scope", second=False)
    of_gemma(folder / "gemma_scope_2", second=True)
    of_openai(folder / "openai-relu", topk=False)
    of_openai(folder / "openai-topk", topk=True)


def loaded(folder: Path) -> tuple[Encode, Encode]:
    """Encoder and decoder of the SAE in a folder, by the loader of its own library."""
    if (folder / "sae_weights.safetensors").is_file():
        from sae_lens import SAE  # pyright: ignore[reportMissingImports]

        sae = SAE.load_from_disk(folder)
        return sae.encode, sae.decode
    if (folder / "sae.safetensors").is_file():
        from sparsify import SparseCoder  # pyright: ignore[reportMissingImports]

        coder = SparseCoder.load_from_disk(folder)
        d_sae = coder.num_latents

        def encode(x: Tensor) -> Tensor:
            out = coder.encode(x)
            return torch.zeros(len(x), d_sae).scatter_(1, out.top_indices, out.top_acts)

        return encode, lambda z: z @ coder.W_dec + coder.b_dec
    learning()
    from dictionary_learning.utils import load_dictionary  # pyright: ignore[reportMissingImports]

    made, _ = load_dictionary(str(folder), "cpu")
    return made.encode, made.decode


def run(folder: Path) -> None:
    """Run every SAE below a folder on the activations in FOLDER/x.safetensors by its own library."""
    x = load_file(folder / "x.safetensors")["x"]
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        encode, decode = loaded(path)
        with torch.no_grad():
            latents = encode(x)
            found = {"latents": latents, "x_hat": decode(latents)}
        save_file({name: t.contiguous() for name, t in found.items()}, path / "theirs.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, *rest = sys.argv[1:]
    {"make": make, "run": run}[command](Path(rest[0]) if rest else FOLDER)
