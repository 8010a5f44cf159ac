"""Runs the sae-bench package on one SAE in SAELens' format: python sae_bench_driver.py JOB.json, in an environment that has it.

This file imports nothing of saebench, as that environment need not have it. It was written for sae-bench 0.6.0.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

BATCHES = {"n_eval_reconstruction_batches": 200, "n_eval_sparsity_variance_batches": 2000}  # SAEBench's own of core


def main(path: Path) -> None:
    """Run each evaluation of a job; their results are JSON files below its `output`, in a folder for each."""
    job: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if Path(job["model"]).is_dir():
        allow(job["model"])
    stop_early(import_module("transformer_lens").HookedTransformer)
    for name in job["evals"]:
        sae = load(job)
        print(f"sae-bench: {name}", file=sys.stderr, flush=True)
        EVALS[name](job, [(job["name"], sae)], str(Path(job["output"]) / name), job["settings"].get(name, {}))


def allow(model: str) -> None:
    """Let TransformerLens (3.9.0) load a model from its folder: it can, but looks for the path among its names first."""
    loading: Any = import_module("transformer_lens.loading_from_pretrained")
    known = loading.get_official_model_name
    loading.get_official_model_name = lambda name: name if name == model else known(name)


def stop_early(hooked: Any) -> None:
    """Let TransformerLens' model stop after the last layer whose residuals are asked for; sae-bench has it go on to the logits.

    Sae-bench drops the logits; with a vocabulary of 262,144 on a CPU they are most of its time.
    """
    whole = hooked.run_with_cache

    def run(self: Any, *given: Any, names_filter: Any = None, **named: Any) -> Any:
        hooks = names_filter if isinstance(names_filter, list) else []
        parts = [hook.split(".") for hook in hooks]
        if parts and "stop_at_layer" not in named and all(p[::2] == ["blocks", "hook_resid_post"] for p in parts):
            named["stop_at_layer"] = 1 + max(int(p[1]) for p in parts)
        return whole(self, *given, names_filter=names_filter, **named)

    hooked.run_with_cache = run


def load(job: dict[str, Any]) -> Any:
    """The SAE with decoder rows of norm 1, which sae-bench asks for, and the name under which TransformerLens loads the model."""
    sae = import_module("sae_lens").SAE.load_from_disk(job["sae"], device=job["device"])
    sae.cfg.metadata.model_name = job["model"]
    try:
        sae.fold_W_dec_norm()
    except NotImplementedError:  # of TopK: selection would change if the norms differed
        torch = import_module("torch")
        with torch.no_grad():
            norms = sae.W_dec.norm(dim=1)
            if float((norms / norms.mean() - 1).abs().max()) > 1e-3:
                sys.exit("sae-bench asks for decoder rows of norm 1, and those of this TopK SAE differ in norm")
            sae.W_enc *= norms.mean()
            sae.b_enc *= norms.mean()
            sae.W_dec /= norms.mean()
    return sae


def core(job: dict[str, Any], saes: list[Any], output: str, settings: dict[str, Any]) -> None:
    """CE, variance explained, sparsity."""
    options = {**BATCHES, "dtype": job["dtype"], "device": job["device"], **settings}
    import_module("sae_bench.evals.core.main").multiple_evals(saes, output_folder=output, force_rerun=True, **options)


def absorption(job: dict[str, Any], saes: list[Any], output: str, settings: dict[str, Any]) -> None:
    """Absorption of first letters."""
    config = import_module("sae_bench.evals.absorption.eval_config").AbsorptionEvalConfig
    run = import_module("sae_bench.evals.absorption.main").run_eval
    options = {"model_name": job["model"], "llm_dtype": job["dtype"], "llm_batch_size": 32, **settings}
    run(config(**options), saes, job["device"], output, force_rerun=True)


def sparse_probing(job: dict[str, Any], saes: list[Any], output: str, settings: dict[str, Any]) -> None:
    """k-sparse probing of eight data sets."""
    config = import_module("sae_bench.evals.sparse_probing.eval_config").SparseProbingEvalConfig
    run = import_module("sae_bench.evals.sparse_probing.main").run_eval
    options = {"model_name": job["model"], "llm_dtype": job["dtype"], "llm_batch_size": 32, **settings}
    run(config(**options), saes, job["device"], output, force_rerun=True, artifacts_path=f"{output}/artifacts")


EVALS = {"core": core, "absorption": absorption, "sparse_probing": sparse_probing}

if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
