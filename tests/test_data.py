"""From text to blocks: layouts by hand, the split, the numbering, readers, errors, and what the key depends on."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from saebench import data, pythondocs, textfiles
from saebench.checks import InputError
from saebench.config import DataConfig
from saebench.data import TokenStore, token_inputs, tokenise

WORDS = [f"w{i}" for i in range(300)]
BOS = 0
VOCABULARY = {word: i for i, word in enumerate(["<bos>", "<unk>", *WORDS])}


def make_tokenizer(bos: str | None = "<bos>", longest: int = 4) -> PreTrainedTokenizerFast:
    """One token per word; `longest` is the model's context, which must not matter."""
    words = Tokenizer(WordLevel(VOCABULARY, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token=bos, unk_token="<unk>", model_max_length=longest)


TOKENIZER = make_tokenizer()


def config(path: Path | str | None, **changes: Any) -> DataConfig:
    cfg = DataConfig(
        name="test",
        source="text",
        path=str(path),
        heldout_path=None,
        subset=None,
        split="train",
        text_column="text",
        n_tokens=12,
        eval_tokens=4,
        seq_len=4,
        bos="none",
        seed=0,
        dtype="float32",
        stats_tokens=4,
        outlier_norm=4.0,
        shard_tokens=4,
    )
    return replace(cfg, **changes)


def run(cfg: DataConfig, outputs: Path, tokenizer: PreTrainedTokenizerFast = TOKENIZER) -> TokenStore:
    return tokenise(cfg, tokenizer, frozenset(tokenizer.all_special_ids), "tiny", outputs)


def everything(store: TokenStore, split: str) -> data.Blocks:
    return store.blocks(split, range(store.n_blocks(split)))


def write_lines(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))
    return path


def numbered_words(first: int, n: int) -> str:
    return " ".join(WORDS[first : first + n])


def many(n: int = 20, words: int = 5) -> list[str]:
    return [numbered_words(i * words, words) for i in range(n)]


def words_of(store: TokenStore, split: str) -> dict[int, list[str]]:
    """The words of each document number, BOS left out."""
    found: dict[int, list[str]] = {}
    blocks = everything(store, split)
    names = {i: word for word, i in VOCABULARY.items()}
    for token, document in zip(blocks.tokens.flatten().tolist(), blocks.documents.flatten().tolist(), strict=True):
        found.setdefault(document, []).extend([] if token == BOS else [names[token]])
    return found


# --- layouts --------------------------------------------------------------------------------------

a, b, c, d, e, f, g, h, i, j = range(2, 12)  # the tokens of w0, w1, ...
LAYOUTS = {
    # documents: held-out w0 w1 w2 w3 (number 0), then w4 w5 w6 w7 w8 (1), w9 (2), w9 w8 (3), w0 w1 w2 (4)
    "none": ([[e, f, g, h], [i, j, j, i], [a, b, c, e]], [[1, 1, 1, 1], [1, 2, 3, 3], [4, 4, 4, 5]]),
    "document": ([[0, e, f, g], [h, i, 0, j], [0, j, i, 0]], [[1, 1, 1, 1], [1, 1, 2, 2], [3, 3, 3, 4]]),
    "block": ([[0, e, f, g], [0, h, i, 0], [0, j, 0, j]], [[1, 1, 1, 1], [1, 1, 1, 2], [2, 2, 3, 3]]),
}


@pytest.fixture
def in_file_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textfiles, "shuffled", lambda stream, seed: stream)


@pytest.mark.usefixtures("in_file_order")
@pytest.mark.parametrize("bos", LAYOUTS)
def test_layout_by_hand(tmp_path: Path, bos: str) -> None:
    texts = ["w0 w1 w2 w3", "w4 w5 w6 w7 w8", "w9", "w9 w8", "w0 w1 w2", "w4"]
    store = run(config(write_lines(tmp_path / "t.jsonl", texts), bos=bos), tmp_path)
    tokens, documents = everything(store, "train")
    assert (tokens.tolist(), documents.tolist()) == LAYOUTS[bos]
    heldout = [[a, b, c, d]] if bos == "none" else [[BOS, a, b, c]]
    assert everything(store, "heldout").tokens.tolist() == heldout
    assert everything(store, "heldout").documents.tolist() == [[0, 0, 0, 0]]


@pytest.mark.usefixtures("in_file_order")
def test_block_that_begins_with_a_document_has_one_bos(tmp_path: Path) -> None:
    texts = ["w0 w1 w2", "w3 w4 w5", "w6 w7 w8", "w9 w0 w1"]
    store = run(config(write_lines(tmp_path / "t.jsonl", texts), bos="block"), tmp_path)
    assert everything(store, "train").tokens.tolist() == [[0, d, e, f], [0, g, h, i], [0, j, a, b]]


