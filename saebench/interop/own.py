"""saebench's own format: sae.json and sae.safetensors, with config.yaml beside them in a run."""

from __future__ import annotations

from pathlib import Path

from saebench.interop.facts import Facts, of_run
from saebench.saes import SAE
from saebench.saes.files import load_sae

CONFIG, WEIGHTS = "sae.json", "sae.safetensors"


def read(folder: Path) -> tuple[SAE, Facts]:
    """The SAE of a run, a pruned or a calibrated one, with what is known of the run around it."""
    around = [folder, *folder.resolve().parents[:2]]  # RUN/pruned/energy-64 is in its run
    run = next((f for f in around if (f / "config.yaml").is_file()), folder)
    return load_sae(folder), of_run(run)
