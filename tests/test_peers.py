"""Fifty training steps of ours against the same fifty of SAELens 6.54 and sparsify 1.3: every loss, and the final tensors.

The peers' side is in tests/golden/peers, written by tests/peers/parity.py (by their Python, not ours) in float64 from the
problem of tests/peers/recipe.py. Here our loss and optimiser start from the same tensors and see the same batches. Where
definitions differ, ours is turned into theirs, as the last column says; everything else is the same.

|                  | ours                  | SAELens               | sparsify              | here                         |
|------------------|-----------------------|-----------------------|-----------------------|------------------------------|
| squared error    | mean over n and d_in  | mean over n, sum over | sum / the batch's     | `scale`: d_in; n d_in /      |
|                  |                       | d_in                  | variance (FVU)        | variance of the batch        |
| Matryoshka       | mean over prefixes    | sum over prefixes     | none                  | `scale`: times the number    |
| decoder's norm   | 1: gradient projected,| free; z |W_dec| is    | 1: as ours, restored  | SAELens: `folded` tensors,   |
|                  | norm restored after   | selected, W_dec /     | before the next step, | the chain rule, no           |
|                  | the step              | |W_dec| decodes (an   | divided by norm + eps | projection; plain: as it is  |
|                  |                       | option, on by default)|                       |                              |
| clipping at      | train.clip            | 1, always             | none                  | SAELens: 1                   |
| batch threshold  | mean from the first   | mean from 0, its rate | none                  | subtract                     |
|                  | value                 | 0.01                  |                       | (1 - rate)^steps * the first |
| selected zeros   | no gradient           | no gradient           | a gradient            | none: the least kept is 0.18 |
| AuxK's latents   | aux_k largest of      | d_in / 2 largest of   | d_in / 2 largest of   | aux_k = d_in / 2, more are   |
|                  | relu(pre_acts)        | pre_acts              | relu(pre_acts)        | positive                     |
| AuxK's loss      | 1/32 of the mean      | 1 of the sum, times   | 0 of the FVU, times   | `scale`; weight 1; more dead |
|                  |                       | min(1, 2 dead / d_in) | min(1, 2 dead / d_in) | than d_in / 2                |
| AuxK's gradients | residual and b_dec of | residual detached     | residual detached,    | values alone are compared    |
|                  | pre_acts detached     |                       | the encoder gets none |                              |

Tolerances. In float64 only the order of sums differs, about 1e-16 each, and fifty Adam steps amplify it little: the losses
were measured to agree within 2e-15 (asserted: 1e-12), the final tensors to the float32 of the fixtures (half a last place, 6e-8
of the value). In float32 the losses agree within 6e-7 (asserted: 5e-6), the final tensors within 8e-7 (asserted: 1e-5). That
holds because no choice of latents hangs on rounding: over all cases, steps and rows the smallest gap between a kept and a
dropped activation is 2e-6, and activations of order 1 carry errors of about 3e-7. With another recipe one token may keep
another latent than the peer's, and float32 then leaves these tolerances.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from saebench.optim import Adam, normalise_rows
from saebench.saes import SAE, Stats, build
from tests.configs import run_config, sae_config
from tests.peers.recipe import (
    CASES,
    D_IN,
    D_SAE,
    LR,
    N_DEAD,
    PARAMETERS,
    PREFIXES,
    Case,
    K,
    batches,
    described,
    initial,
)

GOLDEN = Path(__file__).parent / "golden" / "peers"
ROOT = Path(__file__).parent.parent
RECORDED: dict[str, Any] = json.loads((GOLDEN / "trajectories.json").read_text())
LOSS_RTOL = {torch.float64: 1e-12, torch.float32: 5e-6}
WEIGHT_ATOL = {torch.float64: 1e-9, torch.float32: 1e-5}
WEIGHT_RTOL = {torch.float64: 1e-7, torch.float32: 0.0}


def ours(case: Case, dtype: torch.dtype, k: int = K, aux_weight: float = 0.0) -> SAE:
    """Our SAE of the case's variant, with the initial tensors."""
    extra = {"prefixes": str(list(PREFIXES)).replace(" ", "")} if case.variant == "matryoshka" else {}
    if case.variant != "topk":
        extra["threshold_decay"] = str(1 - RECORDED["cases"]["sae-lens-batchtopk"]["threshold_lr"])
    cfg = sae_config(case.variant, d_sae=D_SAE, k=k, input="none", aux_weight=aux_weight, aux_k=D_IN // 2, **extra)
    sae = build(cfg, Stats(torch.zeros(D_IN), 1.0, torch.ones(D_IN)), seed=0).to(dtype)
    start = load_file(GOLDEN / "initial.safetensors")
    with torch.no_grad():
        for name in PARAMETERS:
            getattr(sae, name).copy_(start[name])
    return sae


def optimiser(module: nn.Module, unit: bool) -> Adam:
    """Our Adam, with the rows of W_dec kept at unit norm or left free."""
    return Adam(dict(module.named_parameters()), run_config().train, {}, unit=("W_dec",) if unit else ())


def scale(case: Case, x: Tensor) -> float | Tensor:
    """What our loss is multiplied by to be the peer's, on the batch x [n, d_in]."""
    if case.library == "sparsify":
        return x.numel() / (x - x.mean(0)).square().sum()
    return D_IN * (len(PREFIXES) if case.variant == "matryoshka" else 1)


def folded(tensors: nn.ParameterDict) -> dict[str, Tensor]:
    """SAELens' rescaling as a change of variables: decoder rows of unit norm, the norms moved into the encoder."""
    norm = torch.linalg.vector_norm(tensors["W_dec"], dim=1)  # [d_sae]
    return {
        "W_enc": tensors["W_enc"] * norm,
        "W_dec": tensors["W_dec"] / norm.unsqueeze(1),
        "b_enc": tensors["b_enc"] * norm,
        "b_dec": tensors["b_dec"] * 1,
    }


def backward(sae: SAE, tensors: nn.ParameterDict, case: Case, x: Tensor) -> float:
    """The peer's loss on x by our SAE, with its gradients left in `tensors`."""
    seen = folded(tensors) if case.rescale else {name: tensors[name] * 1 for name in PARAMETERS}
    with torch.no_grad():
        for name, value in seen.items():
            getattr(sae, name).copy_(value)
    sae.zero_grad()
    tensors.zero_grad()
    loss = sae.loss(x, 1.0).loss * scale(case, x)
    loss.backward()
    torch.autograd.backward([seen[name] for name in PARAMETERS], [getattr(sae, name).grad for name in PARAMETERS])
    return loss.item()


def replay(
    name: str, dtype: torch.dtype, k: int = K, lr: float = LR
) -> tuple[list[float], nn.ParameterDict, list[float]]:
    """The case's training with our pieces: the loss of every step, final tensors, and thresholds where there are any."""
    case = CASES[name]
    sae = ours(case, dtype, k)
    if case.library == "sparsify":
        normalise_rows(sae.W_dec.data)  # rounding to float32 left norms of 1 within 3e-8
    tensors = nn.ParameterDict({name: getattr(sae, name).detach().clone() for name in PARAMETERS})
    adam = optimiser(tensors, unit=case.library == "sparsify")
    losses, thresholds = [], []
    for x in batches():
        losses.append(backward(sae, tensors, case, x.to(dtype)))
        if case.library == "sae-lens":
            nn.utils.clip_grad_norm_(tensors.parameters(), 1.0)  # as SAELens always does
        adam.step(lr)
        thresholds.append(float(getattr(sae, "threshold", torch.nan)))
    return losses, tensors, thresholds


def compare(name: str, losses: list[float], tensors: nn.ParameterDict, dtype: torch.dtype) -> None:
    """Assert that losses and final tensors are the recorded ones."""
    assert losses == pytest.approx(RECORDED["cases"][name]["loss"], rel=LOSS_RTOL[dtype])
    final = load_file(GOLDEN / f"{name}.safetensors")
    for parameter in PARAMETERS:
        mine = tensors[parameter].detach().double()
        torch.testing.assert_close(mine, final[parameter].double(), rtol=WEIGHT_RTOL[dtype], atol=WEIGHT_ATOL[dtype])


@pytest.mark.parametrize("dtype", LOSS_RTOL, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_fifty_steps_are_those_of_the_peer(name: str, dtype: torch.dtype) -> None:
    losses, tensors, thresholds = replay(name, dtype)
    compare(name, losses, tensors, dtype)
    recorded = RECORDED["cases"][name]
    if "threshold" in recorded:
        from_zero = thresholds[-1] - (1 - recorded["threshold_lr"]) ** len(losses) * thresholds[0]
        assert from_zero == pytest.approx(recorded["threshold"], rel=1e-6)


@pytest.mark.parametrize("change", [{"k": K + 1}, {"lr": LR * 1.0001}], ids=["k", "lr"])
def test_the_comparison_can_fail(change: dict[str, Any]) -> None:
    for name in ("sparsify-topk", "sae-lens-batchtopk"):
        losses, tensors, _ = replay(name, torch.float64, **change)
        with pytest.raises(AssertionError):
            compare(name, losses, tensors, torch.float64)


@pytest.mark.parametrize("name", ["sparsify-topk", "sae-lens-topk-plain"])
def test_auxk_has_the_peers_value(name: str) -> None:
    case, x = CASES[name], batches()[0]
    sae = ours(case, torch.float64, aux_weight=1.0)
    step = sae.loss(x, 1.0)
    step.loss.backward()
    aux = sae.aux_backward(x, step.x_hat, torch.arange(N_DEAD))
    assert float(aux * scale(case, x)) == pytest.approx(RECORDED["auxk"][case.library], rel=1e-9)


def test_the_fixtures_belong_to_this_recipe() -> None:
    assert RECORDED["recipe"] == pytest.approx(described(), rel=1e-12)
    start = load_file(GOLDEN / "initial.safetensors")
    for name, tensor in initial().items():
        torch.testing.assert_close(start[name].double(), tensor, rtol=1e-7, atol=0)


@pytest.mark.long
def test_the_peers_still_do_what_the_fixtures_say(tmp_path: Path) -> None:
    python = os.environ.get("SAEBENCH_PEERS_PYTHON")
    if python is None:
        pytest.skip("SAEBENCH_PEERS_PYTHON names no Python that has sae-lens and eai-sparsify")
    run = subprocess.run([python, "-m", "tests.peers.parity", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    live = json.loads((tmp_path / "trajectories.json").read_text())
    assert live["auxk"] == pytest.approx(RECORDED["auxk"], rel=1e-9)
    for name, recorded in RECORDED["cases"].items():
        assert live["cases"][name]["loss"] == pytest.approx(recorded["loss"], rel=1e-9)
        theirs, kept = (load_file(folder / f"{name}.safetensors") for folder in (tmp_path, GOLDEN))
        torch.testing.assert_close(theirs, kept, rtol=1e-6, atol=1e-8)
