"""The whole road on the embedded model: disk equals stream, order, resumption, gangs, evaluation, tables, figures."""

from __future__ import annotations

import csv
import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from saebench import activations, caching
from saebench.activations import DiskShards
from saebench.checks import InputError
from saebench.config import RunConfig, recorded
from saebench.heldout import HeldOut
from saebench.lm import LM, Site
from saebench.pipeline import evaluate_gang, run, run_folder, train_gang
from saebench.runs import METRICS
from saebench.saes import REGISTRY
from saebench.store import read_json, records_of
from saebench.stream import Stream, cache_sites, open_batches, open_stream
from tests.configs import run_config, sae_config

SMALL = [
    "data.n_tokens=6400", "data.eval_tokens=1280", "data.seq_len=32", "data.stats_tokens=2048", "data.shard_tokens=1024",
    "data.outlier_norm=1.15", "model.batch=16", "sae.d_sae=64", "train.batch_size=256", "train.window_tokens=2048",
    "train.importance_tokens=1024", "train.log_every=5", "evaluate.sizes=[0.25]", "evaluate.rules=[energy]",
    "evaluate.budgets=[2]", "evaluate.ce_tokens=256", "evaluate.ce_views=5", "evaluate.rsa_tokens=64",
    "evaluate.threshold_tokens=512",
]  # fmt: skip


def small(outputs: Path, *overrides: str) -> RunConfig:
    """A run that takes about a second."""
    return run_config(*SMALL, f"outputs={outputs}", *overrides)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "sae.safetensors")


def rows_of(folder: Path, name: str = "metrics.csv") -> list[dict[str, str]]:
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_stream_and_disk_give_the_same_weights_and_metrics(tmp_path: Path) -> None:
    disk = run([small(tmp_path / "a")])[0]
    stream = run([small(tmp_path / "b", "cache=stream")])[0]
    assert disk.name == stream.name
    for name, tensor in weights(disk).items():
        assert torch.equal(tensor, weights(stream)[name]), name
    assert (disk / "metrics.csv").read_text() == (stream / "metrics.csv").read_text()
    assert not list((tmp_path / "b" / "activations").glob("*/shard-*"))


class Numbered:
    """Shards whose rows are numbers, all different."""

    def __init__(self, rows: list[int]) -> None:
        ends = torch.tensor(rows).cumsum(0).tolist()
        self.parts = [torch.arange(end - n, end).unsqueeze(1) for n, end in zip(rows, ends, strict=True)]

    def read(self, i: int) -> Numbered:
        self.chosen = self.parts[i]
        return self

    def rows(self) -> torch.Tensor:
        return self.chosen


def test_batches_are_a_pure_function_of_the_step_and_visit_every_row_once() -> None:
    rows = [100, 90, 100, 95, 40]

    def batches(order_seed: int = 0) -> activations.Batches:
        return activations.Batches(Numbered(rows), rows, 16, 200, order_seed)  # pyright: ignore[reportArgumentType]

    every = list(batches().between(0, 60))
    assert all(torch.equal(a, b) for a, b in zip(every[13:], batches().between(13, 60), strict=True))
    windows = list(itertools.islice(batches().windows(), 3))
    epoch = sum(w.steps for w in windows)
    assert sorted(i for w in windows for i in w.shards) == [0, 1, 2, 3, 4]
    first = torch.cat(every[:epoch]).flatten().tolist()
    assert len(set(first)) == len(first) == epoch * 16
    assert len(first) > sum(rows) - 3 * 16
    second = torch.cat(every[epoch : epoch + 5]).flatten().tolist()
    assert len(set(second)) == len(second)
    assert set(second) & set(first)
    assert not torch.equal(next(batches(1).between(0, 1)), every[0])


def test_an_epoch_without_a_whole_batch_is_refused() -> None:
    empty = activations.Batches(Numbered([10]), [10], 16, 200, 0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"train\.batch_size=16: an epoch has 10 tokens"):
        list(empty.between(0, 1))


