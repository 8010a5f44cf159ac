"""Thresholds set anew: the mean L0 asked for, on the tokens asked for, and nothing else of the SAE moved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saebench.calibrate import activations, calibrate, mean_l0
from saebench.checks import InputError
from saebench.config import as_dict, from_dict
from saebench.pipeline import run
from saebench.saes.files import load_sae
from saebench.stream import open_stream
from tests.test_pipeline import small, weights


@pytest.mark.parametrize("variant", ["batchtopk", "matryoshka"])
@pytest.mark.parametrize("tokens", ["train", "heldout"])
def test_a_threshold_gives_the_mean_l0_asked_for(variant: str, tokens: str, tmp_path: Path) -> None:
    cfg = small(tmp_path, f"sae={variant}", "sae.k=8")
    (folder,) = run([cfg])
    x = activations(cfg, open_stream(cfg), tokens)
    for l0 in (None, 3.5):
        path = calibrate(folder, l0, tokens)
        assert mean_l0(load_sae(path), x, 4096) == pytest.approx(l0 or 8, abs=1.5 / len(x))
        before, after = weights(folder), weights(path)
        assert [name for name in before if not torch.equal(before[name], after[name])] == ["threshold"]
    made = (path / "done.json").stat().st_mtime_ns
    assert calibrate(folder, 3.5, tokens) == path
    assert (path / "done.json").stat().st_mtime_ns == made


def test_what_cannot_be_calibrated_is_said_in_one_line(tmp_path: Path) -> None:
    topk, batch = run([small(tmp_path, "sae=topk"), small(tmp_path, "sae=batchtopk")])
    with pytest.raises(InputError, match="topk SAE has no global threshold"):
        calibrate(topk)
    with pytest.raises(InputError, match=r"--l0=65: must lie above 0 and not exceed the 64"):
        calibrate(batch, 65)
    with pytest.raises(InputError, match="--tokens=test"):
        calibrate(batch, None, "test")
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="holds something else"):
        calibrate(batch, into=tmp_path / "mine")


def test_a_config_goes_through_its_dictionary(tmp_path: Path) -> None:
    cfg = small(tmp_path, "sae=matryoshka")
    assert from_dict(as_dict(cfg)) == cfg
    with pytest.raises(InputError, match=r"config.yaml: train: .*no_such"):
        from_dict(as_dict(cfg) | {"train": as_dict(cfg.train) | {"no_such": 1}})
