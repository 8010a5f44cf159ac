"""Property tests and fuzzing: any override, any bytes as text, any damage to a file either work or are one InputError."""

from __future__ import annotations

import json
import random
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from saebench.checkpoint import checkpoints, load_checkpoint
from saebench.checks import InputError
from saebench.compose import load, load_sweep
from saebench.config import RunConfig, as_dict, from_dict
from saebench.runconfig import read_config
from saebench.sae_configs import SAE_VARIANTS
from saebench.saes import build
from saebench.saes.files import load_sae, save_sae
from saebench.store import is_done, stage
from saebench.textfiles import READERS, documents
from saebench.verify import verify
from tests.configs import sae_config, stats_of, synthetic
from tests.test_checkpoint import config, member, saved

HOSTILE = [
    -1, 0, 10**12, 2**63, 10**400, 1.5, float("nan"), float("inf"), True, None, "", "..", "../../etc/passwd", "a\nb", "\x00", [],
    [1] * 9, {}, {"name": "topk"},
]  # fmt: skip
DEEP = "[" * 100_000
BOUND = 64 << 20  # bytes of Python's own that reading a damaged file of a few kB may take

WORDS = "${ oc.env:HOME ++ sae train data model evaluate k lr path name topk nan 1e999 -1 range choice"
PIECES = st.sampled_from([*WORDS.split(), *"=.=.[]{},'\"\\$~+@:() \n\té"])
OVERRIDES = st.lists(st.one_of(PIECES, st.text(max_size=4)), min_size=1, max_size=9).map("".join)
VALUES = st.one_of(st.integers(), st.floats(), st.text(max_size=6), st.lists(st.integers(), max_size=3).map(str))
KEYS = [
    "sae.k", "sae.d_sae", "sae.aux_weight", "train.lr", "train.batch_size", "train.warmup", "train.window_tokens", "data.seq_len",
    "data.n_tokens", "data.outlier_norm", "model.layer", "model.site", "evaluate.sizes", "evaluate.budgets", "seed", "checkpoint",
    "device", "outputs", "cache", "tracker.name", "sae.input", "data.seed",
]  # fmt: skip
QUICK = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
few_or_many = pytest.mark.parametrize("examples", [15, pytest.param(500, marks=pytest.mark.long)])


def outcome(call: Callable[[], Any]) -> tuple[Any, str]:
    """What a call returns and no words, or nothing and the words of its InputError; any other error fails the test."""
    try:
        return call(), ""
    except InputError as error:
        return None, " ".join(str(error).split()) or "nothing"


@few_or_many
def test_any_override_composes_or_is_one_line(examples: int) -> None:
    @settings(QUICK, max_examples=examples)
    @example("sae.k=${oc.env:HOME}")
    @example("~sae")
    @example("+sae.x=1")
    @example("sae.k=" + "[" * 3000)
    @example("\x00")
    @given(OVERRIDES)
    def holds(override: str) -> None:
        for read in (load, load_sweep):
            found, wrong = outcome(lambda read=read: read([override]))
            assert len(wrong) > 10 or not wrong
            assert wrong or all(isinstance(cfg, RunConfig) for cfg in (found if isinstance(found, list) else [found]))

    holds()


@few_or_many
def test_any_value_of_a_key_composes_or_names_the_key(examples: int) -> None:
    @settings(QUICK, max_examples=examples)
    @given(st.sampled_from(KEYS), VALUES)
    def holds(key: str, value: Any) -> None:
        cfg, wrong = outcome(lambda: load([f"{key}={value}"]))
        assert len(wrong) > 10 or not wrong
        assert wrong or from_dict(json.loads(json.dumps(as_dict(cfg)))) == cfg

    holds()


@few_or_many
def test_any_bytes_are_text_or_named(examples: int, tmp_path: Path) -> None:
    @settings(QUICK, max_examples=4 * examples)
    @example(".jsonl", DEEP.encode())
    @example(".jsonl", b'{"text": ' + b"9" * 5000 + b"}")
    @example(".txt", b"\xef\xbb\xbf")
    @example(".txt", b"\x00")
    @given(st.sampled_from(sorted(READERS)), st.one_of(st.binary(max_size=200), st.text(max_size=100).map(str.encode)))
    def holds(suffix: str, content: bytes) -> None:
        path = tmp_path / f"file{suffix}"
        path.write_bytes(content)
        found, wrong = outcome(lambda: list(documents("data.path", str(path), "text")))
        assert str(path) in wrong or not wrong
        assert wrong or (found and all(text.strip() and text.encode() for text in found))

    holds()


