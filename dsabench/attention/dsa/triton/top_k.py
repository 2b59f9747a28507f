"""Scores and exact top-k in one pass over the keys, with bounded scratch: never L x L, for any input.

    S[t] = the k highest I[t,s], start[t] <= s <= t, ties to the lowest s      I[t,s] = sum_j w[t,j] relu(q[t,j] . k[s])

Five kernels, for as many blocks of queries at a time as scratch allows. `sample` scores every stride-th key and keeps
the best of each of up to 1024 groups; `guess` takes a row's bound from them: what about r samples exceed, r six
standard deviations above the k/stride that are expected (how many samples share a group is chance too: 5.6 to 5.9 of
both together).
`append` passes over all keys in ascending order and writes those above the bound to the row's list. A list keeps equal
scores up to its k-th entry; a later one loses to k earlier ones, which is the rule for ties. `redo` does a block again
where a list is short or full, without a guess: a list about to overflow is pruned to its k best, and the lowest of
those is the bound from then on. `emit` finds the k best of a list. So the result is exact for every input, and each
score that counts is computed once: no two passes need agree in their bits. The guess is never trusted, only usually
right: samples of random scores fail once in 10^8 rows, and only scores that follow the stride fail often (then the time
is five times as long).

Time on the H100, L = 65,536, J = 4, I = 64, k = 2048 (ms). Predicted: append, products of 2.15e9 pairs x (512 + 128 for
the prefix sums) FLOP at 400 TFLOP/s 3.4, 22 instructions a pair 1.7 beside it; sample 1/16 of it; guess 65,536 rows x
12 counts of 4096 entries 0.5; emit 15 counts and a prefix sum 1.2. Sum 6. Measured: append 4.2, emit 2.9, guess 0.8,
sample 0.5.
What did not help: all of it in one kernel (26 ms: it spilled registers, and ran two programs an SM while one row at a
time was searched); keys taken only where they beat the bound, without equal ones (42: the bound of a query whose
weights are all negative, one in 16 of 4 heads, is the plateau of zeros that relu makes, and its whole block was done
again); a margin of 3.5 standard deviations (block after block waited for the one that was done again: 28 of 53 ms at
L = 131,072); tiles of 32 keys or 128 queries, fewer registers for more programs an SM (0 to 20 per cent slower).
Short windows on the H200, 8 of L = 4096, k = 256 (ms): 0.76 before, 0.50 by these: a warp alone searches up to 1024
entries and waits for no other after each count (emit 0.37 to 0.23, predicted 0.13; guess 0.07 to 0.03); units of about
the same length in a chunk, and twice as many of them where lists are short (append 0.28 to 0.22, predicted 0.13).
Long windows on the H200 (ms, L = 131,072; in brackets 65,536): groups of samples, in place of all 8192 of a row, which
four warps search, guess 3.81 to 0.45 (0.84 to 0.21; predicted 0.5) and sample 1.6 to 1.05 (0.49 to 0.34), which stores
an eighth; scores and top-k as a whole 24.2 to 20.1 (8.0 to 7.2). What did not help: two counts a pass of the search for
a threshold, 7 passes in place of 13 (emit 4.31 to 4.2 where 3.2 was predicted: it does not wait for these counts).
Not tried: radix passes over stored scores move 8.6 GB a pass (2.9 each, and 4 to 8 passes).

Legend: B batch, L length, J indexer heads, I (DI in code) indexer width, K selected slots, T block of queries, S block
of keys, C entries of a list.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from dsabench.attention.dsa.reference import document_starts
from dsabench.attention.dsa.triton.tiles import check, fitting, held, power_of_two, precision
from dsabench.attention.dsa.triton.top_k_kernels import append, emit, guess, redo, sample
from dsabench.ops.availability import on_gpu, processors

MOST_KEYS = 4096
"""Largest k."""

SCRATCH_BYTES = 1 << 30
"""Most scratch, whatever L and B: the lists of the queries that are worked on together."""

SAMPLE_TILES = 16
"""Blocks of samples of a program."""

GROUPS = 1024
"""Most groups of a row's samples: so many a warp searches in its registers."""


