"""Other libraries' SAEs read as ours, and ours written for them: the same latents and reconstructions.

The fixtures are made by the libraries themselves (tests/peers/interop.py). Tolerances: both sides compute in float32, in another
order and, where a bias is folded, with its product rounded once; activations are of order 1 to 10, so 1e-5 is a few roundings.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import saebench
from saebench.checks import InputError
from saebench.interop import TARGETS, export, read_sae
from saebench.interop.facts import Facts
from saebench.interop.plain import plain_of, sae_of, viewed
from saebench.saes import REGISTRY, SAE, build
from saebench.saes.files import save_sae
from saebench.select import topk_latents
from tests.configs import sae_config, stats_of, synthetic

FIXTURES = Path(__file__).parent / "fixtures" / "interop"
ROOT = Path(__file__).parent.parent
ATOL = 2e-5
EPSILON = 1e-4  # where tokens are standardised others add 1e-5 to the deviation
SAELENS = Facts("gpt2-small", 2, "resid_pre", None, 64)
LEARNING = Facts("gpt2", 2, "resid_post", None, 64)
WHERE = {"saelens": SAELENS, "dictionary_learning": LEARNING}
REFUSED = {  # what a library cannot express, by variant
    "sparsify": {"relu", "gated", "jumprelu", "batchtopk", "matryoshka"},
    "saelens": set(),
    "dictionary_learning": set(),
}


def fixtures() -> list[Path]:
    return sorted(path.parent for path in FIXTURES.glob("*/expected.safetensors"))


def source_of(folder: Path) -> Path:
    """What a user would name: the folder, or the one file of openai's format."""
    return next(iter(folder.glob("8.pt")), folder)


def trained(variant: str, **changes: object) -> tuple[SAE, Tensor]:
    """An SAE with parameters that all matter, and activations [n, d_in]."""
    x = synthetic(400)
    sae = build(sae_config(variant, **changes), stats_of(x), seed=0)
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in sae.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=g))
        if hasattr(sae, "threshold"):
            sae.state_dict()["threshold"].fill_(0.4)
    return sae.requires_grad_(False), x


