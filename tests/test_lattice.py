"""The lattice: its loss and gradients against the definition, its special cases, the prefixes of a step, what it refuses."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from saebench.checks import InputError
from saebench.sae_configs import keyed, with_neutral
from saebench.saes import SAE, build
from saebench.saes.lattice import Lattice, batch_levels, prefix_latents
from tests.configs import sae_config, stats_of, synthetic
from tests.test_saes import trained


def lattice(**changes: object) -> Lattice:
    """An untrained lattice of 96 latents in float64, all of its prefixes in each step unless given otherwise."""
    given = {"k": 8, "budgets": "'1,3,8'", "prefixes": "[5,24,60,96]", "per_step": 4, "sort_every": 0} | changes
    sae = build(sae_config("lattice", **given), stats_of(synthetic(64)), 0).double()
    assert isinstance(sae, Lattice)
    return sae


def by_definition(sae: Lattice, x: Tensor, prefixes: list[int]) -> tuple[Tensor, Tensor]:
    """The loss as its formula reads, dense, and x_hat at the full dictionary and the largest budget."""
    acts = (x - sae.b_dec.detach() + (sae.b_dec.detach() - sae.b_dec)) @ sae.W_enc + sae.b_enc
    losses, x_hat = [], x
    for m in prefixes:
        for j in sae.budgets:
            if sae.cfg.selection == "batch":
                least = acts[:, :m].flatten().sort(descending=True).values[len(x) * min(j, m) - 1]
                z = torch.where((acts >= least) & (torch.arange(96) < m), acts, 0.0).relu()
            else:
                kept = acts[:, :m].topk(min(j, m), dim=1)
                z = torch.zeros_like(acts).scatter(1, kept.indices, kept.values.relu())
            x_hat = sae.b_dec + z @ sae.W_dec
            losses.append((x - x_hat).square().mean())
    return torch.stack(losses).mean(), x_hat


@pytest.mark.parametrize("prefixes", ["[96]", "[5,24,60,96]", "[1,2,3,4,5,96]"])
@pytest.mark.parametrize("budgets", ["'8'", "'1,3,8'", "all"])
@pytest.mark.parametrize("selection", ["token", "batch"])
def test_loss_and_gradients_are_those_of_the_definition(prefixes: str, budgets: str, selection: str) -> None:
    sae = lattice(prefixes=prefixes, budgets=budgets, per_step=prefixes.count(",") + 1, selection=selection)
    x = sae.normalise(synthetic(50)).x.double()
    parameters = [sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec]
    step = sae.loss(x, 1.0)
    loss, x_hat = by_definition(sae, x, sae.prefixes)
    torch.testing.assert_close(step.loss, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(step.x_hat, x_hat.detach())
    wanted = torch.autograd.grad(loss, parameters)
    found = torch.autograd.grad(step.loss, parameters)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-13)
    assert float(step.l0) <= 8


def test_prefix_latents_are_the_largest_of_each_prefix() -> None:
    acts = synthetic(40, 96) - 5
    latents = prefix_latents(acts, [3, 50, 96], 8)
    assert latents.rows == 3 * 40
    assert latents.offsets.diff().tolist() == [3] * 40 + [8] * 80
    for p, m in enumerate([3, 50, 96]):
        kept = acts[:, :m].topk(min(8, m), dim=1)
        rows = slice(int(latents.offsets[40 * p]), int(latents.offsets[40 * (p + 1)]))
        assert torch.equal(latents.values[rows].view(40, -1), kept.values.relu())
        assert int(latents.indices[rows].max()) < m
    tied = prefix_latents(torch.zeros(2, 96), [50, 96], 4)
    assert bool((tied.values == 0).all())
    assert len(tied.indices) == 16


def test_levels_of_the_batch_are_cut_by_rank_over_all_tokens() -> None:
    acts = torch.tensor([[9.0, 1, 8, 2], [3, 7, 0.5, 6], [5, 0.25, 4, 0.125]])
    latents, segments = batch_levels(acts, [2, 4], [1, 2])
    assert latents.rows == 6
    entries = list(zip(latents.indices.tolist(), latents.values.tolist(), strict=True))
    cells = [entries[a:b] for a, b in pairwise(segments)]
    assert cells[:6] == [[(0, 9)], [(1, 1)], [(1, 7)], [(0, 3)], [(0, 5)], [(1, 0.25)]]  # all of the first two latents
    assert cells[6:] == [[(0, 9), (2, 8)], [], [(1, 7)], [(3, 6)], [], [(0, 5), (2, 4)]]
    assert latents.offsets.tolist() == [0, 2, 4, 6, 8, 10, 12]


def test_one_prefix_and_one_budget_is_batchtopk() -> None:
    given = ["sae.prefixes=[96]", "sae.per_step=1", "sae.budgets='4'", "sae.selection=batch"]
    one, plain = trained("lattice", 10, *given).sae, trained("batchtopk", 10).sae
    torch.testing.assert_close(one.W_dec, plain.W_dec)
    x = synthetic(300, seed=5)
    torch.testing.assert_close(one(x), plain(x))
    assert one.modes == ("threshold", "batch")
    acts = one.acts(one.normalise(x).x)
    assert int((one.own_rule(acts, k=2).values > 0).sum()) == 600


def test_one_prefix_is_hierarchical_topk() -> None:
    one = trained("lattice", 10, "sae.prefixes=[96]", "sae.per_step=1", "sae.budgets=powers")
    torch.testing.assert_close(one.sae.W_dec, trained("hierarchical", 10, "sae.budgets=powers").sae.W_dec)


def test_the_prefixes_of_a_step() -> None:
    every = lattice()
    assert every.draw() == [5, 24, 60, 96]
    some = lattice(per_step=2)
    drawn = [some.draw() for _ in range(300)]
    assert all(len(p) == 2 and p[-1] == 96 for p in drawn)
    assert {p[0] for p in drawn} == {5, 24, 60}
    assert sum(p[0] == 24 for p in drawn) == pytest.approx(100, abs=30)
    law = lattice(per_step=3, prefix_sampling="random")
    lengths = torch.tensor([p[:-1] for p in (law.draw() for _ in range(2000))]).double()
    assert float((lengths <= 24).double().mean()) == pytest.approx(0.5, abs=0.03)  # sqrt(24 / 96)
    assert float(lengths.max()) <= 95
    alone = lattice(per_step=1)
    assert alone.draw() == [96]


@torch.no_grad()
def score(sae: SAE, x: Tensor, m: int, j: int) -> float:
    """Squared error of the view (m, j)."""
    seen = sae.normalise(x)
    acts = sae.acts(seen.x)
    acts[:, m:] = 0
    return float((x - seen.undo(sae.decode(sae.own_rule(acts, k=j)))).square().sum())


def test_a_lattice_is_better_at_its_points_than_topk_cut_to_them() -> None:
    """On data that many latents are needed for, at a quarter of the dictionary and of the budget."""
    nested, plain = (
        trained(variant, 200, "sae.k=8", *given).sae
        for variant, given in (
            ("lattice", ["sae.budgets='1,2,4,8'", "sae.prefixes=[24,96]", "sae.per_step=2"]),
            ("topk", []),
        )
    )
    x = synthetic(2000, seed=77)
    assert score(nested, x, 24, 2) < 0.8 * score(plain, x, 24, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_step": 5}, r"sae\.per_step=5: there are 4 prefixes"),
        ({"per_step": 0}, r"sae\.per_step=0"),
        ({"selection": "global"}, r"sae\.selection=global"),
        ({"prefixes": "[96,96]"}, r"sae\.prefixes=\[96, 96\]: must rise"),
        ({"sort_every": -1}, r"sae\.sort_every=-1"),
        ({"weights": "relative", "prefix_sampling": "random"}, r"sae\.weights=relative: needs views that come again"),
        ({"weights": "'1,2'"}, r"sae\.weights=1,2: 2 weights for 3 budgets"),
        ({"weights": "'1,x,2'"}, r"sae\.weights=1,x,2: give equal, relative or numbers"),
        ({"weights": "'0,0,0'"}, r"sae\.weights=0,0,0: weights must be finite"),
        ({"budgets": "'1,3'"}, r"sae\.budgets=1,3: must rise and end at sae\.k=8"),
    ],
)
def test_what_makes_no_lattice_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        lattice(**changes)


def views_of(sae: Lattice, x: Tensor) -> Tensor:
    """The mean squared error of each view of an untrained step: [prefixes, budgets]."""
    acts = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    rows = []
    for m in sae.prefixes:
        kept = acts[:, :m].topk(min(8, m), dim=1)
        parts = [
            torch.zeros_like(acts).scatter(1, kept.indices[:, :j], kept.values[:, :j].relu()) @ sae.W_dec
            for j in sae.budgets
        ]
        rows.append(torch.stack([(x - sae.b_dec - part).square().mean() for part in parts]))
    return torch.stack(rows)


def test_relative_weights_count_every_view_by_its_own_error() -> None:
    sae = lattice(weights="relative")
    x = sae.normalise(synthetic(50)).x.double()
    assert sae.errors is not None
    sae.errors.copy_(torch.linspace(0.1, 2.0, 12).view(4, 3))
    running = sae.errors.clone()
    step = sae.loss(x, 1.0)
    errors = views_of(sae, x)
    weights = (1 / running) / (1 / running).sum()
    torch.testing.assert_close(step.loss, (weights * errors).sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(step.errors, errors.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(sae.errors, (0.9 * running + 0.1 * errors).detach(), rtol=1e-12, atol=0)
    wanted = torch.autograd.grad((weights * errors).sum(), [sae.W_dec, sae.W_enc])
    torch.testing.assert_close(torch.autograd.grad(step.loss, [sae.W_dec, sae.W_enc]), wanted, rtol=1e-10, atol=1e-13)


def test_relative_weights_move_only_the_views_of_the_step() -> None:
    sae = lattice(weights="relative", per_step=2)
    assert sae.errors is not None
    x = sae.normalise(synthetic(50)).x.double()
    drawn = lattice(weights="relative", per_step=2).draw()  # the same generator: what the step draws
    sae.loss(x, 0.5)  # k 4: budgets 1, 3 and 4
    seen = [m in drawn for m in sae.prefixes]
    assert [bool((row != 1).all()) for row in sae.errors] == seen
    assert bool((sae.errors[0] == 1).all()) != seen[0]


def test_sorting_only_renames_the_latents_of_a_single_dictionary() -> None:
    """With one prefix no latent's place matters, so the training is the same up to rounding, Adam included."""
    given = ["sae.prefixes=[96]", "sae.per_step=1", "sae.budgets='1,4'"]
    plain, ordered = (
        trained("lattice", 40, *given, "sae.sort_every=0"),
        trained("lattice", 40, *given, "sae.sort_every=8"),
    )
    for before, after in zip(plain.log, ordered.log, strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=1e-4)
    assert not torch.allclose(plain.sae.W_dec, ordered.sae.W_dec, atol=1e-2)
    x = synthetic(200, seed=9)
    torch.testing.assert_close(plain.sae(x), ordered.sae(x), rtol=1e-3, atol=1e-3)


