"""What users and strangers get wrong: each wrong input with the command that meets it and what the one line must say.

Commands run in a folder that holds `outputs` (one finished run), `model` (a copy of the embedded model) and `text.txt`; {run}
stands for the run's folder. `prepare` spoils something there before the outputs are looked at.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

Prepare = Callable[[Path], object]


def nothing(folder: Path) -> None:
    """Spoil nothing."""


class Wrong(NamedTuple):
    """A command, what its line says, and what was spoilt before."""

    command: str
    says: str
    prepare: Prepare = nothing


TEXT = "train data=text data.path={} data.n_tokens=64 data.eval_tokens=64 data.seq_len=64 outputs=outputs"
MODEL = "train model=local model.path=model model.layer=1 outputs=outputs"


def put(name: str, content: str | bytes) -> Prepare:
    """Write a file."""

    def prepare(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return prepare


def large(name: str, size: int, start: bytes = b"") -> Prepare:
    """Make a file of `size` bytes that takes no disk: NULs, one line."""

    def prepare(folder: Path) -> None:
        put(name, start)(folder)
        os.truncate(folder / name, size)

    return prepare


def link(name: str, target: str) -> Prepare:
    """Make a symbolic link."""

    def prepare(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target)

    return prepare


def remove(name: str) -> Prepare:
    """Remove a file."""
    return lambda folder: (folder / name).unlink()


def run_of(folder: Path) -> Path:
    """The one finished run."""
    return next((folder / "outputs" / "runs").iterdir())


def in_run(name: str, content: str | bytes | None) -> Prepare:
    """Replace a file of the run, or remove it."""

    def prepare(folder: Path) -> None:
        path = run_of(folder) / name
        path.unlink()
        if content is not None:
            path.write_bytes(content.encode() if isinstance(content, str) else content)

    return prepare


def cut(name: str, size: int) -> Prepare:
    """Keep the first `size` bytes of a file of the run."""
    return lambda folder: os.truncate(run_of(folder) / name, size)


def changed(path: Path, **values: Any) -> None:
    """Change keys of a JSON file; dotted ones lie deeper (with __ for the dot)."""
    whole = json.loads(path.read_text(encoding="utf-8"))
    for key, value in values.items():
        *groups, name = key.split("__")
        place = whole
        for group in groups:
            place = place[group]
        place[name] = value
    path.write_text(json.dumps(whole), encoding="utf-8")


def sae_json(**values: Any) -> Prepare:
    """Change keys of the run's sae.json, as a stranger may who brings no checksums."""

    def prepare(folder: Path) -> None:
        (run_of(folder) / "done.json").unlink()
        changed(run_of(folder) / "sae.json", **values)

    return prepare


def model_json(**values: Any) -> Prepare:
    """Change keys of the model's config.json."""
    return lambda folder: changed(folder / "model" / "config.json", **values)


def without_bos(folder: Path) -> None:
    """A tokenizer that knows no BOS token."""
    put("model/tokenizer_config.json", '{"tokenizer_class": "PreTrainedTokenizerFast"}')(folder)


def pickled(folder: Path) -> None:
    """Weights in a format that runs code when it is read."""
    (folder / "model" / "model.safetensors").rename(folder / "model" / "pytorch_model.bin")


def other_weights(folder: Path) -> None:
    """A weight file that lacks most of the model."""
    import torch
    from safetensors.torch import save_file

    save_file({"transformer.wte.weight": torch.zeros(2048, 128)}, folder / "model" / "model.safetensors")


def foreign_tensors(folder: Path) -> None:
    """SAE weights of another variant."""
    import torch
    from safetensors.torch import save_file

    save_file({"encoder.weight": torch.zeros(4, 4)}, run_of(folder) / "sae.safetensors")


def parquet(name: str, **columns: list[Any]) -> Prepare:
    """Write a Parquet file."""

    def prepare(folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns), folder / name)

    return prepare


def in_metrics(old: str, new: str) -> Prepare:
    """Replace text in the header of metrics.csv."""

    def prepare(folder: Path) -> None:
        path = run_of(folder) / "metrics.csv"
        path.write_text(path.read_text().replace(old, new, 1))

    return prepare


def other_format(folder: Path) -> None:
    """The record of a cache that another version wrote."""
    (record,) = (path for path in (folder / "outputs").rglob("done.json") if (path.parent / "manifest.json").exists())
    changed(record, files=["shard-00000.safetensors"])