# --- split, order, numbers ------------------------------------------------------------------------

document_texts = st.lists(st.sampled_from(WORDS[:6]), min_size=1, max_size=9).map(" ".join)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(document_texts, min_size=2, max_size=25), st.sampled_from(["none", "document", "block"]), st.integers(0, 3)
)
def test_split_is_disjoint_and_tokens_know_their_document(texts: list[str], bos: str, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_lines(Path(folder) / "t.jsonl", texts)
        cfg = config(path, bos=bos, seed=seed, n_tokens=8)
        order = list(textfiles.corpus(cfg))
        assert Counter(order) == Counter(texts)
        try:
            store = run(cfg, Path(folder))
        except InputError as error:
            assert "are needed and the text gives" in str(error)  # noqa: PT017
            return
        heldout, train = words_of(store, "heldout"), words_of(store, "train")
        n_heldout = store.info["splits"]["heldout"]["documents"]
        kept = order[:n_heldout]
        fresh = [text for text in order[n_heldout:] if text not in kept]
        numbering = dict(enumerate(kept + fresh))
        assert list(heldout) == list(range(n_heldout))
        assert list(train) == list(range(n_heldout, n_heldout + store.info["splits"]["train"]["documents"]))
        for found in (heldout, train):
            for number, words in found.items():
                whole = numbering[number].split()
                assert words == (whole[: len(words)] if number == max(found) else whole)


@pytest.mark.usefixtures("in_file_order")
def test_duplicates_of_held_out_documents_are_skipped_and_counted(tmp_path: Path) -> None:
    texts = ["w0 w1 w2 w3"] * 5 + many()
    heldout = write_lines(tmp_path / "h.jsonl", ["w0 w1 w2 w3"])
    cfg = config(write_lines(tmp_path / "t.jsonl", texts), heldout_path=str(heldout), n_tokens=100)
    store = run(cfg, tmp_path)
    assert store.info["duplicates_skipped"] == 5
    assert store.info["splits"]["train"] == {"blocks": 25, "tokens": 100, "shards": [25], "documents": 20}
    assert ["w0", "w1", "w2", "w3"] not in words_of(store, "train").values()


def test_same_inputs_same_tokens_another_seed_another_order(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", many(60))
    first, again = (run(config(path, n_tokens=200), tmp_path / out) for out in ("one", "two"))
    other = run(config(path, n_tokens=200, seed=1), tmp_path / "one")
    assert first.key == again.key != other.key
    assert torch.equal(everything(first, "train").tokens, everything(again, "train").tokens)
    assert not torch.equal(everything(first, "train").tokens, everything(other, "train").tokens)


@pytest.mark.parametrize(("documents", "chars"), [(7, 10**9), (10**9, 20)])
def test_shuffle_buffer_is_bounded_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, documents: int, chars: int
) -> None:
    monkeypatch.setattr(textfiles, "BUFFER", documents)
    monkeypatch.setattr(textfiles, "BUFFER_CHARS", chars)
    taken = []

    def stream() -> Iterator[str]:
        for number in range(100):
            taken.append(number)
            yield f"{number:03d}"

    out = []
    for text in textfiles.shuffled(stream(), 0):
        out.append(int(text))
        assert len(taken) - len(out) <= 7
    assert out != sorted(out)
    assert sorted(out) == list(range(100))


def test_shuffle_is_an_even_permutation() -> None:
    first = Counter(next(textfiles.shuffled(iter("abcd"), seed)) for seed in range(2000))
    assert all(abs(n - 500) < 100 for n in first.values())
    assert len(first) == 4


def test_batch_and_shard_sizes_do_not_change_the_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(write_lines(tmp_path / "t.jsonl", many(40)), n_tokens=150, bos="block")
    whole = everything(run(cfg, tmp_path / "one"), "train")
    monkeypatch.setattr(data, "BATCH_CHARS", 30)
    monkeypatch.setattr(data, "SHARD_TOKENS", 45)
    store = run(cfg, tmp_path / "two")
    assert store.info["splits"]["train"]["shards"] == [11, 11, 11, 5]
    assert store.n_blocks("train") == 38
    parts = everything(store, "train")
    assert torch.equal(whole.tokens, parts.tokens)
    assert torch.equal(whole.documents, parts.documents)
    picked = [37, 0, 11, 0, 22]
    assert torch.equal(store.blocks("train", torch.tensor(picked)).tokens, whole.tokens[picked])
    assert torch.equal(store.blocks("train", picked).documents, whole.documents[picked])
    assert store.blocks("train", []).tokens.shape == (0, 4)
    for outside in (-1, 38):
        with pytest.raises(AssertionError, match="no such block"):
            store.blocks("train", [outside])


def test_batches_take_no_more_text_than_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "BATCH_CHARS", 6)
    rest = iter(["abcd", "efgh", "ijklmnop", "q"])
    batches = data.batches(rest)
    assert next(batches) == ["abcd", "efgh"]
    assert next(rest) == "ijklmnop"
    assert list(batches) == [["q"]]