def saved(sae: SAE, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_sae(sae, folder)
    return folder


@pytest.mark.parametrize("folder", fixtures(), ids=lambda p: p.name)
def test_theirs_give_here_what_they_give_there(folder: Path) -> None:
    known = load_file(folder / "expected.safetensors")
    found = read_sae(source_of(folder))
    assert found.format == folder.name.split("-")[0]
    if found.format in WHERE and "checkpoint" not in folder.name:
        assert found.facts == WHERE[found.format]
    token = found.sae.cfg.input == "token"
    latents = found.sae.encode(known["x"]).dense()
    theirs = known["latents"]
    assert (theirs > 0).sum() > 20
    if "rescaled" not in folder.name and folder.name != "dictionary_learning-AutoEncoder":
        torch.testing.assert_close(latents, theirs, atol=EPSILON if token else ATOL, rtol=1e-5)
    torch.testing.assert_close((latents > 0), (theirs > 0))
    torch.testing.assert_close(found.sae(known["x"]), known["x_hat"], atol=EPSILON if token else ATOL, rtol=1e-5)


@pytest.mark.parametrize("folder", fixtures(), ids=lambda p: p.name)
def test_theirs_come_back_from_our_format(folder: Path, tmp_path: Path) -> None:
    sae = read_sae(source_of(folder)).sae
    x = load_file(folder / "expected.safetensors")["x"]
    again = read_sae(saved(sae, tmp_path))
    assert again.format == "saebench"
    assert torch.equal(again.sae(x), sae(x))


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("variant", REGISTRY)
def test_every_variant_goes_out_and_comes_back(variant: str, to: str, tmp_path: Path) -> None:
    sae, x = trained(variant)
    folder = saved(sae, tmp_path / "run")
    if variant in REFUSED[to]:
        with pytest.raises(InputError, match="--to=sparsify: it has TopK alone"):
            export(folder, tmp_path / "out", to)
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob("out.*"))
        return
    assert export(folder, tmp_path / "out", to) < ATOL
    found = read_sae(tmp_path / "out")
    assert found.format == to
    torch.testing.assert_close(found.sae(x), sae(x), atol=2e-4, rtol=1e-4)  # x has a mean of 5, W_enc is not scaled
    torch.testing.assert_close(found.sae.encode(x).dense(), sae.encode(x).dense() * sae.scale, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(found.sae.W_dec.norm(dim=1), sae.W_dec.norm(dim=1))


def test_matryoshka_keeps_its_prefixes_where_there_is_a_place_for_them(tmp_path: Path) -> None:
    sae, _ = trained("matryoshka")
    export(saved(sae, tmp_path / "run"), tmp_path / "dl", "dictionary_learning")
    assert read_sae(tmp_path / "dl").sae.cfg.prefixes == sae.cfg.prefixes  # pyright: ignore[reportAttributeAccessIssue]


def test_loading_folds_scale_and_centre_in(tmp_path: Path) -> None:
    sae, x = trained("hierarchical")
    folder = saved(sae, tmp_path)
    loaded = saebench.load(folder)
    latents = loaded.encode(x)
    assert type(loaded) is type(sae)
    torch.testing.assert_close(loaded.decode(latents), sae(x), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(latents.dense(), sae.encode(x).dense() * sae.scale, atol=1e-4, rtol=1e-5)
    own = saebench.load(folder, raw=False)
    assert torch.equal(own.normalise(x).undo(own.decode(own.encode(x))), sae(x))
    assert loaded(x.view(20, 20, -1)).shape == (20, 20, x.shape[1])


def test_an_sae_that_standardises_tokens_has_no_tensors_on_raw_activations(tmp_path: Path) -> None:
    sae, x = trained("batchtopk", input="token")
    folder = saved(sae, tmp_path / "run")
    with pytest.raises(InputError, match=r"sae\.input=token"):
        saebench.load(folder)
    assert torch.equal(saebench.load(folder, raw=False)(x), sae(x))
    for to in ("sparsify", "dictionary_learning"):
        with pytest.raises(InputError, match=f"--to={to}"):
            export(folder, tmp_path / to, to, view="budget:4")
    assert export(folder, tmp_path / "out", "saelens") == 0


def test_the_scale_of_a_saelens_checkpoint_is_taken_from_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "scaled"
    shutil.copytree(FIXTURES / "saelens-topk", folder)
    config = json.loads((folder / "cfg.json").read_text()) | {"normalize_activations": "expected_average_only_in"}
    (folder / "cfg.json").write_text(json.dumps(config))
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.25}')
    known = load_file(folder / "expected.safetensors")
    torch.testing.assert_close(saebench.load(folder)(known["x"] * 4), known["x_hat"] * 4, atol=1e-4, rtol=1e-5)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": null}')
    with pytest.raises(InputError, match=r"activation_scaler\.json: scaling_factor=None: must be a positive number"):
        saebench.load(folder)


def test_saelens_configurations_from_before_6_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(FIXTURES / "saelens-topk", folder)
    old = {
        "hook_point": "blocks.2.hook_resid_pre",
        "model_name": "gpt2-small",
        "context_size": 64,
        "d_in": 6,
        "d_sae": 16,
    }
    old |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}, "normalize_activations": False}
    (folder / "cfg.json").write_text(json.dumps(old))
    found, known = read_sae(folder), load_file(folder / "expected.safetensors")
    assert found.facts == SAELENS
    torch.testing.assert_close(found.sae(known["x"]), known["x_hat"], atol=ATOL, rtol=1e-5)


VIEWS = {
    "relu": ("prefix:32", "prefix:32:4", "budget:4"),
    "batchtopk": ("prefix:32", "prefix:32:4", "budget:4"),
    "matryoshka": ("prefix:6", "prefix:48:4", "budget:4"),
    "topk": ("prefix:32:4", "budget:2"),
    "lattice": ("prefix:48:2",),
    "jumprelu": ("prefix:32",),
    "gated": ("prefix:32",),
}


