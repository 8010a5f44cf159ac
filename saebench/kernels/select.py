"""The k largest of each row, exactly: bisection for the k-th largest key, held in registers, then compaction.

A key is a float's bits as an integer of the same order; NaN is above all, -0 equals 0. Long rows are first reduced to the
maxima of chunks: the k largest of a row lie in the k chunks whose maxima are largest, ties going to the lowest position.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from saebench.kernels import parts_of, power_of_two

CHUNK = 32
MAX_WIDTH = 16384  # keys that one program holds in registers
TILE = 4096  # activations that one program reduces to maxima


@triton.jit
def keys_of(values):
    """int32 keys in the order of float values, within the values' own number of bits; integers are keys already."""
    if values.dtype == tl.float32:
        bits = values.to(tl.int32, bitcast=True)
        keys = tl.where(values == 0.0, 0, bits ^ ((bits >> 31) & 0x7FFFFFFF))
        keys = tl.where(values != values, 0x7FFFFFFF, keys)
    elif values.dtype.is_floating():
        bits = values.to(tl.int16, bitcast=True).to(tl.int32)
        wide = values.to(tl.float32)
        keys = tl.where(wide == 0.0, 0, bits ^ ((bits >> 31) & 0x7FFF))
        keys = tl.where(wide != wide, 0x7FFF, keys)
    else:
        keys = values.to(tl.int32)
    return keys


@triton.jit
def kth_largest(keys, k, BITS: tl.constexpr):
    """A threshold that at least k keys reach and, unless exactly k do, the k-th largest key."""
    threshold = tl.where(tl.sum((keys >= 0).to(tl.int32), 0) >= k, 0, -(2 ** (BITS - 1)))
    reached = tl.sum((keys >= threshold).to(tl.int32), 0)
    step = 2 ** (BITS - 2)
    while (step > 0) & (reached != k):
        higher = threshold | step
        count = tl.sum((keys >= higher).to(tl.int32), 0)
        threshold = tl.where(count >= k, higher, threshold)
        reached = tl.where(count >= k, count, reached)
        step //= 2
    return threshold


@triton.jit
def store_largest(out, keys, positions, live, k, BITS: tl.constexpr):
    """Store the positions (rising) of the k largest of the live keys at out [k]; ties go to the lowest position."""
    keys = tl.where(live, keys, -(2 ** (BITS - 1)))  # below every key
    threshold = kth_largest(keys, k, BITS)
    above, equal = live & (keys > threshold), live & (keys == threshold)
    room = k - tl.sum(above.to(tl.int32), 0)
    taken = above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= room))
    place = tl.cumsum(taken.to(tl.int32), 0) - 1
    tl.store(out + place, positions, mask=taken)