@few_or_many
def test_text_written_as_json_lines_is_read_as_it_was(examples: int, tmp_path: Path) -> None:
    @settings(QUICK, max_examples=2 * examples)
    @given(st.lists(st.text(max_size=30), min_size=1, max_size=6))
    def holds(texts: list[str]) -> None:
        path = tmp_path / "file.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        wanted = [text for text in texts if text.strip()]
        assert not wanted or list(documents("data.path", str(path), "text")) == wanted

    holds()


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """Bytes with a few flipped, a part cut out, cut short, repeated or replaced."""
    at, size = rng.randrange(len(raw)), rng.randrange(1, 40)
    kind = rng.randrange(6)
    if kind == 0:
        return raw[:at]
    if kind == 1:
        return raw[:at] + raw[at + size :]
    if kind == 2:
        return raw[:at] + rng.randbytes(size) + raw[at + size :]
    if kind == 3:
        return raw[: at + size] + raw[at:]
    if kind == 4:
        return rng.randbytes(size)
    return raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at + 1 :]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value of a JSON document is, the whole first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inner for place in places(one, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The document with another value at a place; as it was where that place is gone."""
    if not path:
        return new
    whole = dict(value) if isinstance(value, dict) else list(value)
    whole[path[0]] = replaced(value[path[0]], path[1:], new)
    return whole


def hostile(text: str, rng: random.Random, count: int) -> list[str]:
    """JSON documents like `text` with one value hostile, without one key, or nested deep."""
    whole = json.loads(text)
    made = [DEEP, text.replace(":", ":" + DEEP, 1), '{"a": ' + "9" * 5000 + "}"]
    for _ in range(count):
        place = rng.choice(places(whole))
        made.append(json.dumps(replaced(whole, place, rng.choice(HOSTILE))))
    return made


def within_bounds(call: Callable[[], Any]) -> str:
    """The words of the InputError that a call raises, or none. Any other error, or more memory than BOUND, fails the test."""
    tracemalloc.start()
    wrong = outcome(call)[1]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < BOUND, f"{peak:,} bytes"
    assert len(wrong) > 10 or not wrong
    return wrong


@pytest.mark.parametrize("variant", SAE_VARIANTS)
def test_a_hostile_sae_is_an_input_error(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(variant)
    sae = build(sae_config(variant), stats_of(synthetic(64)), seed=0)
    save_sae(sae, tmp_path)
    largest = max(t.numel() for t in sae.state_dict().values())
    make = torch.randn

    def randn(*size: Any, **given: Any) -> torch.Tensor:
        rows, columns = size
        assert rows * columns <= largest, f"asked for {rows} x {columns} numbers"
        return make(*size, **given)

    monkeypatch.setattr(torch, "randn", randn)
    described, weights = (tmp_path / "sae.json").read_text(), (tmp_path / "sae.safetensors").read_bytes()
    errors = []
    for text in hostile(described, rng, 60):
        (tmp_path / "sae.json").write_text(text)
        errors.append(within_bounds(lambda: load_sae(tmp_path)))
    (tmp_path / "sae.json").write_text(described)
    for _ in range(40):
        (tmp_path / "sae.safetensors").write_bytes(damaged(weights, rng))
        errors.append(within_bounds(lambda: load_sae(tmp_path)))
    assert sum(map(bool, errors)) > 40
    (tmp_path / "sae.safetensors").write_bytes(weights)
    assert load_sae(tmp_path).d_sae == sae.d_sae


def test_a_flipped_bit_in_a_finished_sae_is_always_found(tmp_path: Path) -> None:
    sae = build(sae_config("topk"), stats_of(synthetic(64)), seed=0)
    stage(tmp_path / "run", {}, lambda partial: save_sae(sae, partial))
    load_sae(tmp_path / "run")
    raw = (tmp_path / "run" / "sae.safetensors").read_bytes()
    rng = random.Random(0)
    for _ in range(50):
        at = rng.randrange(len(raw))
        spoilt = raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at + 1 :]
        (tmp_path / "run" / "sae.safetensors").write_bytes(spoilt)
        with pytest.raises(InputError, match="verify --repair"):
            load_sae(tmp_path / "run")


def test_hostile_manifests_are_named_and_harm_nothing_else(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "done.json").write_text("mine")
    stage(outputs / "runs" / "a", {"k": 1}, lambda partial: (partial / "value").write_text("7"))  # pyright: ignore[reportArgumentType]
    text = (outputs / "runs" / "a" / "done.json").read_text()
    rng = random.Random(1)
    elsewhere = ["../../../precious/done.json", "/etc/passwd", "a\x00b", "x" * 5000, ".", ""]
    strange = [json.dumps({"inputs": {}, "files": {name: {"bytes": 1, "sha256": ""}}}) for name in elsewhere]
    for text_now in [*hostile(text, rng, 60), *strange]:
        shutil.rmtree(outputs)
        (outputs / "runs" / "a").mkdir(parents=True)
        (outputs / "runs" / "a" / "value").write_text("7")
        (outputs / "runs" / "a" / "done.json").write_text(text_now)
        within_bounds(lambda: is_done(outputs / "runs" / "a", {"k": 1}))
        within_bounds(lambda: verify(outputs))
        within_bounds(lambda: verify(outputs, repair=True))
        assert (tmp_path / "precious" / "done.json").read_text() == "mine"


def test_any_damage_to_a_checkpoint_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    saved(tmp_path / "good")
    good = {path.name: path.read_bytes() for path in (tmp_path / "good").iterdir()}
    (newest, before) = (path.stem for path in checkpoints(tmp_path / "good"))
    rng, folder = random.Random(2), tmp_path / "spoilt"
    texts = [text.encode() for text in hostile(good[f"{newest}.json"].decode(), rng, 40)]
    cases = [(".json", text) for text in texts]
    cases += [(".safetensors", damaged(good[f"{newest}.safetensors"], rng)) for _ in range(15)]
    for suffix, content in cases:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "good", folder)
        (folder / f"{newest}{suffix}").write_bytes(content)
        again = member(config("topk"))
        assert within_bounds(lambda again=again: load_checkpoint(again, folder)) == ""
        assert again.done in (4, 5)  # 5 where the damage is to nothing that is read
    assert before == "step-000000004"


CONFIG = as_dict(load([]))


def test_hostile_configs_of_runs_are_named(tmp_path: Path) -> None:
    rng = random.Random(3)
    for text in hostile(json.dumps(CONFIG), rng, 150):
        (tmp_path / "config.yaml").write_text(text)
        within_bounds(lambda: from_dict(read_config(tmp_path / "config.yaml")))
    for _ in range(100):
        (tmp_path / "config.yaml").write_bytes(damaged(json.dumps(CONFIG).encode(), rng))
        within_bounds(lambda: from_dict(read_config(tmp_path / "config.yaml")))