def test_only_ordinary_tokens_are_rows(tmp_path: Path) -> None:
    stream = open_stream(small(tmp_path))
    assert sum(stream.stats.summary["rows"]) == 6400 // 32 * 31 - separators(stream)


def test_special_tokens_can_be_kept(tmp_path: Path) -> None:
    """They are rows of the same cached shards, and metrics tell them apart."""
    plain, kept = small(tmp_path), small(tmp_path, "data.special=keep", "evaluate.sizes=[]", "evaluate.rules=[]")
    assert sum(open_stream(kept).stats.summary["rows"]) == 6400
    assert open_stream(kept).shards.read(1).rows().shape[0] == 32 * 32
    assert sum(open_stream(plain).stats.summary["rows"]) < 6400
    assert len(list((tmp_path / "activations").glob("*/manifest.json"))) == 1
    folder = run([kept])[0]
    assert folder != run_folder(plain, open_stream(plain))
    (every,) = [r for r in rows_of(folder) if r["view"] == "full" and r["tokens"] == "all"]
    (typical,) = [r for r in rows_of(folder) if r["view"] == "full" and r["tokens"] == "typical"]
    histogram = rows_of(folder, "l0.csv")
    counts = Counter({(r["group"], int(r["l0"])): int(r["tokens"]) for r in histogram if r["view"] == "full"})
    assert counts.total() == int(every["n_tokens"])
    assert sum(n * l0 for (_, l0), n in counts.items()) / counts.total() == pytest.approx(float(every["l0"]))
    by_group = {group: sum(n for (g, _), n in counts.items() if g == group) for group, _ in counts}
    assert by_group["typical"] == int(typical["n_tokens"])
    blocks = open_stream(kept).store.n_blocks("heldout")
    assert by_group["special"] >= blocks  # each begins with BOS
    documents = rows_of(next(folder.glob("evaluations/*")), "documents.csv")
    full = [r for r in documents if r["view"] == f"full-{every['m']}-{every['budget']}-{every['mode']}"]
    error, total = (sum(float(r[name]) for r in full) for name in ("residual_trained", "total_trained"))
    assert error / total == pytest.approx(float(every["nmse"]))
    assert {r["group"] for r in full} >= {"typical", "special"}


def separators(stream: Stream) -> int:
    """Separators within blocks of the training split."""
    store = stream.store
    tokens = store.blocks("train", range(store.n_blocks("train"))).tokens
    return int(store.special(tokens)[:, 1:].sum())


def test_a_batch_is_nearly_free_of_neighbours(tmp_path: Path) -> None:
    """How many pairs of a batch come from one block, over what a perfect shuffle of the whole cache would give."""
    cfg = small(tmp_path, "train.window_tokens=8192")
    stream = open_stream(cfg)
    owner = {}
    for i in range(len(stream.shards)):
        shard = stream.shards.read(i)
        for block, x in zip(stream.shards.block_ids(i).tolist(), shard.x, strict=True):
            owner |= {tuple(row.tolist()): block for row in x.float()[:, :6]}
    pairs = []
    for batch in open_batches(cfg, stream).between(0, 10):
        blocks = [owner[tuple(row.tolist())] for row in batch.float()[:, :6]]
        counts = torch.bincount(torch.tensor(blocks)).double()
        pairs.append(float((counts * (counts - 1)).sum()))
    expected = 256 * 255 / len(stream.shards.order)
    assert sum(pairs) / len(pairs) == pytest.approx(expected, rel=0.25)


def test_an_interrupted_cache_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = small(tmp_path)
    read, seen = activations.Shards.read_sites, []

    def fails_at_three(self: activations.Shards, i: int, *rest: Any) -> list[activations.Shard]:
        seen.append(i)
        if i == 3 and len(seen) < 5:
            raise KeyboardInterrupt
        return read(self, i, *rest)

    monkeypatch.setattr(activations.Shards, "read_sites", fails_at_three)
    with pytest.raises(KeyboardInterrupt):
        open_stream(cfg)
    shards = open_stream(cfg).shards
    assert isinstance(shards, DiskShards)
    assert seen == [0, 1, 2, 3, 3, 4, 5, 6]
    monkeypatch.undo()
    whole = open_stream(small(tmp_path / "other")).shards
    for i in range(len(shards)):
        assert torch.equal(shards.read(i).x, whole.read(i).x)


