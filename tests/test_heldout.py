"""Which views pay for the cross-entropy."""

from __future__ import annotations

import torch

from saebench.heldout import Measured, choose
from saebench.saes import build
from saebench.views import list_views
from tests.configs import run_config, sae_config, stats_of, synthetic


def test_cross_entropy_covers_every_kind_and_size() -> None:
    sae = build(sae_config("matryoshka"), stats_of(synthetic(256)), 0)
    views = [Measured(v, torch.ones(96, dtype=torch.bool), None) for v in list_views(sae, run_config().evaluate)]
    chosen = [m.view for m in choose(views, 14)]
    assert [v.mode for v in chosen[:2]] == ["threshold", "batch"]
    for kind, count in (("full", 2), ("prefix", 4), ("budget", 4), ("pruned", 4)):
        mine = [v for v in chosen if v.kind == kind]
        assert len(mine) == count
        if kind in ("prefix", "pruned"):
            assert {v.m for v in mine} == {6, 12, 24, 48}
            assert {v.order for v in mine} == {"select_then_prune"}
            assert {v.rule for v in mine} <= {"", "energy"}
        if kind == "budget":
            assert [v.budget for v in mine] == [4, 8, 16, 32]
            assert {v.mode for v in mine} == {"topk"}
    assert choose(views, 0) == []
    unsorted = [m.view.kind for m in choose(views, 1000, nested=False)]
    assert unsorted[:2] == ["full", "full"]
    assert unsorted[-12:] == ["prefix"] * 12  # 4 sizes, in 3 ways each
    assert "prefix" not in unsorted[:-12]