def test_all_that_is_kept_of_a_latent_moves_with_it() -> None:
    member = trained("lattice", 3, "sae.prefixes=[96]", "sae.per_step=1")
    member.dead = torch.tensor([3, 7])
    order = torch.randperm(96, generator=torch.Generator().manual_seed(0))
    slot, encoder = member.optimizer.slots["W_dec"], member.sae.W_enc.detach().clone()
    before = [member.since_fired.clone(), slot.mean.clone(), slot.square.clone()]
    member.reorder(order)
    assert order[member.dead].sort().values.tolist() == [3, 7]
    assert torch.equal(member.sae.W_enc, encoder[:, order])
    for kept, old in zip([member.since_fired, slot.mean, slot.square], before, strict=True):
        assert torch.equal(kept, old[order])


def test_sorting_leaves_the_latents_in_order_of_energy() -> None:
    member = trained("lattice", 16, "sae.prefixes=[24,96]", "sae.per_step=2", "sae.budgets='1,4'", "sae.sort_every=16")
    energy = member.sae.get_buffer("energy")
    assert bool((energy.diff() <= 0).all())
    latents = member.sae.encode(synthetic(2000, seed=3)).dense().square().mean(0)
    assert float(latents[:24].mean()) > 1.5 * float(latents[24:].mean())


def test_keys_added_later_leave_runs_made_before_done() -> None:
    old = vars(lattice().cfg).copy()
    assert keyed(old) == {name: value for name, value in old.items() if name not in ("weights", "sort_every")}
    assert keyed(old | {"weights": "relative"})["weights"] == "relative"
    assert keyed(old | {"sort_every": 8})["sort_every"] == 8
    assert with_neutral(keyed(old)) == old
    assert "weights" not in with_neutral({"name": "topk"})