def test_several_sites_are_cached_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sites = [(0, "resid_post"), (1, "mlp_out"), (1, "resid_post")]
    calls: list[int] = []
    compute = LM.activations_at
    monkeypatch.setattr(LM, "activations_at", lambda lm, *given: calls.append(len(given[1])) or compute(lm, *given))

    def configs(name: str) -> list[RunConfig]:
        return [small(tmp_path / name, f"model.layer={i}", f"model.site={site}") for i, site in sites]

    cache_sites(configs("together"))
    blocks = 6400 // 32
    per_shard = [min(32, blocks - i) for i in range(0, blocks, 32)]
    assert calls == [3] * (2 + sum(-(-n // 16) for n in per_shard))  # two measure the speed
    cache_sites(configs("together"))
    assert calls == [3] * len(calls)  # nothing is missing, so nothing runs
    streams = [open_stream(cfg) for cfg in configs("together")]
    assert len(calls) == 2 + sum(-(-n // 16) for n in per_shard)
    for stream, cfg in zip(streams, configs("alone"), strict=True):
        assert isinstance(stream.shards, DiskShards)
        alone = open_stream(cfg).shards
        assert isinstance(alone, DiskShards)
        assert stream.shards.path.name == alone.path.name
        assert records_of(stream.shards.path) == records_of(alone.path)


def test_the_device_of_the_model_is_in_no_key_and_no_record(tmp_path: Path) -> None:
    plain, placed = small(tmp_path), small(tmp_path, "train.lm_device=cpu")
    (folder,) = run([plain])
    before = (folder / "done.json").read_bytes()
    assert run([placed]) == [folder]
    assert (folder / "done.json").read_bytes() == before
    assert recorded(placed) == recorded(plain)
    with pytest.raises(InputError, match=r"train\.lm_device=gpu: choose one of auto, cpu, cuda, cuda:N"):
        small(tmp_path, "train.lm_device=gpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"train\.lm_device=cuda:1: no CUDA device .*; use train\.lm_device=cpu"):
            open_stream(small(tmp_path, "train.lm_device=cuda:1"))


def test_an_interrupted_pass_over_several_sites_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = [small(tmp_path, f"model.layer={i}") for i in (0, 1)]
    read, seen = activations.Shards.read_sites, []

    def fails_at_two(self: activations.Shards, i: int, sites: list[Site], *rest: Any) -> list[activations.Shard]:
        seen.append((i, len(sites)))
        if seen == [(0, 2), (1, 2), (2, 2)]:
            raise KeyboardInterrupt
        return read(self, i, sites, *rest)

    monkeypatch.setattr(activations.Shards, "read_sites", fails_at_two)
    with pytest.raises(KeyboardInterrupt):
        cache_sites(configs)
    first = sorted((tmp_path / "activations").glob("*.partial"))[0]
    (first / "shard-00001.safetensors").unlink()  # of one site alone
    cache_sites(configs)
    assert seen[3:] == [(1, 1), *((i, 2) for i in range(2, 7))]
    assert len(list((tmp_path / "activations").glob("*/done.json"))) == 2


def test_a_cache_too_large_for_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        free = 1000

    monkeypatch.setattr(caching.shutil, "disk_usage", lambda _: Full)
    with pytest.raises(InputError, match=r"the activation cache needs 0\.0 GB and .* use cache=stream"):
        open_stream(small(tmp_path))


def test_activations_that_are_not_finite_are_named() -> None:
    x = torch.zeros(2, 3, 4)
    special = torch.zeros(2, 3, dtype=torch.bool)
    activations.check_finite(x, special, 7)
    x[1, 2, 0] = torch.inf
    with pytest.raises(InputError, match="NaN or inf in shard 7, block 1, token 2"):
        activations.check_finite(x, special, 7)
    special[1, 2] = True
    activations.check_finite(x, special, 7)


def test_an_activation_can_be_traced_to_its_context(tmp_path: Path) -> None:
    stream = open_stream(small(tmp_path))
    shard = stream.shards.read(2)
    again = stream.lm().activations(shard.tokens[:4]).bfloat16()
    torch.testing.assert_close(shard.x[:4].float(), again.float(), rtol=0.02, atol=0.02)
    assert bool(shard.excluded[:, 0].all())
    assert not stream.store.special(shard.tokens[~shard.excluded]).any()


def test_a_gang_trains_every_variant_as_alone_and_evaluates_all_views(tmp_path: Path) -> None:
    knobs = {v: ["sae.k=4"] if hasattr(sae_config(v), "k") else ["sae.target_l0=4"] for v in REGISTRY}
    configs = [small(tmp_path, f"sae={v}", "sae.d_sae=64", *knobs[v]) for v in sorted(REGISTRY)]
    folders = run(configs)
    alone = run([small(tmp_path / "alone", "sae=matryoshka", "sae.d_sae=64", "sae.k=4")])[0]
    together = folders[sorted(REGISTRY).index("matryoshka")]
    assert alone.name == together.name
    for name, tensor in weights(alone).items():
        assert torch.equal(tensor, weights(together)[name]), name
    for folder in folders:
        check_metrics(rows_of(folder))
    before = {f: (f / "done.json").stat().st_mtime_ns for f in folders}
    assert run(configs) == folders
    assert before == {f: (f / "done.json").stat().st_mtime_ns for f in folders}
    check_tables_and_figures(tmp_path)


def check_metrics(rows: list[dict[str, str]]) -> None:
    """What must hold of any run's metrics."""
    assert list(rows[0]) == METRICS
    assert {r["view"] for r in rows} == {"full", "prefix", "pruned", "budget"}
    assert {r["tokens"] for r in rows} == {"all", "typical"}
    full = rows[0]
    for r in rows:
        assert 0 <= float(r["fvu"]) < 3
        assert 0 <= float(r["cka"]) <= 1 + 1e-9
        assert float(r["l0_p05"]) <= float(r["l0_p95"])
        if r["view"] == "pruned" and r["tokens"] == "all" and r["order"] == "select_then_prune":
            assert float(r["l0"]) <= float(full["l0"]) + 1e-9
    assert int(full["n_tokens"]) > 1000
    spliced = [r for r in rows if r["ce_sae"]]
    assert len(spliced) == 10
    for r in spliced:
        assert float(r["ce_clean"]) < float(r["ce_sae"]) < 15
        assert float(r["kl"]) > 0
        recovered = (float(r["ce_zero"]) - float(r["ce_sae"])) / (float(r["ce_zero"]) - float(r["ce_clean"]))
        assert float(r["recovered_zero"]) == pytest.approx(recovered)
    typical = next(r for r in rows if r["view"] == "full" and r["tokens"] == "typical")
    assert int(typical["n_tokens"]) < int(full["n_tokens"])


def check_tables_and_figures(outputs: Path) -> None:
    from saebench.figures import draw_figures
    from saebench.tables import result_table, write_tables

    assert len(write_tables(outputs)) >= 5
    table = result_table(outputs)
    assert all(variant in table for variant in REGISTRY)
    assert {p.suffix for p in draw_figures(outputs)} == {".png", ".pdf"}


def test_evaluation_keys_are_their_own(tmp_path: Path) -> None:
    folder = run([small(tmp_path)])[0]
    full = (folder / "metrics.csv").read_text()
    run([small(tmp_path, "evaluate.budgets=[1]")], evaluate_only=True)
    assert (folder / "metrics.csv").read_text() != full
    assert read_json(folder / "evaluation.json")["evaluate"]["budgets"] == [1]
    run([small(tmp_path)], evaluate_only=True)
    assert (folder / "metrics.csv").read_text() == full
    assert len(list((folder / "evaluations").iterdir())) == 2
    with pytest.raises(InputError, match="not trained yet"):
        run([small(tmp_path, "seed=5")], evaluate_only=True)


def test_splicing_x_itself_recovers_everything(tmp_path: Path) -> None:
    """With an identity in place of an SAE, the spliced cross-entropy equals the clean one."""
    cfg = small(tmp_path, "data.dtype=float32", "sae=relu", "sae.d_sae=256")
    stream = open_stream(cfg)
    from saebench.evaluate import evaluate
    from saebench.heldout import HeldOut, Subject
    from saebench.saes import build

    sae = build(cfg.sae, stream.stats, 0).requires_grad_(False)
    eye = torch.eye(128)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([eye, -eye], 1))
        sae.W_dec.copy_(torch.cat([eye, -eye]))
    importance = {name: torch.ones(256).double() for name in ("energy", "frequency", "decoder_norm")}
    subject = Subject("identity", sae, importance, {2: 0.5}, cfg.evaluate)
    heldout = HeldOut(stream.lm(), stream.store, stream.stats, cfg.evaluate, "float32")
    row = evaluate(heldout, [subject])["identity"][0]
    assert row["fvu"] < 1e-10
    assert row["ce_sae"] == pytest.approx(row["ce_clean"], abs=1e-5)
    assert abs(row["kl"]) < 1e-6
    assert row["recovered_zero"] == pytest.approx(1, abs=1e-5)
    assert not math.isnan(row["rsa_pearson"])


def test_evaluation_runs_the_model_once_and_its_upper_half_once_for_each_reconstruction(tmp_path: Path) -> None:
    given = [*SMALL, f"outputs={tmp_path}", "model.layer=1", "evaluate.ce_tokens=1280", "evaluate.batch=640"]
    configs = [run_config(*given, f"sae={name}", "evaluate.ce_views=3") for name in ("topk", "matryoshka")]
    stream = open_stream(configs[0])
    folders = [run_folder(cfg, stream) for cfg in configs]
    train_gang(configs, folders, stream)
    calls: Counter[int] = Counter()
    for i, layer in enumerate(stream.lm().layers):
        layer.register_forward_pre_hook(lambda *_, i=i: calls.update([i]))
    evaluate_gang(configs, folders, stream)
    batches, reconstructions = 1280 // 640, 2 + 3 * len(configs)  # zero and the mean are spliced once for all
    above = batches * (1 + reconstructions)
    assert calls == {i: batches if i <= 1 else above for i in range(len(stream.lm().layers))}


def test_a_loss_that_is_not_finite_fails_that_run_alone(tmp_path: Path) -> None:
    good, bad = small(tmp_path), small(tmp_path, "sae=relu", "train.lr=1e38")
    with pytest.raises(InputError, match=r"relu-.*: the loss became (nan|inf) at step .*; lower train\.lr="):
        run([good, bad])
    failed, done = sorted((tmp_path / "runs").iterdir())
    assert done.name.startswith("topk-")
    assert failed.name.endswith(".partial")
    assert (failed / "failed.json").is_file()
    assert run([good])[0].is_dir()


def test_evaluations_that_differ_in_views_share_the_held_out_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[HeldOut] = []

    def opening(*args: Any) -> HeldOut:
        opened.append(HeldOut(*args))
        return opened[-1]

    monkeypatch.setattr("saebench.pipeline.HeldOut", opening)
    configs = [small(tmp_path), small(tmp_path, "seed=1", "evaluate.sizes=[0.5]"), small(tmp_path, "seed=2")]
    folders = run(configs)
    assert len(opened) == 1
    alone = run([small(tmp_path / "alone", "seed=1", "evaluate.sizes=[0.5]")])[0]
    assert (alone / "metrics.csv").read_text() == (folders[1] / "metrics.csv").read_text()
    run([small(tmp_path, "evaluate.rsa_tokens=32")])
    assert len(opened) == 3
