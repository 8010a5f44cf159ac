"""Pruning rules, and pruned SAEs on disk: the same latents and reconstructions as the view they come from."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from saebench.checks import InputError
from saebench.cli.main import main
from saebench.config import RULES
from saebench.prune import prune, pruned, pruned_config
from saebench.runs import read_latents, write_csv
from saebench.saes import REGISTRY, SAE, build
from saebench.saes.files import load_sae, save_sae
from saebench.views import View, kept_latents, latents_of, own_k
from tests.configs import sae_config, stats_of, synthetic

M = 24


def sae_of(variant: str, d_sae: int = 96) -> SAE:
    """An untrained SAE whose tensors all vary from latent to latent."""
    sae = build(sae_config(variant, d_sae=d_sae), stats_of(synthetic(2000)), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        sae.b_enc.copy_(torch.randn(d_sae, generator=generator) / 4)
        if hasattr(sae, "threshold"):
            sae.threshold.fill_(1.0)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
        if hasattr(sae, "theta"):
            sae.theta.copy_(torch.rand(d_sae, generator=generator))  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    return sae.requires_grad_(False)


def write_run(folder: Path, variant: str, d_sae: int = 96) -> SAE:
    """A run folder with what pruning reads, and its SAE."""
    sae = sae_of(variant, d_sae)
    folder.mkdir()
    save_sae(sae, folder)
    draws = torch.rand(3, d_sae, generator=torch.Generator().manual_seed(2), dtype=torch.float64).tolist()
    columns = zip(range(d_sae), *draws, strict=True)
    write_csv(
        folder / "latents.csv",
        [dict(zip(("latent", "frequency", "energy", "decoder_norm"), row, strict=True)) for row in columns],
    )
    return sae


def reconstruction(sae: SAE, x: Tensor, view: View, keep: Tensor) -> Tensor:
    """x_hat [n, d_in] of a view."""
    seen = sae.normalise(x)
    return seen.undo(sae.decode(latents_of(view, sae, sae.acts(seen.x), keep, None)))


def fvu(x: Tensor, x_hat: Tensor) -> float:
    """sum |x - x_hat|^2 / sum |x - mean|^2."""
    return float((x - x_hat).double().square().sum() / (x - x.mean(0)).double().square().sum())


def test_unsorted_and_decoder_norm_keep_what_they_say() -> None:
    sae = sae_of("topk")
    norm = torch.linspace(1, 2, sae.d_sae).double()
    importance = {"decoder_norm": norm, "energy": norm, "frequency": norm}
    for rule, first, last in (("unsorted", 0, M), ("", 0, M), ("decoder_norm", sae.d_sae - M, sae.d_sae)):
        keep = kept_latents(View("pruned", M, "topk", rule), sae, importance, 0)
        assert keep.nonzero().squeeze(1).tolist() == list(range(first, last))


@pytest.mark.parametrize("variant", sorted(REGISTRY))
def test_a_pruned_sae_is_its_view(variant: str, tmp_path: Path) -> None:
    sae = write_run(tmp_path / "run", variant)
    x = synthetic(256, seed=5)
    order = "prune_then_select" if "topk" in sae.modes else "select_then_prune"
    for rule in RULES:
        folder = prune(tmp_path / "run", rule, M, order, seed=3)
        small = load_sae(folder)
        assert (small.d_sae, small.W_enc.shape, small.W_dec.shape) == (M, (sae.d_in, M), (M, sae.d_in))
        assert (folder / "sae.safetensors").stat().st_size < (tmp_path / "run" / "sae.safetensors").stat().st_size / 3
        view = View("pruned", M, sae.modes[0], rule, order, own_k(sae))
        keep = kept_latents(view, sae, read_latents(tmp_path / "run" / "latents.csv"), 3)
        latents = latents_of(view, sae, sae.acts(sae.normalise(x).x), keep, None).dense()
        torch.testing.assert_close(small.encode(x).dense(), latents[:, keep], rtol=1e-5, atol=1e-6)
        x_hat = reconstruction(sae, x, view, keep)
        torch.testing.assert_close(small(x), x_hat, rtol=1e-5, atol=1e-5)
        assert fvu(x, small(x)) == pytest.approx(fvu(x, x_hat), rel=1e-6)


@pytest.mark.parametrize("variant", ["batchtopk", "matryoshka"])
def test_in_mode_batch_it_selects_among_what_it_kept(variant: str, tmp_path: Path) -> None:
    sae = write_run(tmp_path / "run", variant)
    small = load_sae(prune(tmp_path / "run", "energy", M, "select_then_prune"))
    x = synthetic(256, seed=5)
    view = View("pruned", M, "batch", "energy", "prune_then_select", own_k(sae))
    keep = kept_latents(view, sae, read_latents(tmp_path / "run" / "latents.csv"), 0)
    seen = small.normalise(x)
    batch = seen.undo(small.decode(small.own_rule(small.acts(seen.x), mode="batch")))
    torch.testing.assert_close(batch, reconstruction(sae, x, view, keep), rtol=1e-6, atol=1e-6)


def test_a_matryoshka_sae_keeps_its_nesting_and_says_where_it_comes_from(tmp_path: Path) -> None:
    sae = write_run(tmp_path / "run", "matryoshka")
    folder = prune(tmp_path / "run", "energy", M, "prune_then_select", tmp_path / "new" / "small")
    kept = [int(line.split(",")[0]) for line in (folder / "latents.csv").read_text().splitlines()[1:]]
    assert kept == sorted(kept)
    prefixes: list[int] = getattr(load_sae(folder), "prefixes")  # noqa: B009
    own: list[int] = getattr(sae, "prefixes")  # noqa: B009
    assert prefixes == sorted({sum(i < p for i in kept) for p in own} - {0})
    origin = json.loads((folder / "sae.json").read_text())["pruned"]
    assert (origin["run"], origin["rule"], origin["keep"], len(origin["sha256"])) == ("run", "energy", M, 64)
    again = (folder / "sae.safetensors").stat().st_mtime_ns
    assert prune(tmp_path / "run", "energy", M, "prune_then_select", folder) == folder
    assert (folder / "sae.safetensors").stat().st_mtime_ns == again


def test_a_pruned_sae_can_be_pruned(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "jumprelu")
    once = prune(tmp_path / "run", "energy", M, "select_then_prune")
    twice = load_sae(prune(once, "energy", M // 2, "select_then_prune"))
    direct = load_sae(prune(tmp_path / "run", "energy", M // 2, "select_then_prune"))
    assert all(
        torch.equal(a, b) for a, b in zip(twice.state_dict().values(), direct.state_dict().values(), strict=True)
    )


def test_as_many_latents_as_dimensions_are_cut_along_the_right_axis(tmp_path: Path) -> None:
    sae = write_run(tmp_path / "run", "relu", d_sae=24)
    assert sae.d_in == 24
    keep = torch.arange(24) % 2 == 0
    small = pruned(sae, keep)
    assert torch.equal(small.W_enc, sae.W_enc[:, keep])
    assert torch.equal(small.W_dec, sae.W_dec[keep])


def test_k_and_budgets_are_cut_to_what_is_kept() -> None:
    keep = torch.arange(96) < 3
    hierarchical = pruned_config(sae_config("hierarchical", k=8, budgets="powers"), keep)
    assert (getattr(hierarchical, "k"), getattr(hierarchical, "budgets")) == (3, "1,2,3")  # noqa: B009
    assert getattr(pruned_config(sae_config("topk"), keep), "k") == 3  # noqa: B009
    steered = pruned_config(sae_config("relu", target_l0=32), keep)
    assert (steered.d_sae, getattr(steered, "target_l0")) == (3, None)  # noqa: B009


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--keep 8 --order select_then_prune", "each token of a topk SAE selects among all 96 latents"),
        ("--keep 8 --rule enrgy", "--rule=enrgy: did you mean energy?"),
        ("--keep 0", "--keep=0: must be at least 1"),
        ("--keep 97", "--keep=97: the SAE in run has 96 latents"),
        ("--keep 8 --into other", "--into=other: exists and holds something else"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", "topk")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["saebench", "prune", "run", *arguments.split()])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "other" / "precious.txt").read_text() == "mine"
    assert not (tmp_path / "run" / "pruned").exists()


def test_a_run_without_importance_is_named(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "topk")
    (tmp_path / "run" / "latents.csv").unlink()
    with pytest.raises(InputError, match=r"no latents.csv there"):
        prune(tmp_path / "run", "energy", 8, "prune_then_select")