class Tiling(NamedTuple):
    """How the work is cut: results do not depend on it."""

    queries: int = 64
    keys: int = 64
    warps: int = 4
    stages: int = 3
    programs: int = 2
    """Units of queries a multiprocessor that are worked on together: their lists are scratch."""
    stride: int = 16
    """Every stride-th key is sampled; 0 samples none."""
    registers: int | None = None
    """Most registers a thread of `append`, to fit more programs on a multiprocessor; None leaves it to the compiler."""


class Lists(NamedTuple):
    """How long the lists are, and what the samples are asked."""

    entries: int
    usual: int
    """Few lists grow longer than this."""
    stride: int
    rank: int

    @classmethod
    def of(cls, k: int, length: int, tiling: Tiling) -> Lists:
        """Six standard deviations of the samples from a list that is too short, and from one that overflows: a unit
        that is done again takes longer than all others together. Samples fit into the memory of their list."""
        least = k + k // 8 + 4 * tiling.keys
        entries = power_of_two(max(2 * k, least))
        if not tiling.stride:
            return cls(entries, entries, 0, 0)
        stride = tiling.stride
        while True:
            share = k / stride
            rank = int(share + 6 * share**0.5) + 6  # of a Poisson number, whose upper tail is the longer one
            reached, spread = rank + rank // 16, rank**0.5
            usual = min(entries, power_of_two(int(stride * (reached + 2 * spread))))
            entries = max(entries, power_of_two(int(stride * (reached + 6 * spread)) + tiling.keys))
            if length <= 2 * entries * stride:
                return cls(entries, usual, stride, rank)
            stride *= 2


