"""Text to blocks of tokens on disk: documents are split into held-out and training ones first, and only then cut.

    documents, shuffled --> the first held out, the rest for training --> encoded --> blocks [n, seq_len] in shards

Documents are numbered in their order of use, the held-out ones from 0 and the training ones on from there, so that a
number means one document. Every token keeps its document's number; a BOS put in has that of the document it introduces.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from saebench import textfiles
from saebench.checks import InputError, require
from saebench.config import DataConfig
from saebench.progress import Progress
from saebench.store import checked, key_of, read_json, stage, write_json, write_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    Encoded = Iterator[tuple[str, np.ndarray]]  # a document's text and its tokens [n] int32

NUMERICS = 1  # raise when the same inputs give other tokens
KEYED = ("source", "text_column", "n_tokens", "eval_tokens", "seq_len", "bos", "seed")  # and the text itself
BATCH_CHARS = 1 << 20  # characters tokenised at once
SHARD_TOKENS = 1 << 22


class Blocks(NamedTuple):
    """Blocks of tokens and the number of each token's document."""

    tokens: Tensor  # [n, seq_len] int64
    documents: Tensor  # [n, seq_len] int64


class TokenStore:
    """The tokens made by `tokenise`, read from their folder; opening costs one small file, shards are memory-mapped."""

    def __init__(self, path: Path, keep_special: bool = False) -> None:
        self.path, self.key, self.keep_special = path, path.name, keep_special
        self.info: dict[str, Any] = read_json(checked(path, "tokens.json"))
        self.seq_len: int = self.info["seq_len"]
        self.special_ids = frozenset[int](self.info["special_ids"])
        self.shards: dict[str, dict[str, Tensor]] = {}

    def n_blocks(self, split: str) -> int:
        """The number of blocks in `split`, which is train or heldout."""
        return self.info["splits"][split]["blocks"]

    def blocks(self, split: str, indices: Tensor | Sequence[int]) -> Blocks:
        """The blocks with these indices, in this order; reads no other rows. `indices` [n] lie in [0, n_blocks)."""
        index = torch.as_tensor(indices, dtype=torch.int64)  # [n]
        assert bool(((index >= 0) & (index < self.n_blocks(split))).all()), f"{split} has no such block"
        tokens, documents = torch.empty(2, len(index), self.seq_len, dtype=torch.int64)  # each [n, seq_len]
        rows = self.info["splits"][split]["shards"][0]  # in every shard but the last
        shard = index // rows  # [n]
        for number in shard.unique().tolist():
            here = shard == number  # [n]
            saved = self.shard(shard_name(split, number))
            tokens[here] = saved["tokens"][index[here] - number * rows].long()
            documents[here] = saved["documents"][index[here] - number * rows].long()
        return Blocks(tokens, documents)

    def shard(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file, mapped into memory the first time."""
        if name not in self.shards:
            self.shards[name] = load_file(checked(self.path, name))
        return self.shards[name]

    def special(self, tokens: Tensor) -> Tensor:
        """True where a token is special (BOS among them); same shape and device as `tokens`."""
        return torch.isin(tokens, torch.tensor(sorted(self.special_ids), dtype=torch.int64, device=tokens.device))

    def excluded(self, tokens: Tensor) -> Tensor:
        """True where a token is neither trained nor measured on: the special ones unless data.special=keep."""
        return torch.zeros_like(tokens, dtype=torch.bool) if self.keep_special else self.special(tokens)


def tokenise(
    cfg: DataConfig, tokenizer: PreTrainedTokenizerFast, special: frozenset[int], model_name: str, outputs: Path
) -> TokenStore:
    """Tokenise the text of `cfg` into `outputs`/tokens/<key> unless it is there, and open it.

    Raises InputError if the text is missing, unreadable or too short, or if data.bos needs a BOS token it lacks.
    """
    lacks = cfg.bos != "none" and tokenizer.bos_token_id is None
    require(not lacks, f"data.bos={cfg.bos}: the tokenizer of {model_name} has no BOS token; use data.bos=none")
    inputs = token_inputs(cfg, tokenizer)
    path = outputs / "tokens" / key_of(inputs)
    stage(path, inputs, lambda partial: write(partial, cfg, tokenizer, special, inputs))
    store = TokenStore(path, cfg.special == "keep")
    require(store.special_ids == special, f"{path}: made with other special tokens; remove it and run again")
    return store


def token_inputs(cfg: DataConfig, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """All that the tokens depend on: keys of `cfg`, text, tokenizer, NUMERICS. Raises InputError without text."""
    held = textfiles.fingerprint("data.heldout_path", cfg.heldout_path) if cfg.heldout_path else None
    keys = {key: getattr(cfg, key) for key in KEYED}
    return keys | {
        "text": textfiles.corpus_fingerprint(cfg),
        "heldout_text": held,
        "tokenizer": hashlib.sha256(plain(tokenizer).to_str().encode()).hexdigest(),
        "bos_id": tokenizer.bos_token_id,
        "special_ids": sorted(tokenizer.all_special_ids),
        "numerics": NUMERICS,
    }


def plain(tokenizer: PreTrainedTokenizerFast) -> Any:
    """The `tokenizers.Tokenizer` within, rid of the truncation and padding that an earlier call may have left in it."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return backend


def write(
    folder: Path, cfg: DataConfig, tokenizer: PreTrainedTokenizerFast, special: frozenset[int], inputs: dict[str, Any]
) -> None:
    """Fill `folder` with the shards of both splits and tokens.json."""
    train = encoded(textfiles.corpus(cfg), tokenizer)
    heldout = encoded(textfiles.heldout(cfg), tokenizer) if cfg.heldout_path else train
    packers = {split: Packer(folder, split, cfg, inputs["bos_id"]) for split in ("heldout", "train")}
    seen: set[str] = set()
    with Progress(sum(p.n_tokens for p in packers.values()), "tokens", "tokenising") as progress:
        n_heldout, _ = fill(packers["heldout"], noted(heldout, seen), 0, frozenset(), progress)
        n_train, duplicates = fill(packers["train"], train, n_heldout, seen, progress)
    counts = {"heldout": n_heldout, "train": n_train}
    splits = {split: packer.summary() | {"documents": counts[split]} for split, packer in packers.items()}
    record = {key: inputs[key] for key in ("seq_len", "bos", "bos_id", "tokenizer", "text", "heldout_text")}
    record |= {"special_ids": sorted(special), "duplicates_skipped": duplicates, "splits": splits}
    write_json(folder / "tokens.json", record)


def noted(documents: Encoded, seen: set[str]) -> Encoded:
    """The same documents, each entered in `seen` when it is taken."""
    for text, ids in documents:
        seen.add(text)
        yield text, ids


def fill(packer: Packer, documents: Encoded, first: int, skip: Set[str], progress: Progress) -> tuple[int, int]:
    """Add documents not in `skip`, numbered from `first`, until the packer is full; how many were added and skipped.

    Takes no document more than it needs. Raises InputError if the documents do not suffice.
    """
    added = skipped = 0
    for text, ids in documents:
        if text in skip:
            skipped += 1
            continue
        before = packer.placed
        packer.add(ids, first + added)
        progress.advance(packer.placed - before)
        added += 1
        if packer.full:
            return added, skipped
    raise InputError(too_little(packer, added, skipped))


def too_little(packer: Packer, added: int, skipped: int) -> str:
    """The message when the text ends before `packer` is full."""
    key, whole = packer.key, packer.placed // packer.seq_len * packer.seq_len
    found = f"{packer.n_tokens} {packer.split} tokens are needed and the text gives {packer.placed} ({added} documents"
    found += f", {skipped} more are held out)" if skipped else ")"
    lower = f"lower it to {key}={whole}" if whole else "lower data.eval_tokens=..."
    if packer.split == "heldout":
        lower = f"lower {key}=... below that"
    epochs = "; train.n_tokens=... may be larger, for more epochs" if packer.split == "train" else ""
    parted = "; documents are never split, and blank lines part them in .txt files" if added <= 1 else ""
    return f"{key}={packer.wanted}: {found}; {lower} or give more text{epochs}{parted}"


def encoded(documents: Iterator[str], tokenizer: PreTrainedTokenizerFast) -> Encoded:
    """Each document with its tokens [n] int32, none added; documents without a token are left out."""
    backend = plain(tokenizer)
    for batch in batches(documents):
        codes = backend.encode_batch_fast(batch, add_special_tokens=False)
        for document, code in zip(batch, codes, strict=True):
            if code.ids:
                yield document, np.array(code.ids, dtype=np.int32)


def batches(documents: Iterator[str]) -> Iterator[list[str]]:
    """Documents in lists of about BATCH_CHARS characters."""
    batch: list[str] = []
    chars = 0
    for document in documents:
        batch.append(document)
        chars += len(document)
        if chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


class Packer:
    """Lays the documents of one split end to end, cuts them into blocks and writes every full shard.

    data.bos=document puts one BOS before every document; block puts one at the start of every other block too; none puts
    nothing between documents.
    """

    def __init__(self, folder: Path, split: str, cfg: DataConfig, bos_id: int | None) -> None:
        self.key = "data.n_tokens" if split == "train" else "data.eval_tokens"
        self.wanted = cfg.n_tokens if split == "train" else cfg.eval_tokens
        self.folder, self.split, self.seq_len, self.rule = folder, split, cfg.seq_len, cfg.bos
        self.bos = np.array([] if bos_id is None else [bos_id], dtype=np.int32)  # [0 or 1]
        self.n_blocks = -(-self.wanted // cfg.seq_len)
        self.n_tokens = self.n_blocks * cfg.seq_len
        self.shards: list[int] = []  # rows in each
        self.placed = 0  # tokens
        self.open_shard()

    @property
    def full(self) -> bool:
        """Whether all blocks are written."""
        return self.placed == self.n_tokens

    def summary(self) -> dict[str, Any]:
        """What tokens.json says of this split."""
        return {"blocks": self.n_blocks, "tokens": self.n_tokens, "shards": self.shards}

    def open_shard(self) -> None:
        """Begin the next shard, of the rows that are left or as many as a shard holds."""
        rows = min(self.n_blocks - sum(self.shards), max(1, SHARD_TOKENS // self.seq_len))
        self.tokens = np.empty((rows, self.seq_len), dtype=np.int32)  # [rows, seq_len]
        self.documents = np.empty_like(self.tokens)  # [rows, seq_len]
        self.at = 0  # in the flattened shard

    def add(self, ids: np.ndarray, document: int) -> None:
        """Append a document of tokens [n]; what no longer fits is dropped."""
        if self.rule != "none":
            self.put(self.bos, document)
        while len(ids) and not self.full:
            if self.rule == "block" and self.at % self.seq_len == 0:
                self.put(self.bos, document)
            room = self.seq_len - self.at % self.seq_len
            self.put(ids[:room], document)
            ids = ids[room:]

    def put(self, ids: np.ndarray, document: int) -> None:
        """Write tokens that fit into the current block."""
        end = self.at + len(ids)
        self.tokens.reshape(-1)[self.at : end] = ids
        self.documents.reshape(-1)[self.at : end] = document
        self.placed += len(ids)
        self.at = end
        if end == self.tokens.size:
            name = shard_name(self.split, len(self.shards))
            arrays = {"tokens": self.tokens, "documents": self.documents}
            write_tensors(self.folder / name, {key: torch.from_numpy(array) for key, array in arrays.items()})
            self.shards.append(len(self.tokens))
            self.open_shard()


def shard_name(split: str, number: int) -> str:
    """The file name of a shard, counted from 0."""
    return f"{split}-{number:05d}.safetensors"