@pytest.mark.parametrize(("variant", "view"), [(v, view) for v, views in VIEWS.items() for view in views])
def test_a_view_is_an_sae(variant: str, view: str) -> None:
    sae, x = trained(variant)
    kind, *numbers = view.split(":")
    m = int(numbers[0]) if kind == "prefix" else sae.d_sae
    keep = torch.arange(sae.d_sae) < m
    seen = sae.normalise(x)
    if kind == "prefix" and len(numbers) == 1:
        latents = sae.own_rule(sae.acts(seen.x)).kept(keep)
    else:
        latents = topk_latents(torch.where(keep, sae.acts(seen.x), 0.0), int(numbers[-1]))
    assert (latents.values > 0).any()
    cut = sae_of(viewed(plain_of(sae), view))
    assert cut.d_sae == m
    torch.testing.assert_close(cut(x), seen.undo(sae.decode(latents)), atol=2e-4, rtol=1e-4)


WRONG_VIEWS = {
    "prefix:32": "topk: no SAE; --view=prefix:32:4",
    "prefix:0:1": "topk: 0 must be a number from 1 to 96",
    "prefix:32:33": "topk: 33 must be a number from 1 to 32",
    "budget:4:threshold": "topk: give full, prefix:M",
    "best:4": "topk: give full",
    "budget:4": "jumprelu: thresholds of their own",
}


@pytest.mark.parametrize("view", WRONG_VIEWS)
def test_what_is_no_view_is_said_in_one_line(view: str) -> None:
    variant, message = WRONG_VIEWS[view].split(": ", 1)
    with pytest.raises(InputError) as error:
        viewed(plain_of(trained(variant)[0]), view)
    assert str(error.value).startswith(f"--view={view}: ")
    assert message in str(error.value)


def test_an_export_never_overwrites(tmp_path: Path) -> None:
    folder = saved(trained("topk")[0], tmp_path / "run")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(InputError, match="not empty"):
        export(folder, tmp_path / "out", "saelens")
    with pytest.raises(InputError, match=r"--to=saelns: did you mean saelens\?"):
        export(folder, tmp_path / "other", "saelns")


@pytest.mark.long
def test_their_own_loaders_reconstruct_what_we_do(tmp_path: Path) -> None:
    python = os.environ.get("SAEBENCH_PEERS_PYTHON")
    if python is None:
        pytest.skip("SAEBENCH_PEERS_PYTHON names no Python that has the other libraries")
    ours: dict[str, tuple[SAE, str]] = {}
    x = trained("relu")[1]
    save_file({"x": x}, tmp_path / "x.safetensors")
    for variant in REGISTRY:
        sae, _ = trained(variant)
        folder = saved(sae, tmp_path.with_name("runs") / variant)
        for to in TARGETS:
            if variant not in REFUSED[to]:
                export(folder, tmp_path / f"{variant}-{to}", to)
                ours[f"{variant}-{to}"] = sae, to
    run = subprocess.run(
        [python, "-m", "tests.peers.interop", "run", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    worst: dict[str, float] = {}
    for name, (sae, to) in ours.items():
        theirs = load_file(tmp_path / name / "theirs.safetensors")
        worst[to] = max(worst.get(to, 0.0), float((theirs["x_hat"] - sae(x)).abs().max() / sae.scale))
        assert bool(((theirs["latents"] > 0) == (sae.encode(x).dense() > 0)).all()), name
    print({to: f"{value:.1e} of the activations' deviation" for to, value in worst.items()})
    assert max(worst.values()) < 1e-4


@pytest.mark.long
def test_the_libraries_still_write_what_the_fixtures_hold(tmp_path: Path) -> None:
    python = os.environ.get("SAEBENCH_PEERS_PYTHON")
    if python is None:
        pytest.skip("SAEBENCH_PEERS_PYTHON names no Python that has the other libraries")
    run = subprocess.run(
        [python, "-m", "tests.peers.interop", "make", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == [p.name for p in fixtures()]
    for folder in fixtures():
        new, old = (load_file(where / folder.name / "expected.safetensors") for where in (tmp_path, FIXTURES))
        for name, tensor in old.items():
            torch.testing.assert_close(new[name], tensor, atol=1e-5, rtol=1e-5)
        test_theirs_give_here_what_they_give_there(tmp_path / folder.name)
