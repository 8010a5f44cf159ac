"""Every variant, found through the registry: shapes, gradients, what inference keeps, saving and loading, golden losses."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from saebench.checks import InputError
from saebench.member import Member, compiled
from saebench.pipeline import TRAIN_NUMERICS
from saebench.saes import REGISTRY, build
from saebench.saes.files import load_sae, save_sae
from saebench.saes.gated import Gated
from saebench.saes.jumprelu import _Jump
from saebench.saes.matryoshka import Matryoshka
from saebench.train import running
from saebench.views import own_k
from tests.configs import run_config, sae_config, stats_of, synthetic

GOLDEN = Path(__file__).parent / "golden" / "losses.json"
VARIANTS = sorted(REGISTRY)


def trained(variant: str, steps: int = 60, *overrides: str) -> Member:
    """A member trained on synthetic activations."""
    k = ["sae.k=4"] if hasattr(sae_config(variant), "k") else ["sae.target_l0=4"]
    cfg = run_config(
        f"sae={variant}", "sae.d_sae=96", *k, "train.batch_size=256", f"train.n_tokens={256 * max(1, steps)}", "train.lr=0.003",
        "sae.dead_tokens=2048", *overrides,
    )  # fmt: skip
    member = Member(cfg, stats_of(synthetic(4096)), torch.device("cpu"))
    for step in range(steps):
        member.step(synthetic(256, seed=step + 1))
    member.settle()
    return member


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_learns_and_encode_is_sparse(variant: str) -> None:
    member = trained(variant)
    assert member.log[-1]["fvu"] < 0.8 * member.log[0]["fvu"]
    x = synthetic(512, seed=99)
    latents = member.sae.encode(x)
    assert bool((latents.values >= 0).all())
    assert latents.rows == 512
    x_hat = member.sae(x)
    fvu = (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
    assert fvu < (0.55 if variant == "jumprelu" else 0.4)  # jumprelu spends its steps on reaching its target L0
    torch.testing.assert_close(torch.linalg.vector_norm(member.sae.W_dec, dim=1), torch.ones(96))
    assert member.sae(x.view(8, 64, -1)).shape == (8, 64, x.shape[1])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", ["dataset", "token", "none"])
def test_save_and_load_give_the_same_reconstruction(variant: str, mode: str, tmp_path: Path) -> None:
    sae = trained(variant, 3, f"sae.input={mode}").sae
    save_sae(sae, tmp_path)
    x = synthetic(64, seed=7)
    assert torch.equal(load_sae(tmp_path)(x), sae(x))
    assert json.loads((tmp_path / "sae.json").read_text())["config"]["name"] == variant


@pytest.mark.parametrize("variant", VARIANTS)
def test_seed_decides_the_initialisation_alone(variant: str) -> None:
    stats = stats_of(synthetic(512))
    first, same, other = (build(sae_config(variant), stats, seed) for seed in (0, 0, 1))
    assert torch.equal(first.W_dec, same.W_dec)
    assert not torch.equal(first.W_dec, other.W_dec)


@pytest.mark.parametrize("variant", VARIANTS)
def test_golden_losses(variant: str) -> None:
    """If these move, raise TRAIN_NUMERICS and write the file anew (python -m tests.test_saes)."""
    golden = json.loads(GOLDEN.read_text())
    assert golden["numerics"] == TRAIN_NUMERICS
    losses = [row["loss"] for row in trained(variant, 30).log]
    assert losses == pytest.approx(golden["losses"][variant], rel=2e-4)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if own_k(build(sae_config(v), stats_of(synthetic(64)), 0))])
def test_k_is_the_number_of_latents(variant: str) -> None:
    sae = trained(variant).sae
    x = synthetic(2000, seed=5)
    assert 2.5 < float(sae.encode(x).l0().double().mean()) < 5.5
    acts = sae.acts(sae.normalise(x).x)
    assert len(sae.own_rule(acts, k=2).values) == 2 * len(x)


def test_batchtopk_threshold_starts_from_the_first_value_and_keeps_mean_l0() -> None:
    stats = stats_of(synthetic(512))
    sae = build(sae_config("batchtopk"), stats, 0)
    with pytest.raises(InputError, match="no threshold yet"):
        sae.encode(synthetic(8))
    step = sae.loss(sae.normalise(synthetic(256)).x, 1.0)
    acts = sae.acts(sae.normalise(synthetic(256)).x).detach()
    assert sae.threshold == acts.flatten().topk(4 * 256).values[-1]
    assert step.l0 == 4
    member = trained("batchtopk", 200)
    assert float(member.sae.encode(synthetic(4000, seed=6)).l0().double().mean()) == pytest.approx(4, rel=0.1)


def test_jumprelu_gradients_are_those_of_a_smoothed_step() -> None:
    """Averaged over many pre-activations, the straight-through gradient equals the derivative of the expectation."""
    theta, width = torch.tensor([1.0], dtype=torch.float64), 0.2
    pre = torch.linspace(0, 2, 200_001, dtype=torch.float64).unsqueeze(1)
    t = theta.clone().requires_grad_()
    z, gate = _Jump.apply(pre, t, width)  # pyright: ignore[reportGeneralTypeIssues]
    (grad,) = torch.autograd.grad(z.mean() * 3 + gate.mean() * 5, t)
    step = 0.01

    def expectation(at: float) -> float:
        active = pre > at
        return float(3 * torch.where(active, pre, 0.0).mean() + 5 * active.double().mean())

    numerical = (expectation(1 + step) - expectation(1 - step)) / (2 * step)
    assert float(grad) == pytest.approx(numerical, rel=1e-3)


def test_gated_by_hand() -> None:
    sae = build(sae_config("gated", d_sae=2, l1=0.5, input="none"), stats_of(synthetic(64)), 0)
    assert isinstance(sae, Gated)
    with torch.no_grad():
        for name, values in {"r_mag": [0.0, 1.0], "b_mag": [-1.0, 0.0], "b_enc": [0.0, -3.0]}.items():
            getattr(sae, name).copy_(torch.tensor(values))
        sae.W_enc.zero_()[0, 0] = sae.W_enc[1, 1] = 1.0
        sae.W_dec.zero_()[0, 0] = sae.W_dec[1, 1] = 1.0
        sae.b_dec.zero_()
    x = torch.zeros(3, 24)
    x[:, :2] = torch.tensor([[3.0, 2.0], [0.5, 4.0], [-1.0, 1.0]])
    z = sae.encode(x).dense()  # gate above 0: x_0 > 0 and x_1 > 3; magnitudes x_0 - 1 and e x_1
    torch.testing.assert_close(z, torch.tensor([[2.0, 0.0], [0.0, 4 * math.e], [0.0, 0.0]]))
    step = sae.loss(x, 1.0)
    opened = torch.zeros(3, 24)
    opened[:, :2] = torch.tensor([[3.0, 0.0], [0.5, 1.0], [0.0, 0.0]])
    full = torch.zeros(3, 24)
    full[:, :2] = z
    expected = ((x - full).square() + (x - opened).square()).mean() + 0.5 * opened.sum() / 3 / 24
    torch.testing.assert_close(step.loss.detach(), expected)
    step.loss.backward()
    assert sae.W_dec.grad is not None
    slope = 2 * (full - x) / x.numel()
    torch.testing.assert_close(sae.W_dec.grad, z.T @ slope)  # the gate's reconstruction does not move the decoder


def test_multitopk_is_the_weighted_sum_of_two_topk_losses() -> None:
    stats = stats_of(synthetic(512))
    both, narrow, wide = (
        build(cfg, stats, 0)
        for cfg in (sae_config("multitopk", k=4), sae_config("topk", k=4), sae_config("topk", k=16))
    )
    x = both.normalise(synthetic(64)).x
    steps = [sae.loss(x, 1.0) for sae in (both, narrow, wide)]
    for step in steps:
        step.loss.backward()
    losses = [step.loss.detach() for step in steps]
    torch.testing.assert_close(losses[0], losses[1] + losses[2] / 8)
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        mine, first, second = (getattr(sae, name).grad for sae in (both, narrow, wide))
        torch.testing.assert_close(mine, first + second / 8)
    assert len(both.encode(synthetic(10)).values) == 40


def test_each_member_has_a_compiled_function_of_its_own_and_no_step_recompiles_it() -> None:
    """Three shapes under a schedule that moves each step: three compilations, none after the first step."""
    from torch._dynamo.utils import counters

    counters.clear()
    schedule = ["sparsity=warmup", "compile=on", "train.n_tokens=2560", "train.batch_size=256", "sae.dead_tokens=512"]
    members = [
        Member(
            run_config("sae=jumprelu", f"sae.d_sae={size}", *schedule), stats_of(synthetic(512)), torch.device("cpu")
        )
        for size in (32, 40, 48)
    ]
    for member in members:
        member.loss = compiled(
            member.sae, "on", member.device, "aot_eager"
        )  # traces as inductor does, compiles nothing
        for step in range(5):
            member.step(synthetic(256, seed=step))
        member.settle()
    assert counters["stats"]["unique_graphs"] == len(members)
    plain = Member(
        run_config("sae=jumprelu", "sae.d_sae=48", *schedule, "compile=off"),
        stats_of(synthetic(512)),
        torch.device("cpu"),
    )
    for step in range(5):
        plain.step(synthetic(256, seed=step))
    torch.testing.assert_close(members[-1].sae.W_dec, plain.sae.W_dec)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_products_train_as_well_as_float32(variant: str) -> None:
    exact, mixed = (trained(variant, 60, f"train.precision={p}") for p in ("float32", "bfloat16"))
    assert mixed.sae.W_dec.dtype == torch.float32
    assert mixed.log[-1]["loss"] == pytest.approx(exact.log[-1]["loss"], rel=0.05)
    assert not torch.equal(mixed.sae.W_dec, exact.sae.W_dec)
    for name, twin in mixed.sae.copies.items():
        assert torch.equal(twin, getattr(mixed.sae, name).bfloat16()), "the twin follows its parameter"


def test_matryoshka_with_one_prefix_is_batchtopk() -> None:
    one = trained("matryoshka", 10, "sae.prefixes=[96]")
    plain = trained("batchtopk", 10)
    assert torch.equal(one.sae.W_dec, plain.sae.W_dec)


def test_random_prefixes_follow_their_law_and_train() -> None:
    sae = build(sae_config("matryoshka", prefix_sampling="random"), stats_of(synthetic(64)), 0)
    assert isinstance(sae, Matryoshka)
    drawn = []
    for _ in range(2000):
        sae.draw()
        drawn.append(sae.starts[1:].clone())
    lengths = torch.stack(drawn).flatten().double()
    assert int(lengths.min()) >= 1
    assert int(lengths.max()) <= 96
    for m in (6, 24, 48):
        assert float((lengths <= m).double().mean()) == pytest.approx((m / 96) ** 0.5, abs=0.03)
    member = trained("matryoshka", 60, "sae.prefix_sampling=random")
    assert member.log[-1]["fvu"] < 0.4
    assert torch.equal(member.sae.W_dec, trained("matryoshka", 60, "sae.prefix_sampling=random").sae.W_dec)


@torch.no_grad()
def test_hierarchical_weights_are_in_the_proportions_given() -> None:
    x = synthetic(50)
    equal, given = (
        build(sae_config("hierarchical", budgets="'1,2,4'", weights=w), stats_of(x), 0) for w in ("equal", "'3,0,1'")
    )
    errors = equal.loss(equal.normalise(x).x, 1.0).errors
    step = given.loss(given.normalise(x).x, 1.0)
    assert errors is not None
    torch.testing.assert_close(step.errors, errors)
    torch.testing.assert_close(step.loss, 0.75 * errors[0] + 0.25 * errors[2])
    short = given.loss(given.normalise(x).x, 0.5)  # k 2: budgets 1 and 2
    torch.testing.assert_close(short.loss, errors[0])


def test_hierarchical_relative_weights_follow_the_errors() -> None:
    member = trained("hierarchical", 60, "sae.budgets='1,2,4'", "sae.weights=relative")
    x = member.sae.normalise(synthetic(256, seed=60)).x
    with torch.no_grad():
        errors = member.sae.loss(x, 1.0).errors
    assert errors is not None
    torch.testing.assert_close(member.sae.get_buffer("errors"), errors, rtol=0.15, atol=0)


def test_hierarchical_with_one_budget_is_topk() -> None:
    one = trained("hierarchical", 10, "sae.budgets='4'")
    torch.testing.assert_close(one.sae.W_dec, trained("topk", 10).sae.W_dec)  # entries are summed in another order


@pytest.mark.parametrize("aux_k", [3, 512])
def test_auxk_has_the_gradients_of_its_definition(aux_k: int) -> None:
    sae = build(sae_config("topk", aux_k=aux_k, aux_weight=0.5), stats_of(synthetic(64)), 0).double()
    x, dead = sae.normalise(synthetic(32)).x.double(), torch.tensor([2, 5, 7, 30, 95])
    step = sae.loss(x, 1.0)
    pre = (x - sae.b_dec.detach()) @ sae.W_enc[:, dead] + sae.b_enc[dead]
    z = pre.relu() * torch.zeros_like(pre).scatter(1, pre.topk(min(aux_k, 5), dim=1).indices, 1.0)
    aux = 0.5 * (x - step.x_hat - z @ sae.W_dec[dead]).square().mean()
    parameters = [sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec]
    wanted = torch.autograd.grad(step.loss + aux, parameters, retain_graph=True)
    step.loss.backward()
    torch.testing.assert_close(sae.aux_backward(x, step.x_hat, dead), aux.detach())
    torch.testing.assert_close([p.grad for p in parameters], list(wanted), rtol=1e-10, atol=1e-12)


def test_auxk_revives_dead_latents() -> None:
    """Latents pushed below zero stay dead without AuxK and come back with it."""
    alive = []
    for weight in (0.0, 1.0):
        member = trained("topk", 0, f"sae.aux_weight={weight}", "train.n_tokens=20480", "train.warmup=0")
        with torch.no_grad():
            member.sae.W_enc[:, :48] *= 0.05  # too weak ever to be among the k largest
        member.since_fired[:48] = 10_000
        for step in range(80):
            member.step(synthetic(256, seed=step))
        alive.append(int((member.since_fired[:48] < 2048).sum()))
    assert alive[1] > alive[0] + 10


def test_members_do_not_depend_on_their_company() -> None:
    alone = trained("batchtopk", 5)
    members = [trained(v, 0) for v in ("topk", "batchtopk", "relu")]
    for m in members:
        m.steps = 5
    for step in range(5):
        for member in running(members):
            member.step(synthetic(256, seed=step + 1))
    other = members[1]
    assert alone.steps == other.steps
    assert torch.equal(alone.sae.W_enc, other.sae.W_enc)


if __name__ == "__main__":
    losses = {v: [row["loss"] for row in trained(v, 30).log] for v in VARIANTS}
    GOLDEN.write_text(json.dumps({"numerics": TRAIN_NUMERICS, "losses": losses}, indent=1) + "\n")
