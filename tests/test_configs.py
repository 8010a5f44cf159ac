"""conf/ explains itself; `saebench configs` lists it, and `saebench show` says what set each value of a run."""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from saebench.catalogue import VARIED, comments, conf_folder, defaults, listing, option, options, read, sentence, values
from saebench.checks import InputError
from saebench.cli.main import app
from saebench.completion import SECTIONS
from saebench.compose import load
from saebench.config import as_dict
from saebench.interpret.options import SECTIONS as INTERPRET
from saebench.origins import CODE, TYPED, Resolved, leaves, resolve, show

YAMLS = sorted(conf_folder().rglob("*.yaml"))
KEYED = [o for group in defaults() if group != "experiment" for o in options(group)]  # options whose keys are a group's


def relative(path: Path) -> str:
    """A YAML's path within conf/."""
    return path.relative_to(conf_folder()).as_posix()


def own_folder(root: Path, **files: str) -> str:
    """A folder of configs; sae__mine is sae/mine.yaml."""
    for name, text in files.items():
        path = root / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


# conf/ explains itself


@pytest.mark.parametrize("path", YAMLS, ids=relative)
def test_a_yaml_begins_with_a_sentence(path: Path) -> None:
    assert re.fullmatch(r"[A-Z].{20,115}\.", sentence(path)), sentence(path)


@pytest.mark.parametrize("found", KEYED, ids=lambda o: f"{o.group}/{o.name}")
def test_every_key_is_explained_in_its_file_or_in_its_groups_default(found: Any) -> None:
    """What a key means stands once: where the group's default option has it, or in the file of the option that alone has it."""
    told = {**comments(option(found.group, str(defaults()[found.group])).path), **comments(found.path)}
    assert [key for key, _ in leaves(read(found.path)) if key != "defaults" and key not in told] == []


def test_every_key_of_the_code_stands_in_conf() -> None:
    stands = {group: {*values(group, name)} for group, name in defaults().items() if name and group not in VARIED}
    lacking = [
        f"{group}.{f.name}"
        for group in stands
        for f in dataclasses.fields(SECTIONS[group])
        if f.name not in stands[group]
    ]
    for group, schemas in VARIED.items():
        for name, schema in schemas.items():
            lacking += [f"{name}.{f.name}" for f in dataclasses.fields(schema) if f.name not in values(group, name)]
    for name, schema in INTERPRET.items():
        lacking += [
            f"{name}.{f.name}"
            for f in dataclasses.fields(schema)
            if f.name not in read(conf_folder() / "interpret.yaml")[name]
        ]
    assert lacking == []


def test_every_key_of_the_root_files_is_explained() -> None:
    for name in ("run", "interpret"):
        told = comments(conf_folder() / f"{name}.yaml")
        keys = [key for key, _ in leaves(read(conf_folder() / f"{name}.yaml")) if key != "defaults"]
        assert [key for key in keys if key not in told] == []
    assert {group for group in defaults() if f"defaults.{group}" not in comments(conf_folder() / "run.yaml")} == set()


@pytest.mark.parametrize("found", options("experiment"), ids=lambda o: o.name)
def test_an_experiments_sentence_counts_its_saes(found: Any) -> None:
    grids = read(found.path)["experiment"]["grids"]
    jobs = sum(math.prod(len(v) if isinstance(v, list) else 1 for v in grid.values()) for grid in grids)
    assert re.findall(r"(\d+) SAEs", found.line) == [str(jobs)]


# saebench configs


def test_the_listing_has_every_option_with_its_sentence_and_marks_the_default() -> None:
    lines = listing().splitlines()
    for path in YAMLS:
        name = relative(path).removesuffix(".yaml")
        name = name.partition("/")[2] or name
        assert [line for line in lines if line.strip("* ").startswith(f"{name} ") and line.endswith(sentence(path))]
    assert [line.split()[1] for line in lines if re.match(r"\* \S+  ", line)] == [
        str(name) for name in defaults().values() if name
    ]


def test_an_option_is_printed_as_it_stands() -> None:
    assert listing("experiment/progressive/cpu").splitlines()[0] == "# conf/experiment/progressive/cpu.yaml"
    assert listing("sae/topk").endswith((conf_folder() / "sae/topk.yaml").read_text().rstrip())
    assert "concurrency: 16" in listing("interpret")


def test_own_configs_are_listed_and_those_that_conf_hides_refused(tmp_path: Path) -> None:
    own = own_folder(
        tmp_path,
        sae__deep__mine="# Mine.\nk: 5\n",
        sae__bare="k: 5\n",
        sae__topk=(conf_folder() / "sae/topk.yaml").read_text(),
    )
    found = listing("sae", own).splitlines()
    assert "  deep/mine     Mine." in found
    assert f"  bare          {own}/sae/bare.yaml" in found
    own_folder(tmp_path, sae__topk="k: 5\n")
    with pytest.raises(InputError, match=r"sae/topk\.yaml is also in conf/, which is read first; give it a new name"):
        load([], own)


