"""Views: what is kept, in which order, with how many latents; thresholds that hit their mean L0; schedules."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saebench.config import EvaluateConfig, SparsityConfig
from saebench.saes import REGISTRY, SAE, build
from saebench.schedules import lr_factor, sparsity_factor
from saebench.views import View, kept_latents, latents_of, list_views, own_k, tune_thresholds
from tests.configs import run_config, sae_config, stats_of, synthetic

CFG: EvaluateConfig = run_config().evaluate


def sae_of(variant: str) -> SAE:
    sae = build(sae_config(variant), stats_of(synthetic(2000)), 0)
    if hasattr(sae, "threshold"):
        sae.threshold.fill_(1.0)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    return sae.requires_grad_(False)


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("variant", sorted(REGISTRY))
def test_every_view_obeys_its_limits(variant: str, cross: bool) -> None:
    sae = sae_of(variant)
    views = list_views(sae, replace(CFG, cross=cross))
    assert len({v.name() for v in views}) == len(views)
    importance = {name: torch.rand(sae.d_sae).double() for name in ("energy", "frequency", "decoder_norm")}
    x = synthetic(300, seed=1)
    acts = sae.acts(sae.normalise(x).x)
    for view in views:
        keep = kept_latents(view, sae, importance, 0)
        assert int(keep.sum()) == view.m
        latents = latents_of(view, sae, acts, keep, threshold=1.5)
        active = latents.fired()
        assert not bool((active & ~keep).any()), view
        if view.mode == "topk":
            assert int(latents.l0().max()) <= (view.budget or 0)
        if view.mode == "batch":
            assert len(latents.values) == len(x) * (view.budget or 0)
    assert {v.kind for v in views} == {"full", "prefix", "pruned", "budget"}


def test_a_cross_has_every_size_at_every_budget() -> None:
    sae = sae_of("lattice")
    views = list_views(sae, replace(CFG, cross=True, sizes=[], rules=["energy"], budgets=[1, 4, 30]))
    grid = {
        (v.m, v.budget) for v in views if v.kind == "prefix" and v.order == "prune_then_select" and v.mode == "topk"
    }
    assert grid >= {(12, 1), (12, 4), (24, 1), (24, 4), (48, 1), (48, 4), (48, 30)}
    assert (24, 30) not in grid
    x = synthetic(50, seed=3)
    acts, keep = sae.acts(sae.normalise(x).x), torch.arange(96) < 24
    view = View("prefix", 24, "topk", "", "prune_then_select", 4)
    latents = latents_of(view, sae, acts, keep, None)
    assert latents.d_sae == 96
    assert torch.equal(sae.decode(latents), sae.decode(sae.own_rule(torch.where(keep, acts, 0.0), k=4)))


def test_the_two_orders_of_pruning_differ_as_defined() -> None:
    sae = sae_of("topk")
    acts = torch.zeros(1, sae.d_sae)
    acts[0, :8] = torch.tensor([8.0, 7, 6, 5, 4, 3, 2, 1])
    keep = torch.arange(sae.d_sae) >= 2
    m = sae.d_sae - 2
    select = latents_of(View("pruned", m, "topk", "energy", "select_then_prune", 4), sae, acts, keep, None)
    prune = latents_of(View("pruned", m, "topk", "energy", "prune_then_select", 4), sae, acts, keep, None)
    assert select.values.tolist() == [6, 5]
    assert prune.values.tolist() == [6, 5, 4, 3]


def test_rules_keep_the_best() -> None:
    sae = sae_of("relu")
    energy = torch.arange(sae.d_sae).double()
    norm = torch.where(energy == 0, 1000.0, 1.0).double()
    importance = {"energy": energy + 0.5, "frequency": -energy, "decoder_norm": norm}
    for rule, best in (("energy", sae.d_sae - 1), ("frequency", 0), ("norm_energy", 0)):
        assert int(kept_latents(View("pruned", 1, "threshold", rule), sae, importance, 0).nonzero()) == best
    random = [kept_latents(View("pruned", 10, "threshold", "random"), sae, importance, s) for s in (0, 0, 1)]
    assert torch.equal(random[0], random[1])
    assert not torch.equal(random[0], random[2])


@pytest.mark.parametrize("variant", sorted(REGISTRY))
def test_tuned_thresholds_hit_their_mean_l0(variant: str) -> None:
    sae, x = sae_of(variant), synthetic(1000, seed=4)
    for j, threshold in tune_thresholds(sae, x, [1, 4, 16], 128).items():
        view = View("budget", sae.d_sae, "threshold", budget=j)
        acts = sae.acts(sae.normalise(x).x)
        latents = latents_of(view, sae, acts, torch.ones(sae.d_sae, dtype=torch.bool), threshold)
        reachable = min(j * len(x), int((acts > 0).sum()))
        assert len(latents.values) == pytest.approx(reachable, abs=j + 1)


def test_prune_then_select_scales_k() -> None:
    sae = sae_of("topk")
    budgets = {
        v.budget for v in list_views(sae, CFG) if v.kind == "pruned" and v.m == 24 and v.order == "prune_then_select"
    }
    assert own_k(sae) == 4
    assert budgets == {1, 4}


def test_schedules_by_hand() -> None:
    train = run_config("train.warmup=0.1", "train.decay=0.5").train
    assert [lr_factor(train, s, 100) for s in (0, 4, 9, 50, 75, 99)] == pytest.approx([0.1, 0.5, 1, 1, 0.5, 0.02])
    anneal = SparsityConfig("anneal", 4.0, 0.5)
    factors = [sparsity_factor(anneal, s, 160) for s in range(160)]
    assert factors[0] == 4
    assert factors[80:] == [1.0] * 80
    assert len(set(factors)) == 9
    assert sparsity_factor(SparsityConfig("constant", 1.0, 0.0), 0, 10) == 1