def top_k(
    q_BTJI: Tensor, k_BSI: Tensor, w_BTJ: Tensor, k: int, document_ids_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """S[t], (B, T, K = min(k, T)) int32, and logsumexp over S[t] of I[t], (B, T) fp32: the indexer's softmax needs it.

    The same sets as reference.select_top_k on fp32 scores, but in ascending order of the index, which suits gathers;
    -1 in a row's last slots where it may see fewer than k keys. No gradient. Scores that are NaN or below -3e38 count
    as -3e38: a row's number of keys never depends on its scores. Raises ValueError for k outside 1 to 4096.
    """
    if not 1 <= k <= MOST_KEYS:
        raise ValueError(f"top_k must be from 1 to {MOST_KEYS}, not {k}")
    check(q_BTJI, k_BSI, w_BTJ)
    with torch.no_grad():
        if document_ids_BT is None:
            start_BT = torch.zeros(q_BTJI.shape[:2], dtype=torch.int32, device=q_BTJI.device)
        else:
            start_BT = document_starts(document_ids_BT)
        selected_BTK, lse_BT = _top_k(q_BTJI, k_BSI, w_BTJ, start_BT, k)
    return selected_BTK, lse_BT


@torch.library.custom_op("dsabench::sparse_top_k", mutates_args=())
def _top_k(
    q_BTJI: Tensor, k_BSI: Tensor, w_BTJ: Tensor, start_BT: Tensor, k: int
) -> tuple[Tensor, Tensor]:  # fmt: skip
    # Products in fp32 are unrolled multiplications: a larger tile takes minutes to compile.
    tiling = Tiling() if q_BTJI.dtype == torch.bfloat16 else Tiling(queries=32, keys=32)
    return launch(q_BTJI, k_BSI, w_BTJ, start_BT, k, tiling)


@_top_k.register_fake
def _(q_BTJI: Tensor, k_BSI: Tensor, w_BTJ: Tensor, start_BT: Tensor, k: int) -> tuple[Tensor, Tensor]:
    n_batch, length = q_BTJI.shape[:2]
    selected_BTK = q_BTJI.new_empty(n_batch, length, min(k, length), dtype=torch.int32)
    return selected_BTK, q_BTJI.new_empty(n_batch, length, dtype=torch.float32)


def launch(
    q_BTJI: Tensor, k_BSI: Tensor, w_BTJ: Tensor, start_BT: Tensor, k: int, tiling: Tiling
) -> tuple[Tensor, Tensor]:
    """`top_k` by a tiling of choice; start: the first key that each query may see, (B, T) int32."""
    q_BTJI, k_BSI, w_BTJ, start_BT = (x.contiguous() for x in (q_BTJI, k_BSI, w_BTJ, start_BT))
    n_batch, length, n_heads, width = q_BTJI.shape
    device, queries = q_BTJI.device, tiling.queries
    tiling = tiling._replace(keys=fitting(tiling.keys, 1 << 15, width, size=q_BTJI.element_size()))
    k = min(k, length)
    lists = Lists.of(k, length, tiling)
    n_blocks = triton.cdiv(length, queries)
    units = n_batch * n_blocks
    chunk = _together(units, processors(device) * tiling.programs, queries * lists.entries * 8)
    entries = torch.empty(chunk * queries * lists.entries, dtype=torch.int64, device=device)
    counts = torch.empty(chunk * queries, dtype=torch.int32, device=device)
    bounds = torch.full((chunk * queries,), -float("inf"), device=device)
    selected_BTK = torch.empty(n_batch, length, k, dtype=torch.int32, device=device)
    lse_BT = torch.empty(n_batch, length, dtype=torch.float32, device=device)
    heads = {
        "J": n_heads, "DI": width, "WIDE": power_of_two(width), "N": held(queries, q_BTJI), "S": tiling.keys,
        "PRECISION": precision(q_BTJI), "num_warps": tiling.warps,
    }  # fmt: skip
    shape = {"T": queries, "C": lists.entries}
    room = min(lists.usual, lists.entries - tiling.keys)
    inputs = (q_BTJI, k_BSI, w_BTJ, start_BT)
    samples = entries.view(torch.float32)
    more = {} if tiling.registers is None else {"maxnreg": tiling.registers}
    for base in range(0, units, chunk):
        n = min(chunk, units - base)
        if lists.stride and length > room:
            most = power_of_two(triton.cdiv(length, lists.stride))
            groups = max(min(most, GROUPS, 2 * lists.entries), tiling.keys)
            tiles = max(1, SAMPLE_TILES * groups // max(most, groups))
            sample[(n, triton.cdiv(groups, tiles * tiling.keys))](
                *inputs, samples, base, length, n_batch, n_blocks, lists.stride, room, M=groups, TILES=tiles, **heads,
                **shape,
            )  # fmt: skip
            guess[(n * queries,)](
                samples, start_BT, bounds, base, length, n_batch, n_blocks, lists.stride, lists.rank, room, M=groups,
                num_warps=_warps(groups), **shape,
            )  # fmt: skip
        append[(n,)](
            *inputs, bounds, entries, counts, base, length, n_batch, n_blocks, k, PLAIN=not on_gpu(device),
            num_stages=tiling.stages, **more, **heads, **shape,
        )  # fmt: skip
        redo[(n,)](*inputs, entries, counts, base, length, n_batch, n_blocks, k, k // 8, **heads, **shape)
        shorter = 0
        for width in sorted({lists.usual, lists.entries}):
            emit[(n * queries,)](
                entries, counts, selected_BTK, lse_BT, base, length, n_batch, n_blocks, k, k, shorter, WIDTH=width,
                PIECE=min(256 * _warps(width), width), num_warps=_warps(width), **shape,
            )  # fmt: skip
            shorter = width
    return selected_BTK, lse_BT


def _together(units: int, wanted: int, unit_bytes: int) -> int:
    """Units of a chunk: as many as are wanted, and twice as many where their lists are short, so that long and short
    units fill the multiprocessors together."""
    few = min(wanted, SCRATCH_BYTES // unit_bytes)
    return max(1, min(units, max(few, min(2 * wanted, SCRATCH_BYTES // 2 // unit_bytes))))


def _warps(entries: int) -> int:
    """Of a program that searches so many numbers by counting them, in its registers: a warp, where it holds them, waits
    for no other one after each count."""
    return 1 if entries <= 1024 else 4 if entries <= 4096 else 8