def test_special_tokens(tmp_path: Path) -> None:
    store = run(config(write_lines(tmp_path / "t.jsonl", many())), tmp_path)
    assert store.special_ids == {0, 1}
    assert store.special(torch.tensor([[0, 2], [1, 3]])).tolist() == [[True, False], [True, False]]
    assert store.blocks("train", [0]).tokens.dtype == torch.int64


def test_no_warning_about_length_and_earlier_truncation_is_undone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = make_tokenizer()
    path = write_lines(tmp_path / "t.jsonl", many(words=15))
    untouched = token_inputs(config(path), tokenizer)
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    assert token_inputs(config(path), tokenizer) == untouched
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = run(config(path), tmp_path, tokenizer)
    assert len(words_of(store, "train")) == 1
    assert "longer" not in capfd.readouterr().err + caplog.text


# --- sources --------------------------------------------------------------------------------------


def read(path: Path, column: str = "text") -> list[str]:
    return list(textfiles.documents("data.path", str(path), column))


def test_txt_is_parted_by_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes("\ufeff\n\nein\nTäxt\n \t\n\n\nzwei\r\n\r\ndrei".encode())
    assert read(path) == ["ein\nTäxt", "zwei", "drei"]


def test_folder_is_read_in_the_order_of_names_and_below(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.txt").write_text("third")
    (tmp_path / "notes.md").write_text("not text")
    write_lines(tmp_path / "a.jsonl", ["first", " \n", "second"])
    pq.write_table(pa.table({"body": ["no"], "text": ["fourth"]}), tmp_path / "c.parquet")
    assert read(tmp_path) == ["first", "second", "third", "fourth"]


def test_files_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = '{"text": "w1"}\n{"text": "w2"}\nbroken\n'
    (tmp_path / "t.jsonl").write_text(broken)
    stream = textfiles.documents("data.path", str(tmp_path / "t.jsonl"), "text")
    assert [next(stream), next(stream)] == ["w1", "w2"]  # before line 3 is looked at
    monkeypatch.setattr(textfiles, "ROWS", 2)
    batches = []
    to_pylist = pa.RecordBatch.to_pylist

    class Spy(pq.ParquetFile):
        def iter_batches(self, *args: Any, **kwargs: Any) -> Iterator[pa.RecordBatch]:
            for batch in super().iter_batches(*args, **kwargs):
                batches.append(to_pylist(batch))
                yield batch

    monkeypatch.setattr(pq, "ParquetFile", Spy)
    pq.write_table(pa.table({"text": [f"w{n}" for n in range(7)]}), tmp_path / "t.parquet")
    stream = textfiles.documents("data.path", str(tmp_path / "t.parquet"), "text")
    assert next(stream) == "w0"
    assert batches == [[{"text": "w0"}, {"text": "w1"}]]
    assert [*stream] == [f"w{n}" for n in range(1, 7)]


def test_python_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pythondocs, "documents", many)
    textfiles.python_docs.cache_clear()
    store = run(config(None, source="python-docs"), tmp_path)
    textfiles.python_docs.cache_clear()
    assert store.info["text"] == pythondocs.fingerprint(many())
    assert " ".join(words_of(store, "heldout")[0]) in {text.rsplit(" ", 1)[0] for text in many()}