def torn_shard(folder: Path) -> None:
    """A shard of activations of half its length."""
    shard = next((folder / "outputs" / "activations").rglob("shard-00000.safetensors"))
    os.truncate(shard, shard.stat().st_size // 2)


def torn_tokens(folder: Path) -> None:
    """A bit of a shard of tokens flipped."""
    shard = next((folder / "outputs" / "tokens").rglob("train-00000.safetensors"))
    raw = bytearray(shard.read_bytes())
    raw[-5] ^= 1
    shard.write_bytes(bytes(raw))


def torn_stats(folder: Path) -> None:
    """Statistics that another program wrote."""
    next((folder / "outputs" / "activations").rglob("stats.json")).write_text("[]")


def file_as_outputs(folder: Path) -> None:
    """A file where the outputs folder should be."""
    shutil.rmtree(folder / "outputs")
    (folder / "outputs").write_text("mine")


DEEP = "[" * 100_000
CONFIG = {
    "key misspelt": Wrong("train sae.kk=3", "did you mean sae.k?"),
    "group misspelt": Wrong("train seed.k=3", "seed: Value"),
    "option misspelt": Wrong("train sae=batchtop", "did you mean batchtopk?"),
    "no key": Wrong("train =3", "=3"),
    "no equals sign": Wrong("train sae.k", "sae.k"),
    "text for a number": Wrong("train sae.k=many", "sae.k: Value 'many'"),
    "a list for a number": Wrong("train sae.k=[1,2]", "sae.k"),
    "k above d_sae": Wrong("train sae.k=99 sae.d_sae=64", "sae.k=99: cannot exceed sae.d_sae=64"),
    "huge d_sae": Wrong("train sae.d_sae=1_000_000_000_000", "sae.d_sae=1000000000000"),
    "NaN for a rate": Wrong("train train.lr=nan", "train.lr=nan"),
    "infinite steps between checkpoints": Wrong(
        "train checkpoint=inf", "checkpoint=inf: must be at least 0 and finite"
    ),
    "huge seed": Wrong("train seed=99999999999999999999", "seed=99999999999999999999"),
    "warm-up and decay above 1": Wrong("train train.warmup=0.7 train.decay=0.7", "train.decay=0.7"),
    "prefixes that fall": Wrong("train sae=matryoshka sae.prefixes=[64,32,1024]", "must rise"),
    "shares of prefixes above 1": Wrong("train sae=matryoshka sae.prefix_shares=[0.5,2]", "sae.prefix_shares="),
    "budgets in words": Wrong("train sae=hierarchical sae.budgets=few", "give all, powers or numbers"),
    "unknown device": Wrong("train device=tpu", "device=tpu: choose one of"),
    "unknown cache": Wrong("train cache=ram", "cache=ram"),
    "unknown experiment": Wrong("sweep experiment=demoo", "did you mean demo?"),
    "a list in a single run": Wrong("train sae.k=4,8", "sae.k"),
    "a broken list": Wrong("sweep 'sae.k=4,'", "sae.k=4,"),
    "interpolation of nothing": Wrong("train 'sae.k=${nothing.here}'", "nothing.here"),
    "a target instead of a value": Wrong("train +sae._target_=os.system", "sae._target_: there is no such key"),
    "no config folder": Wrong("train --config-dir nowhere", "--config-dir=nowhere"),
    "broken YAML of one's own": Wrong(
        "train sae=mine --config-dir own", "mine.yaml", put("own/sae/mine.yaml", "k: [1, 2")
    ),
    "YAML of one's own in Latin-1": Wrong(
        "train sae=mine --config-dir own",
        "sae=mine: cannot be composed",
        put("own/sae/mine.yaml", "name: é".encode("latin-1")),
    ),
    "an experiment without claims": Wrong("claims outputs=outputs", "lists no claims"),
    "evaluation of nothing trained": Wrong("evaluate {same} seed=8", "not trained yet"),
    "a cache that streams": Wrong("cache cache=stream", "cache=stream"),
}
ALIKE = {  # caught by what catches one of the others, so `make test` leaves them out
    "no such data": Wrong("train data=wikitext", "the options are"),
    "no value": Wrong("train sae.k=", "sae.k"),
    "a fraction for a whole number": Wrong("train sae.k=2.5", "sae.k"),
    "a map for a number": Wrong("train sae.k={a:1}", "sae.k"),
    "k of 0": Wrong("train sae.k=0", "sae.k=0: must be at least 1"),
    "negative k": Wrong("train sae.k=-4", "sae.k=-4: must be at least 1"),
    "negative d_sae": Wrong("train sae.d_sae=-1", "sae.d_sae=-1: must be at least 1"),
    "infinite rate": Wrong("train train.lr=inf", "train.lr=inf"),
    "NaN for a share": Wrong("train train.warmup=nan", "train.warmup=nan"),
    "NaN for a weight": Wrong("train sae.aux_weight=nan", "sae.aux_weight=nan"),
    "NaN for a penalty": Wrong("train sae=relu sae.l1=nan", "sae.l1=nan"),
    "infinite outliers": Wrong("train data.outlier_norm=nan", "data.outlier_norm=nan"),
    "NaN between checkpoints": Wrong("train checkpoint=nan", "checkpoint=nan"),
    "batch larger than its window": Wrong("train train.batch_size=900000", "train.window_tokens="),
    "empty prefixes": Wrong("train sae=matryoshka sae.prefixes=[]", "must rise"),
    "NaN among shares": Wrong("train sae=matryoshka sae.prefix_shares=[nan,1]", "sae.prefix_shares="),
    "budgets that are no ASCII digits": Wrong(
        "train sae=hierarchical \"sae.budgets='²'\"", "give all, powers or numbers"
    ),
    "weights that are NaN": Wrong("train sae=hierarchical sae.weights=nan", "sae.weights=nan"),
    "unknown rule": Wrong("train evaluate.rules=[enrgy]", "did you mean energy?"),
    "size above 1": Wrong("train evaluate.sizes=[1.5]", "evaluate.sizes=[1.5]"),
    "size of NaN": Wrong("train evaluate.sizes=[nan]", "evaluate.sizes=[nan]"),
    "device of no number": Wrong("train device=cuda:x", "device=cuda:x"),
    "unknown tracker": Wrong("train tracker=wandbb", "did you mean wandb?"),
    "unknown engine": Wrong("sweep engine=slurmm", "engine=slurmm"),
    "brackets left open": Wrong("sweep 'sae.prefixes=[1,'", "sae.prefixes=[1,"),
}
COMMAND_LINE = {
    "unknown command": Wrong("trian", "trian"),
    "unknown option": Wrong("tables --fast", "--fast"),
    "a missing argument": Wrong("prune", "argument 'run'"),
    "a number in words": Wrong("prune {run} --keep many", "--keep"),
    "keeping nothing": Wrong("prune {run} --keep 0", "--keep=0"),
    "keeping more than there is": Wrong("prune {run} --keep 999999", "--keep=999999"),
    "an order of no meaning": Wrong("prune {run} --keep 4 --order both", "--order=both"),
    "a rule of no meaning": Wrong("prune {run} --keep 4 --rule best", "--rule=best"),
    "pruning into something else": Wrong("prune {run} --keep 4 --into text.txt", "--into=text.txt"),
    "pruning of no run": Wrong("prune text.txt --keep 4", "text.txt"),
    "a threshold of an SAE without": Wrong("calibrate {run}", "no global threshold"),
    "no limit to choose by": Wrong("choose {run}", "name at least one limit"),
    "a limit that nothing meets": Wrong("choose {run} --fvu 0.000001", "--fvu=1e-06"),
    "choosing by NaN": Wrong("choose {run} --fvu nan", "--fvu=nan"),
    "L0s in words": Wrong("reach --l0 few", "--l0=few"),
    "a tolerance above 1": Wrong("reach --tolerance 2 outputs=outputs", "--tolerance=2"),
    "too few samples": Wrong("laws outputs --replicates 3", "--replicates=3"),
    "tables of no folder": Wrong("tables nowhere", "nowhere"),
    "figures without tables": Wrong("figures outputs", "saebench tables"),
    "verifying no folder": Wrong("verify nowhere", "nowhere"),
    "contexts of no run": Wrong("interpret nowhere", "nowhere"),
    "a view of no meaning": Wrong("interpret {run} --views half", "--views=half"),
    "a prefix in no ASCII digits": Wrong("interpret {run} --views prefix:²", "--views=prefix:²"),
    "a score of no meaning": Wrong("interpret {run} --score beauty", "--score=beauty"),
    "pages of no contexts": Wrong("browse {run}", "saebench interpret"),
}
DATA = {
    "no such file": Wrong(TEXT.format("nowhere.txt"), "data.path=nowhere.txt: no such file"),
    "a file of another kind": Wrong(TEXT.format("mine.pdf"), "data.path=mine.pdf: must end in", put("mine.pdf", "x")),
    "an empty folder": Wrong(TEXT.format("empty"), "data.path=empty", lambda folder: (folder / "empty").mkdir()),
    "an empty file": Wrong(TEXT.format("a.txt"), "holds no text", put("a.txt", "")),
    "nothing but blank lines": Wrong(TEXT.format("a.txt"), "holds no text", put("a.txt", "\n \n\t\n" * 50)),
    "Latin-1": Wrong(TEXT.format("a.txt"), "line 2: not UTF-8", put("a.txt", b"good\ncaf\xe9\n")),
    "UTF-16": Wrong(TEXT.format("a.txt"), "line 1: not UTF-8", put("a.txt", "hello".encode("utf-16"))),
    "a gigantic line of text": Wrong(TEXT.format("a.txt"), "line 1", large("a.txt", 1 << 30, b"x")),
    "a gigantic line of JSON": Wrong(TEXT.format("a.jsonl"), "line 1", large("a.jsonl", 1 << 30, b'{"text": "')),
    "too little text": Wrong(TEXT.format("a.txt"), "eval_tokens=64", put("a.txt", "short\n\nshorter\n")),
    "JSON of no objects": Wrong(TEXT.format("a.jsonl"), "not a JSON object", put("a.jsonl", "[1, 2]\n")),
    "JSON cut off": Wrong(TEXT.format("a.jsonl"), "a.jsonl, line 2: not JSON", put("a.jsonl", '{"text": "a"}\n{"te')),
    "JSON of too deep a nest": Wrong(TEXT.format("a.jsonl"), "a.jsonl, line 1: not JSON", put("a.jsonl", DEEP)),
    "JSON of too long a number": Wrong(
        TEXT.format("a.jsonl"), "a.jsonl, line 1: not JSON", put("a.jsonl", '{"text": ' + "9" * 5000 + "}")
    ),
    "JSON without the column": Wrong(TEXT.format("a.jsonl"), "no column text", put("a.jsonl", '{"body": "a"}\n')),
    "a number in the column": Wrong(TEXT.format("a.jsonl"), "holds int, not text", put("a.jsonl", '{"text": 1}\n')),
    "half a surrogate pair": Wrong(TEXT.format("a.jsonl"), "UTF-8", put("a.jsonl", '{"text": "\\ud800"}\n')),
    "Parquet that is none": Wrong(TEXT.format("a.parquet"), "Parquet", put("a.parquet", "PAR1 but no")),
    "Parquet without the column": Wrong(TEXT.format("a.parquet"), "no column text", parquet("a.parquet", body=["a"])),
    "Parquet of numbers": Wrong(TEXT.format("a.parquet"), "holds int, not text", parquet("a.parquet", text=[1])),
    "a link to itself": Wrong(TEXT.format("loop.txt"), "data.path=loop.txt", link("loop.txt", "loop.txt")),
    "a link to nothing among files": Wrong(TEXT.format("folder"), "gone.txt", link("folder/gone.txt", "nowhere")),
    "a cycle of folders without text": Wrong(TEXT.format("folder"), "data.path=folder", link("folder/self", ".")),
    "a name with a line break": Wrong(TEXT.format("\"'a\nb.txt'\""), "data.path=a b.txt: no such file"),
    "a name of two thousand letters": Wrong(TEXT.format("n" * 2000), "data.path=nnn"),
    "a device as text": Wrong(TEXT.format("/dev/zero"), "data.path=/dev/zero"),
    "held-out text that is missing": Wrong(
        TEXT.format("text.txt") + " data.heldout_path=no.txt", "data.heldout_path=no"
    ),
    "blocks longer than the model": Wrong(
        "train data.seq_len=9000 data.eval_tokens=9000 data.shard_tokens=9000", "data.seq_len=9000: tiny-gpt2 has 256"
    ),
    "blocks of one token": Wrong("train data.seq_len=1", "data.seq_len=1: must be at least 2"),
    "fewer tokens than a block": Wrong("train data.n_tokens=8", "data.n_tokens=8"),
}
MODELS = {
    "no such folder": Wrong("train model=local model.layer=0 model.path=./nowhere", "there is no folder"),
    "a file for a folder": Wrong("train model=local model.layer=0 model.path=./text.txt", "there is no folder"),
    "a hub id of no form": Wrong("train model=local model.layer=0 model.path=a/b/c", "model.path=a/b/c"),
    "a layer too many": Wrong("train model.layer=99", "has layers 0 to 3"),
    "a revision of a folder": Wrong(MODEL + " model.revision=main", "model.revision=main"),
    "no config": Wrong(MODEL, "no config.json", remove("model/config.json")),
    "a config that is no JSON": Wrong(MODEL, "not valid JSON", put("model/config.json", "{")),
    "a config that is a list": Wrong(MODEL, "config.json", put("model/config.json", "[]")),
    "a config too deep": Wrong(MODEL, "not valid JSON", put("model/config.json", DEEP)),
    "a config of no text": Wrong(MODEL, "not valid JSON", put("model/config.json", b"\xff\xfe\x00")),
    "a model of another kind": Wrong(MODEL, "its model_type is bert", model_json(model_type="bert")),
    "a model with code of its own": Wrong(
        MODEL, "model_type", model_json(model_type="x", auto_map={"AutoConfig": "x.X"})
    ),
    "layers in words": Wrong(MODEL, "n_layer", model_json(n_layer="four")),
    "more layers than weights": Wrong(MODEL, "model.path=model", model_json(n_layer=5)),
    "a million layers": Wrong(MODEL, "model.path=model", model_json(n_layer=1_000_000)),
    "a width that the weights lack": Wrong(MODEL, "model.path=model", model_json(n_embd=256)),
    "a vocabulary of a trillion": Wrong(MODEL, "model.path=model", model_json(vocab_size=10**12)),
    "a vocabulary smaller than the tokenizer's": Wrong(MODEL, "model.path=model", model_json(vocab_size=100)),
    "heads that do not divide": Wrong(MODEL, "model.path=model", model_json(n_head=3)),
    "no weights": Wrong(MODEL, "no *.safetensors", remove("model/model.safetensors")),
    "pickled weights": Wrong(MODEL, "no *.safetensors", pickled),
    "weights of another model": Wrong(MODEL, "model.path=model", other_weights),
    "weights cut off": Wrong(
        MODEL, "model.path=model", lambda folder: os.truncate(folder / "model" / "model.safetensors", 9999)
    ),
    "weights that are text": Wrong(MODEL, "model.path=model", put("model/model.safetensors", "hello")),
    "a header of a terabyte": Wrong(MODEL, "model.path=model", put("model/model.safetensors", b"\xff" * 7 + b"\x00{}")),
    "no tokenizer": Wrong(MODEL, "no tokenizer.json", remove("model/tokenizer.json")),
    "a broken tokenizer": Wrong(MODEL, "model.path=model", put("model/tokenizer.json", "{")),
    "a tokenizer of another form": Wrong(MODEL, "model.path=model", put("model/tokenizer.json", '{"model": 3}')),
    "a tokenizer without BOS": Wrong(MODEL, "has no BOS token; use data.bos=none", without_bos),
    "a link to itself as a model": Wrong(
        "train model=local model.layer=0 model.path=./loop", "model.path=./loop", link("loop", "loop")
    ),
}
RUNS = {
    "outputs that are a file": Wrong("train outputs=outputs", "outputs=outputs", file_as_outputs),
    "outputs nobody may write": Wrong("train outputs=/proc/none", "outputs: cannot write /proc/none"),
    "outputs without a name": Wrong("train outputs=", "outputs"),
    "outputs linked to themselves": Wrong("train outputs=loop", "outputs: cannot write loop", link("loop", "loop")),
    "a run without a config": Wrong("tables outputs", "config.yaml", in_run("config.yaml", None)),
    "a config that is no YAML": Wrong("tables outputs", "config.yaml", in_run("config.yaml", "a: [1")),
    "a config that is a list": Wrong("tables outputs", "config.yaml", in_run("config.yaml", "- 1")),
    "a config without an SAE": Wrong("tables outputs", "config.yaml", in_run("config.yaml", "seed: 1")),
    "a config of bytes": Wrong("tables outputs", "config.yaml", in_run("config.yaml", b"\xff\xfe")),
    "a config that makes objects": Wrong(
        "tables outputs", "config.yaml", in_run("config.yaml", "!!python/object/apply:os.system ['touch owned']")
    ),
    "a config that grows": Wrong(
        "tables outputs",
        "config.yaml",
        in_run(
            "config.yaml",
            "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9 if i else ['x'])}]" for i in range(30)),
        ),
    ),
    "a config too deep": Wrong("tables outputs", "config.yaml", in_run("config.yaml", DEEP)),
    "metrics of nothing": Wrong("tables outputs", "metrics.csv", in_run("metrics.csv", "")),
    "metrics of bytes": Wrong("tables outputs", "metrics.csv", in_run("metrics.csv", b"run,\xff\n")),
    "metrics of another version": Wrong("tables outputs", "metrics.csv", in_metrics("fvu", "fuv")),
    "metrics with words": Wrong("tables outputs", "metrics.csv", in_run("metrics.csv", "run,fvu\na,much\n")),
    "metrics cut off": Wrong("tables outputs", "metrics.csv", cut("metrics.csv", 900)),
    "latents without energy": Wrong("tables outputs", "latents.csv", in_run("latents.csv", "latent\n0\n")),
    "no curves": Wrong("tables outputs", "train.csv", in_run("train.csv", None)),
    "an evaluation of nothing": Wrong("tables outputs", "evaluation.json", in_run("evaluation.json", "3")),
    "choosing in broken metrics": Wrong("choose {run} --fvu 1", "metrics.csv", in_run("metrics.csv", "a\nb\n")),
    "a record that is no JSON": Wrong("train {same}", "done.json", in_run("done.json", "{")),
    "a record that is a list": Wrong("laws outputs", "done.json", in_run("done.json", "[]")),
    "no weights of an SAE": Wrong("prune {run} --keep 4", "sae.safetensors", in_run("sae.safetensors", None)),
    "weights of an SAE cut off": Wrong("prune {run} --keep 4", "sae.safetensors", cut("sae.safetensors", 5000)),
    "weights of another SAE": Wrong("prune {run} --keep 4", "sae.safetensors", foreign_tensors),
    "an SAE too large for its file": Wrong("prune {run} --keep 4", "sae.json", sae_json(config__d_sae=10**12)),
    "an SAE too wide for its file": Wrong("prune {run} --keep 4", "sae.json", sae_json(d_in=10**12)),
    "an SAE of negative size": Wrong("prune {run} --keep 4", "sae.json", sae_json(config__d_sae=-1)),
    "an SAE of a size in words": Wrong("prune {run} --keep 4", "sae.json", sae_json(config__d_sae="64")),
    "an SAE of no size": Wrong("prune {run} --keep 4", "sae.json", sae_json(d_in=None)),
    "an SAE of NaN": Wrong("prune {run} --keep 4", "sae.json", sae_json(config__aux_weight=float("nan"))),
    "an unknown SAE": Wrong("prune {run} --keep 4", "unknown variant", sae_json(config__name="../../etc")),
    "an SAE whose name is a list": Wrong("prune {run} --keep 4", "sae.json", sae_json(config__name=[])),
    "an SAE without a config": Wrong("prune {run} --keep 4", "sae.json", in_run("sae.json", "{}")),
    "an SAE that is a number": Wrong("prune {run} --keep 4", "sae.json", in_run("sae.json", "3")),
    "an SAE too deep": Wrong("prune {run} --keep 4", "sae.json", in_run("sae.json", DEEP)),
    "a run of another version": Wrong(
        "interpret {run}", "config.yaml", in_run("config.yaml", "model: {colour: red}\nsae: {name: topk}\n")
    ),
    "a manifest of another version": Wrong("train {same} seed=9", "done.json", other_format),
    "a shard of half its length": Wrong("train {same} seed=9", "shard-00000.safetensors", torn_shard),
    "a flipped token": Wrong("train {same} data.stats_tokens=4096", "train-00000.safetensors", torn_tokens),
    "statistics of another form": Wrong("train {same} seed=9", "stats.json", torn_stats),
    "damage that verify finds": Wrong("verify outputs", "damaged", cut("sae.safetensors", 5000)),
}
TABLES = {
    "config": CONFIG,
    "config, alike": ALIKE,
    "command line": COMMAND_LINE,
    "data": DATA,
    "models": MODELS,
    "runs": RUNS,
}
WRONG = {f"{table}: {name}": wrong for table, found in TABLES.items() for name, wrong in found.items()}