@triton.jit
def select_rows_kernel(values, out, m, stride, k, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Program (row): the k largest of a whole row."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    live = cols < m
    keys = keys_of(tl.load(values + row * stride + cols, mask=live, other=0))
    store_largest(out + row * k, keys, cols, live, k, BITS)


@triton.jit
def select_in_chunks_kernel(
    acts, chunks, out, d, stride, k, BITS: tl.constexpr, CHUNK: tl.constexpr, BLOCK_K: tl.constexpr
):
    """Program (row): the k largest of the k chunks listed, rising, at chunks [k]."""
    row = tl.program_id(0).to(tl.int64)
    slots = tl.arange(0, BLOCK_K)
    first = tl.load(chunks + row * k + slots, mask=slots < k, other=0).to(tl.int32) * CHUNK
    cols = first[:, None] + tl.arange(0, CHUNK)[None, :]  # [BLOCK_K, CHUNK]
    live = (slots < k)[:, None] & (cols < d)
    keys = keys_of(tl.load(acts + row * stride + cols, mask=live, other=0))
    size: tl.constexpr = BLOCK_K * CHUNK
    flat = (tl.reshape(keys, [size]), tl.reshape(cols, [size]), tl.reshape(live, [size]))
    store_largest(out + row * k, flat[0], flat[1], flat[2], k, BITS)


@triton.jit
def chunk_maxima_kernel(acts, maxima, d, stride, chunks, BITS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """Program (row * tiles + tile): the largest key of each chunk of the tile; the last chunk of a row may be short."""
    tiles = tl.cdiv(chunks, BLOCK)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    chunk = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    cols = chunk[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]  # [BLOCK, CHUNK]
    keys = keys_of(tl.load(acts + row * stride + cols, mask=cols < d, other=0))
    keys = tl.where(cols < d, keys, -(2 ** (BITS - 1)))
    tl.store(maxima + row * chunks + chunk, tl.max(keys, 1), mask=chunk < chunks)


def key_bits(values: Tensor) -> int:
    """Bits of the keys of a float32, bfloat16 or float16 tensor, or of a tensor of keys."""
    return values.element_size() * 8


def options(width: int, constants: dict[str, int]) -> dict[str, Any]:
    """A kernel's constants and compiler options, for `width` keys a program: at most 16 a thread."""
    return constants | {"num_warps": min(32, max(1, width // 512)), "enable_fp_fusion": True}


def whole_options(m: int, bits: int) -> dict[str, Any]:
    """Those of select_rows_kernel for rows of m keys."""
    block = max(16, power_of_two(m))
    return options(block, {"BITS": bits, "BLOCK": block})


def chosen_options(k: int, chunk: int, bits: int) -> dict[str, Any]:
    """Those of select_in_chunks_kernel."""
    block = power_of_two(k)
    return options(block * chunk, {"BITS": bits, "CHUNK": chunk, "BLOCK_K": block})


def maxima_options(chunk: int, bits: int) -> dict[str, Any]:
    """Those of chunk_maxima_kernel, which holds no key for long and so takes twice as many a thread."""
    return options(TILE // 2, {"BITS": bits, "CHUNK": chunk, "BLOCK": max(1, TILE // chunk)})


def select_rows(values: Tensor, k: int) -> Tensor:
    """Positions of the k largest of each row of values [rows, m], rising: [rows, k] int64; ties go to the lowest position.

    values is float32, bfloat16, float16, or keys (int32, int16), with unit stride along m, 1 <= k <= m <= 16384; infinities are
    ordered as usual and NaN counts as the largest value.
    """
    rows, m = values.shape
    assert 1 <= k <= m <= MAX_WIDTH, f"k={k} of m={m}: k must lie in [1, m] and m be at most {MAX_WIDTH}"
    assert values.stride(1) == 1, "a row's values must lie side by side"
    out = torch.empty(rows, k, dtype=torch.int64, device=values.device)
    with torch.cuda.device_of(values):
        select_rows_kernel[rows,](values, out, m, values.stride(0), k, **whole_options(m, key_bits(values)))
    return out


def chunk_maxima(acts: Tensor, chunk: int = CHUNK) -> Tensor:
    """The largest key of each chunk (a power of two) of each row of acts [n, d]: [n, ceil(d / chunk)] int16 or int32."""
    (rows, d), bits = acts.shape, key_bits(acts)
    chunks, constants = parts_of(d, chunk), maxima_options(chunk, bits)
    maxima = torch.empty(rows, chunks, dtype=torch.int16 if bits == 16 else torch.int32, device=acts.device)
    with torch.cuda.device_of(acts):
        programs = rows * parts_of(chunks, constants["BLOCK"])
        chunk_maxima_kernel[programs,](acts, maxima, d, acts.stride(0), chunks, **constants)
    return maxima


def row_topk_indices(acts: Tensor, k: int, chunk: int = CHUNK) -> Tensor:
    """Positions of the k largest of each row of acts [n, d_sae], rising: [n, k] int64, as select_rows and for any d_sae.

    Rows too long for one program go by way of their chunks' maxima. Where k chunks are themselves too long for one program
    (k above 512 with chunks of 32) chunking does not help, and torch.topk selects; it breaks ties in an order of its own.
    """
    d_sae = acts.shape[1]
    if d_sae <= MAX_WIDTH:  # and beyond it k chunks that fit one program are fewer than all chunks
        return select_rows(acts, k)
    if power_of_two(k) * chunk > MAX_WIDTH:
        return acts.topk(k, dim=1, sorted=False).indices.sort(dim=1).values
    chunks = row_topk_indices(chunk_maxima(acts, chunk), k, chunk)  # [n, k]
    out, constants = torch.empty_like(chunks), chosen_options(k, chunk, key_bits(acts))
    with torch.cuda.device_of(acts):
        select_in_chunks_kernel[len(acts),](acts, chunks, out, d_sae, acts.stride(0), k, **constants)
    return out