@pytest.mark.filterwarnings("default")  # the datasets library's own
def test_hub_streams_a_shuffled_data_set(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write_lines(tmp_path / "set" / "train.jsonl", many())
    cfg = config(tmp_path / "set", source="hub")
    texts = list(textfiles.corpus(cfg))
    assert texts != sorted(texts, key=many().index)
    assert sorted(texts) == sorted(many())
    assert texts == list(textfiles.corpus(cfg))
    assert texts != list(textfiles.corpus(replace(cfg, seed=1)))
    with pytest.raises(InputError, match=r"no column body \(there are: text\); choose one with data.text_column"):
        next(textfiles.corpus(replace(cfg, text_column="body")))
    with pytest.raises(InputError, match=r"data.path=.*set: cannot read it .*data.split"):
        next(textfiles.corpus(replace(cfg, split="missing")))


def test_hub_out_of_reach_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("Couldn't reach the hub\nlong story")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(InputError, match=r"data.path=a/b: .*Couldn't reach the hub\).*data=text data.path=") as caught:
        next(textfiles.corpus(config("a/b", source="hub")))
    assert "\n" not in str(caught.value)


# --- errors ---------------------------------------------------------------------------------------


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", b"fine\n\xff\n", "t.txt, line 2: not UTF-8 .*convert"),
        ("t.jsonl", b'{"text": "w"}\n\n{"text": \n', "t.jsonl, line 3: not JSON .*one JSON object a line"),
        ("t.jsonl", b"[1]\n", "t.jsonl, line 1: not a JSON object"),
        ("t.jsonl", b'{"body": "w"}\n', r"line 1: no column text \(there are: body\); .*data.text_column"),
        ("t.jsonl", b'{"text": null}\n', "line 1: text holds NoneType, not text"),
        ("t.jsonl", b'{"text": "\\ud800"}\n', "line 1: not text that UTF-8 can hold"),
        ("t.jsonl", b'{"text": "\xff"}\n', "line 1: not UTF-8"),
        ("t.parquet", b"PAR1 no", "t.parquet: not a readable Parquet file"),
        ("t.md", b"text", r"data.path=.*t.md: must end in .txt, .jsonl, .parquet"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(put(tmp_path / name, content))


def test_what_is_wrong_with_a_parquet_column_is_named(tmp_path: Path) -> None:
    raw = pa.Array.from_buffers(pa.utf8(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    pq.write_table(pa.table({"text": ["w", None], "n": [1, 2]}), tmp_path / "t.parquet")
    pq.write_table(pa.table({"text": raw}), tmp_path / "u.parquet")
    for file, column, message in [
        ("t", "body", r"t.parquet: no column body \(there are: text, n\)"),
        ("t", "text", "t.parquet, row 2: text holds NoneType"),
        ("t", "n", "t.parquet, row 1: n holds int"),
        ("u", "text", "u.parquet: not a readable Parquet file of UTF-8"),
    ]:
        with pytest.raises(InputError, match=message):
            read(tmp_path / f"{file}.parquet", column)


def test_missing_and_empty_places(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data.path=.*none: no such file or folder"):
        run(config(tmp_path / "none"), tmp_path / "out")
    with pytest.raises(InputError, match=r"data.path=.*: the folder holds no .txt, .jsonl, .parquet file"):
        run(config(tmp_path), tmp_path / "out")
    empty = put(tmp_path / "empty.txt", b" \n")
    with pytest.raises(InputError, match=r"data.path=.*empty.txt: holds no text; give a file with text in it"):
        run(config(empty), tmp_path / "out")
    full = write_lines(tmp_path / "t.jsonl", many())
    with pytest.raises(InputError, match=r"data.heldout_path=.*none: no such file"):
        run(config(full, heldout_path=str(tmp_path / "none")), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("tokens.json"))


def test_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "t.txt", b"w1")

    def locked(*args: Any) -> None:
        raise PermissionError(13, "Permission denied", "t.txt")

    monkeypatch.setattr(Path, "open", locked)
    for reader in (read, lambda path: textfiles.fingerprint("data.path", str(path))):
        with pytest.raises(InputError, match=r"data.path=.*t.txt: cannot be read .*Permission denied: 't.txt'"):
            reader(path)


def test_document_without_end_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textfiles, "LONGEST", 20)
    with pytest.raises(InputError, match=r"t.txt, line 2: document too long; part documents by blank lines"):
        read(put(tmp_path / "t.txt", b"0123456789\n" * 5))


def test_too_little_text_says_how_much_there_is(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", [numbered_words(0, 5), numbered_words(5, 5), numbered_words(10, 5)])
    training = (
        r"data.n_tokens=30: 32 train tokens are needed and the text gives 10 \(2 documents\); lower it to "
        r"data.n_tokens=8 or give more text; train.n_tokens=... may be larger, for more epochs$"
    )
    with pytest.raises(InputError, match=training):
        run(config(path, n_tokens=30), tmp_path)
    with pytest.raises(InputError, match=r"data.eval_tokens=16: 16 heldout .* gives 15 .*lower data.eval_tokens"):
        run(config(path, eval_tokens=16), tmp_path)
    with pytest.raises(InputError, match=r"gives 0 \(0 documents, 3 more are held out\); lower data.eval_tokens"):
        run(config(path, heldout_path=str(path), eval_tokens=12), tmp_path)
    alone = put(tmp_path / "t.txt", "\n".join(many()).encode())
    with pytest.raises(InputError, match=r"documents are never split, and blank lines part them in .txt files"):
        run(config(alone), tmp_path)


@pytest.mark.parametrize("bos", ["block", "document"])
def test_bos_must_exist_where_it_is_used(tmp_path: Path, bos: str) -> None:
    cfg = config(write_lines(tmp_path / "t.jsonl", many()), bos=bos)
    bare = make_tokenizer(bos=None)
    with pytest.raises(InputError, match=rf"data.bos={bos}: the tokenizer of tiny has no BOS token; use data.bos=none"):
        run(cfg, tmp_path, bare)
    assert run(replace(cfg, bos="none"), tmp_path, bare).n_blocks("train") == 3


# --- the key and the stage ------------------------------------------------------------------------


def test_key_depends_on_what_makes_tokens_and_nothing_else(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", many())
    cfg = config(path)
    inputs = token_inputs(cfg, TOKENIZER)
    for change in (
        {"dtype": "bfloat16"},
        {"stats_tokens": 8},
        {"outlier_norm": 2.0},
        {"shard_tokens": 8},
        {"name": "x"},
    ):
        assert token_inputs(replace(cfg, **change), TOKENIZER) == inputs
    (tmp_path / "moved").mkdir()
    assert token_inputs(config(path.rename(tmp_path / "moved" / path.name)), TOKENIZER) == inputs
    cfg = config(tmp_path / "moved" / path.name)
    other = str(write_lines(tmp_path / "h.jsonl", many()))
    for change in (
        {"n_tokens": 16},
        {"eval_tokens": 8},
        {"seq_len": 3},
        {"bos": "block"},
        {"seed": 1},
        {"text_column": "body"},
        {"heldout_path": other},
        {"source": "hub"},
    ):
        assert token_inputs(replace(cfg, **change), TOKENIZER) != inputs
    assert token_inputs(cfg, make_tokenizer(bos="w1")) != inputs
    write_lines(Path(str(cfg.path)), [*many()[:-1], many()[-1].upper()])  # as long as before
    assert token_inputs(cfg, TOKENIZER) != inputs


def test_fingerprint_sees_names_sizes_and_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textfiles, "EDGE", 4)
    seen = set()
    for name, content in [("a", b"0123456789"), ("b", b"0123456789"), ("a", b"01234x56789"), ("a", b"0123456780")]:
        path = put(tmp_path / f"{name}.txt", content)
        seen.add(textfiles.fingerprint("data.path", str(path)))
        seen.add(textfiles.fingerprint("data.path", str(tmp_path)))
    assert len(seen) == 7  # the folder of a.txt alone is the file a.txt
    assert textfiles.edges(put(tmp_path / "short", b"01234")) != textfiles.edges(put(tmp_path / "short", b"0123"))


def test_second_call_reads_what_the_first_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(write_lines(tmp_path / "t.jsonl", many()))
    store = run(cfg, tmp_path)
    assert store.path == tmp_path / "tokens" / store.key
    assert {p.name for p in store.path.iterdir()} == {
        "done.json",
        "tokens.json",
        "train-00000.safetensors",
        "heldout-00000.safetensors",
    }
    monkeypatch.setattr(data, "write", None)
    assert torch.equal(everything(run(cfg, tmp_path), "train").tokens, everything(store, "train").tokens)
    with pytest.raises(InputError, match="other special tokens; remove it"):
        tokenise(cfg, TOKENIZER, frozenset({0, 1, 7}), "tiny", tmp_path)


def test_interrupted_run_leaves_nothing_under_the_final_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(write_lines(tmp_path / "t.jsonl", many(40)), n_tokens=120)
    whole = everything(run(cfg, tmp_path / "whole"), "train")
    monkeypatch.setattr(data, "SHARD_TOKENS", 20)
    monkeypatch.setattr(data, "BATCH_CHARS", 1)
    add = data.Packer.add

    def interrupted(self: data.Packer, *args: Any) -> None:
        add(self, *args)
        if self.split == "train" and len(self.shards) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(data.Packer, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(cfg, tmp_path / "cut")
    assert list((tmp_path / "cut" / "tokens").iterdir()) == []
    assert torch.equal(everything(run(cfg, tmp_path / "cut"), "train").tokens, whole.tokens)