@pytest.mark.parametrize(
    ("name", "said"),
    {"sea": "did you mean sae", "sae/topkk": "did you mean topk", "nothing/at/all": "choose one of"}.items(),
)
def test_a_wrong_name_is_one_line(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        listing(name)


def test_listing_and_completing_import_nothing_heavy() -> None:
    code = (
        "import sys; import saebench.cli.main; from saebench.catalogue import listing; from saebench.completion import complete; "
        "listing(); complete([], 'sae.'); print([m for m in ('torch', 'hydra', 'omegaconf', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# saebench show


def test_origins_of_files_and_command_line() -> None:
    found = resolve(["sae=matryoshka", "sae.k=7", "+engine.additional={account: mine}", "engine=submitit"])
    assert found.origins["sae.k"] == found.origins["engine.additional.account"] == TYPED
    assert found.origins["sae.d_sae"] == "conf/sae/matryoshka.yaml"
    assert found.origins["seed"] == "conf/run.yaml"
    assert "experiment.name" not in found.origins  # set by code alone
    assert found.chosen["sae"] == ("matryoshka", TYPED)
    assert found.chosen["model"] == ("tiny-gpt2", "conf/run.yaml")


def test_origins_of_an_experiment_its_base_and_its_grids() -> None:
    given = ["experiment=batchtopk/reach", "data.path=x", "seed=5"]
    found = resolve(given, number=2)
    assert found.cfg.sae.name == "jumprelu"
    assert found.origins["experiment.claims"] == "conf/experiment/batchtopk/reach.yaml"
    assert found.origins["train.batch_size"] == "conf/experiment/batchtopk/cpu.yaml"
    assert found.origins["sae.target_l0"] == "grid 2 of conf/experiment/batchtopk/reach.yaml"
    assert found.origins["seed"] == TYPED  # although the grid has seeds, too
    assert found.chosen["sae"] == ("jumprelu", "grid 2 of conf/experiment/batchtopk/reach.yaml")
    assert found.chosen["model"] == ("gemma3-270m", "conf/experiment/batchtopk/cpu.yaml")
    with pytest.raises(InputError, match="--job=0: choose one of the jobs, 1 to"):
        resolve(given, number=0)


def test_what_is_typed_stands_in_place_of_what_grids_say() -> None:
    found = resolve(["experiment=progressive/cost", "data.path=x", "seed=7,8", "sae.k=4"], number=4)
    assert (
        found.heading[0]
        == "job 4 of 4, --job N shows another: seed=8 sae=matryoshka sae.d_sae=4096 sae.prefixes=[1024,2048,4096]"
    )
    assert (found.cfg.seed, found.cfg.sae.k) == (8, 4)
    assert found.origins["seed"] == found.origins["sae.k"] == TYPED


def test_origins_of_own_configs(tmp_path: Path) -> None:
    own = own_folder(
        tmp_path,
        sae__mine="defaults: [topk, _self_]\nk: 5\n",
        experiment__mine="# @package _global_\ndefaults: [{override /sae: mine}]\nsae: {aux_k: 9}\n",
    )
    found = resolve(["experiment=mine"], own)
    assert found.chosen["sae"] == ("mine", f"{own}/experiment/mine.yaml")
    assert found.origins["sae.k"] == f"{own}/sae/mine.yaml"
    assert found.origins["sae.d_sae"] == "conf/sae/topk.yaml"
    assert found.origins["sae.aux_k"] == f"{own}/experiment/mine.yaml"


def test_lists_show_the_job_that_is_asked_for() -> None:
    text = show(["sae=topk,batchtopk", "sae.k=4,8"], number=3)
    assert text.splitlines()[:2] == [
        "# job 3 of 4, --job N shows another: sae=batchtopk sae.k=4",
        "# grid 1, 4 jobs: sae=topk,batchtopk sae.k=4,8",
    ]
    assert yaml.safe_load(text) == as_dict(load(["sae=batchtopk", "sae.k=4"]))
    assert re.search(r"^  k: 4 +# command line$", text, re.MULTILINE)


def test_what_is_left_out_says_what_it_becomes() -> None:
    text = show(["sae=lattice", "sae.d_sae=4096", "experiment.lr_factors=[0.5,1]"])
    assert re.search(r"^  prefixes: \[512, 1024, 2048, 4096\] +# conf/sae/lattice.yaml has null$", text, re.MULTILINE)
    assert re.search(
        r"^  lr: null +# conf/train/default.yaml; in a sweep the best of 0.001, 0.002$", text, re.MULTILINE
    )
    assert re.search(r"^  n_tokens: null +# conf/train/default.yaml; here 450000$", text, re.MULTILINE)
    assert re.search(rf"^  name: '' +# {CODE}$", text, re.MULTILINE)


@pytest.mark.parametrize(
    "given", ["experiment=lattice/cpu data.path=x", "engine=joblib tracker=wandb sparsity=anneal sae=relu"]
)
def test_a_value_is_the_one_that_its_origin_has(given: str) -> None:
    found = resolve(given.split())
    assert checked(found) > 60


def checked(found: Resolved) -> int:
    """How many values came from files; asserts that the files hold them, and that code or a user set all others."""
    files = {by for by in found.origins.values() if by.endswith(".yaml") and not by.startswith("grid")}
    held = {by: read(conf_folder() / by.removeprefix("conf/")) for by in files}
    n = 0
    for key, value in found.raw.items():
        by = found.origins.get(key, CODE)
        content = dict(leaves(held.get(by, {})))
        if content:
            assert content[key if key in content else key.partition(".")[2]] == value
            n += 1
        else:
            assert by in (TYPED, CODE) or by.startswith("grid")
    return n


def test_config_is_show_under_its_old_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saebench.origins.show", lambda *given: repr(given))
    said = [CliRunner().invoke(app, [name, "--job", "2", "sae.k=3,4"]).stdout for name in ("show", "config")]
    assert said == ["(['sae.k=3,4'], None, 2)\n"] * 2
