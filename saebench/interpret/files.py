"""The files of one view of one run: written from what was collected, and read for a few latents at a time.

latents.parquet    a row for each of the d_sae latents
examples.parquet   a row for each context, by latent, kind (top, then sample) and falling activation
pool.safetensors   consecutive tokens with all their active latents (pool.py)
vocabulary.json    the text of every token id
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saebench.checks import InputError, require
from saebench.interpret.contexts import Context, LatentContexts, stratum_of
from saebench.interpret.negatives import Negatives, Silence
from saebench.store import read_json, write_text

if TYPE_CHECKING:
    from torch import Tensor

    from saebench.interpret.collect import Collected
    from saebench.interpret.logits import LatentLogits

LATENTS, EXAMPLES, POOL, VOCABULARY = "latents.parquet", "examples.parquet", "pool.safetensors", "vocabulary.json"
LATENT_ROWS = 2048  # latents in a row group of LATENTS
EXAMPLE_LATENTS = 64  # latents in a row group of EXAMPLES
INTS, FLOATS = pa.list_(pa.int32()), pa.list_(pa.float32())
LATENT_FIELDS = {
    "latent": pa.int32(),
    "frequency": pa.float64(),
    "n_active": pa.int64(),
    "mean_act": pa.float32(),
    "max_act": pa.float32(),
    "mean_rank": pa.float32(),
    "histogram": INTS,
    "promoted": INTS,
    "suppressed": INTS,
    "promoted_logits": FLOATS,
    "suppressed_logits": FLOATS,
}
EXAMPLE_FIELDS = {
    "latent": pa.int32(),
    "kind": pa.string(),
    "act": pa.float32(),
    "quantile": pa.float32(),
    "document": pa.int32(),
    "block": pa.int32(),
    "position": pa.int32(),
    "centre": pa.int16(),
    "tokens": INTS,
    "acts": FLOATS,
    "shown": pa.bool_(),
}


def write(folder: Path, collected: Collected, logits: LatentLogits, vocabulary: Sequence[str]) -> None:
    """Write all files of one view into `folder`, which exists; memory for EXAMPLE_LATENTS latents and one table of latents."""
    write_latents(folder / LATENTS, collected, logits)
    schema = pa.schema(list(EXAMPLE_FIELDS.items()))
    with pq.ParquetWriter(folder / EXAMPLES, schema, compression="zstd") as writer:
        for columns in example_groups(collected):
            writer.write_table(pa.table(columns, schema=schema))
    collected.pool.write(folder / POOL)
    write_text(folder / VOCABULARY, json.dumps(list(vocabulary), ensure_ascii=False) + "\n")


def vocabulary_of(tokenizer: Any, size: int) -> list[str]:
    """The text of every token id below `size` as it reads within a text; what is no token is empty.

    Each is decoded behind a letter, which is then taken off: alone, some tokenizers drop a token's leading space.
    """
    anchor = tokenizer.encode("a", add_special_tokens=False)[-1]
    letter = tokenizer.decode([anchor], clean_up_tokenization_spaces=False)
    pairs = [[anchor, i] for i in range(size)]
    texts = tokenizer.batch_decode(pairs, clean_up_tokenization_spaces=False)
    return [text.removeprefix(letter) for text in texts]


def write_latents(path: Path, collected: Collected, logits: LatentLogits) -> None:
    """Write LATENTS; the histogram's edges (of log2(act)) are in the schema's metadata as JSON."""
    from saebench.interpret.stats import EDGES

    stats, kept, d_sae = collected.stats, collected.kept.cpu().numpy(), len(collected.index)

    def whole(values: Tensor, empty: float = 0) -> np.ndarray:
        """Values [m, ...] of the kept latents among those of all latents: [d_sae, ...]."""
        mine = values.cpu().numpy()
        every = np.full((d_sae, *mine.shape[1:]), empty, dtype=mine.dtype)
        every[kept] = mine
        return every

    columns: dict[str, Any] = {
        "latent": np.arange(d_sae, dtype=np.int32),
        "frequency": whole(stats.n_active) / max(1, stats.n_tokens),
        "n_active": whole(stats.n_active),
        "mean_act": whole(stats.mean_act()),
        "max_act": whole(stats.largest),
        "mean_rank": whole(stats.mean_rank(), np.nan),
        "histogram": lists(whole(stats.histogram)),
    }
    columns |= {name: lists(tensor.cpu().numpy()) for name, tensor in logits._asdict().items()}
    metadata = {"histogram_edges": json.dumps(EDGES), "n_tokens": str(stats.n_tokens), "view": collected.view.name()}
    schema = pa.schema(list(LATENT_FIELDS.items()), metadata=metadata)
    arrays = [pa.array(columns[name]).cast(kind) for name, kind in LATENT_FIELDS.items()]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path, row_group_size=LATENT_ROWS, compression="zstd")


def lists(table: np.ndarray, lengths: np.ndarray | None = None) -> pa.Array:
    """The rows of a table [n, width] as lists, of their first `lengths` [n] values if given."""
    n, width = table.shape
    lengths = np.full(n, width) if lengths is None else lengths
    values = table[np.arange(width) < lengths[:, None]]  # [sum of lengths]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, values)


def example_groups(collected: Collected) -> Iterator[dict[str, Any]]:
    """The columns of EXAMPLES, EXAMPLE_LATENTS latents at a time, in order; latents without any context are left out."""
    for start in range(0, len(collected.kept), EXAMPLE_LATENTS):
        stop = min(len(collected.kept), start + EXAMPLE_LATENTS)
        columns = examples_of(collected, start, stop)
        if len(columns["latent"]) > 0:
            yield columns


def examples_of(collected: Collected, start: int, stop: int) -> dict[str, Any]:
    """The columns of EXAMPLES for the kept latents from `start` to `stop`."""
    import torch

    parts = [reservoir.kept(2 * start, 2 * stop) for reservoir in collected.contexts.values()]
    kind = np.repeat(np.arange(len(parts)), [len(part.rows) for part in parts])
    names = np.array(list(collected.contexts))
    rows, tokens, acts, documents, blocks, positions, centres = (
        torch.cat(column) for column in zip(*parts, strict=True)
    )
    act = acts.gather(1, centres.unsqueeze(1)).squeeze(1)  # [c]
    quantile = collected.stats.quantiles(rows // 2, act)
    latent = collected.kept.cpu()[rows // 2]
    order = np.lexsort((positions, blocks, -act, kind, latent))
    lengths = (tokens >= 0).sum(1).numpy()[order]
    columns = {"latent": latent, "act": act, "quantile": quantile, "document": documents, "block": blocks}
    columns |= {"position": positions, "centre": centres, "shown": rows % 2 == 0}
    arrays = {name: pa.array(column.numpy()[order]).cast(EXAMPLE_FIELDS[name]) for name, column in columns.items()}
    arrays["kind"] = pa.array(names[kind[order]])
    return arrays | {"tokens": lists(tokens.numpy()[order], lengths), "acts": lists(acts.numpy()[order], lengths)}


def read_rows(path: Path, latents: Sequence[int], columns: Sequence[str]) -> pa.Table:
    """Some columns of the rows of these latents, from LATENTS or EXAMPLES; only row groups that hold one of them are read.

    Raises InputError if the file is missing.
    """
    require(path.is_file(), f"{path}: missing; run `saebench interpret` on its run first")
    wanted = np.unique(np.asarray(latents, dtype=np.int64))
    with pq.ParquetFile(path) as file:
        place = file.schema_arrow.get_field_index("latent")
        bounds = [file.metadata.row_group(i).column(place).statistics for i in range(file.num_row_groups)]
        groups = [i for i, b in enumerate(bounds) if np.any((wanted >= b.min) & (wanted <= b.max))]
        table = file.read_row_groups(groups, columns=list(dict.fromkeys(["latent", *columns])))
    return table.filter(np.isin(table["latent"].to_numpy(), wanted))


def latent_contexts(folder: Path, latents: Sequence[int], negatives: int = 20, seed: int = 0) -> list[LatentContexts]:
    """What scores are given of each of these latents, in the order asked for, from a view's folder.

    A sampled context in the same block as one of the largest is left out, so that contexts differ. There may be fewer than
    `negatives` negatives for a latent that is seldom silent. A latent's own depend on `seed` and on it alone. Raises InputError
    for a missing file and a latent that is not there.
    """
    vocabulary, pool = read_vocabulary(folder), Negatives(folder / POOL)
    names = ("frequency", "max_act", "promoted", "suppressed")
    rows = {row["latent"]: row for row in read_rows(folder / LATENTS, latents, names).to_pylist()}
    missing = [latent for latent in latents if latent not in rows]
    require(not missing, f"latents={missing[:3]}: {folder} has no such latents; they are counted from 0")
    examples: dict[int, list[dict[str, Any]]] = {latent: [] for latent in rows}
    for example in read_rows(folder / EXAMPLES, latents, list(EXAMPLE_FIELDS)).to_pylist():
        examples[example["latent"]].append(example)

    def one(latent: int) -> LatentContexts:
        row, found = rows[latent], distinct(examples[latent])
        own = np.array([example["tokens"][example["centre"]] for example in examples[latent]], dtype=np.int64)
        shown, held = (tuple(context_of(e, vocabulary) for e in found if e["shown"] == side) for side in (True, False))
        silent = tuple(silence_of(pool, s, vocabulary) for s in pool.draw(latent, own, negatives, seed))
        frequency, promoted, suppressed = row["frequency"], row["promoted"], row["suppressed"]
        up, down = (tuple(vocabulary[i] for i in ids) for ids in (promoted, suppressed))
        stratum = stratum_of(frequency)
        return LatentContexts(latent, frequency, stratum, row["max_act"], shown, held, silent, up, down)

    return [one(latent) for latent in latents]


def distinct(examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The largest, and the sampled in other blocks of the same side."""
    blocks = {(e["shown"], e["block"]) for e in examples if e["kind"] == "top"}
    return [e for e in examples if e["kind"] == "top" or (e["shown"], e["block"]) not in blocks]


def context_of(example: dict[str, Any], vocabulary: list[str]) -> Context:
    """A row of EXAMPLES as scores see it."""
    texts = tuple(vocabulary[token] for token in example["tokens"])
    return Context(texts, tuple(example["acts"]), example["centre"], example["document"], example["quantile"])


def silence_of(pool: Negatives, window: Silence, vocabulary: list[str]) -> Context:
    """A window of the pool in which the latent is silent, as scores see it."""
    texts = tuple(vocabulary[token] for token in pool.tokens[window.first : window.stop].tolist())
    return Context(texts, (0.0,) * len(texts), window.centre - window.first, int(pool.documents[window.centre]))


def read_vocabulary(folder: Path) -> list[str]:
    """The text of every token id. Raises InputError if the file is missing."""
    path = folder / VOCABULARY
    if not path.is_file():
        raise InputError(f"{path}: missing; run `saebench interpret` on its run first")
    return read_json(path)
