"""Scores and exact top-k in one pass over the keys, with bounded scratch: never L x L, for any input.

    S[t] = the k highest I[t,s], start[t] <= s <= t, ties to the lowest s      I[t,s] = sum_j w[t,j] relu(q[t,j] . k[s])

A program owns a block of queries and passes over their keys in ascending order. Keys that beat a row's bound are
appended to the row's list (C entries); a list about to overflow is pruned to its k best, and the bound becomes the
lowest of those. A key seen later that only equals the bound loses to k earlier ones: the rule for ties needs nothing
more, and lists stay in ascending order. So the pass is exact for every input, and each score is computed once: no two
passes need agree in their bits.

Sampling makes it fast: the bound starts at the r-th best of every stride-th key, r a little (3.5 sigma) above k/stride,
so that instead of about k (1 + ln(n/k)) entries hardly more than k are written. It is a guess: where a block's row ends
with fewer than k entries, the block is done again with a bound of -inf. Never trusted, only usually right.

Time on the H100, L = 65,536, J = 4, I = 64, k = 2048 (predicted, in ms): products 2.2e9 pairs x (512 + 256 for the
prefix sums) FLOP at 420 TFLOP/s 3.9; 30 instructions a pair on 132 x 128 lanes 2.2, partly beside it; sampling 0.2;
lists, 65,536 x 1.4 k x 16 bytes, 1.0 at 3 TB/s, beside it; two searches for a threshold a row, of 20 counts of 4096
entries each, 1.5. Sum 6 to 8. Of the ways not taken: radix passes over stored scores move 8.6 GB a pass (2.9 each, and
4 to 8 passes); 16 thresholds counted at once cost 30 operations a pair and pass (2.2 each, 8 passes).

Legend: B batch, L length, J indexer heads, I (DI in code) indexer width, K selected slots, T block of queries, S block
of keys, C entries of a list.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsabench.attention.kernels.sparse.lists import get, prune, put
from dsabench.attention.kernels.sparse.threshold import as_float, keep_best, ordered, threshold
from dsabench.attention.kernels.sparse.tiles import (
    check,
    fitting,
    held,
    load_heads,
    load_keys,
    power_of_two,
    precision,
    score_tile,
)

MOST_KEYS = 4096
"""Largest k."""

SCRATCH_BYTES = 1 << 30
"""Most scratch, whatever L and B: the lists of all programs together."""


@triton.jit
def _guess(
    entries, qs, ws, q, w, k, t, first, lowest, end, stride, rank, L, J: tl.constexpr, DI: tl.constexpr,
    WIDE: tl.constexpr, N: tl.constexpr, T: tl.constexpr, S: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A bound for each row from every stride-th key: about `rank` of those are above it. -inf for rows of few keys."""
    row = tl.arange(0, T)
    values = entries.to(tl.pointer_type(tl.float32))
    samples = tl.cdiv(end - lowest, stride)
    for i in range(0, tl.cdiv(samples, S)):
        c = i * S + tl.arange(0, S)
        s = lowest + c * stride
        score = score_tile(qs, ws, q, w, t, load_keys(k, s, L, DI, WIDE), L, J, DI, WIDE, N, T, S, PRECISION)
        allowed = (s[None, :] <= t[:, None]) & (s[None, :] >= first[:, None])
        tl.store(values + row[:, None] * (2 * C) + c[None, :], tl.where(allowed, score, -float("inf")))
    tl.debug_barrier()
    bound = tl.full((T,), -float("inf"), dtype=tl.float32)
    c = tl.arange(0, C)
    for r in range(0, T):
        value = tl.load(values + r * (2 * C) + c, mask=c < samples, other=-float("inf"))
        filled = value > -float("inf")
        order = ordered(value, filled)
        have = tl.sum(filled.to(tl.int32), axis=0)
        if have >= 2 * rank:
            limit, _ = threshold(order, filled, rank, rank // 16)
            bound = tl.where(row == r, as_float(limit), bound)
    tl.debug_barrier()
    return bound


@triton.jit
def _append(
    entries, qs, ws, q, w, k, t, first, lowest, end, bound, before, K, slack, L, J: tl.constexpr,
    DI: tl.constexpr, WIDE: tl.constexpr, N: tl.constexpr, T: tl.constexpr, S: tl.constexpr, C: tl.constexpr,
    PRECISION: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """Pass over the keys from `lowest` to `end`; the number of entries of each list. before[i, j] = (i < j)."""
    row = tl.arange(0, T)
    count = tl.zeros((T,), dtype=tl.int32)
    inner, outer = tl.max(first, axis=0), tl.min(t, axis=0) + 1  # every row may see these keys
    s0 = lowest
    while s0 < end:
        if C - tl.max(count, axis=0) < 2 * S:
            count, bound = prune(entries, count, bound, K, slack, T, C)
        # So many tiles fit the fullest list whatever they hold: the loop over them tests for nothing.
        tiles = tl.minimum((C - tl.max(count, axis=0)) // S, tl.cdiv(end - s0, S))
        for i in range(0, tiles):
            s = s0 + i * S + tl.arange(0, S)
            score = score_tile(qs, ws, q, w, t, load_keys(k, s, L, DI, WIDE), L, J, DI, WIDE, N, T, S, PRECISION)
            if (s0 + i * S < inner) | (s0 + (i + 1) * S > outer):  # few tiles; the others need no mask
                allowed = (s[None, :] <= t[:, None]) & (s[None, :] >= first[:, None])
                score = tl.where(allowed, score, -float("inf"))
            take = score > bound[:, None]
            # Prefix sums by the tensor cores: small integers, exact, and in the layout that the scores have. A sum is
            # read off the mantissa of 2^23 + sum, because conversions to integers are slow.
            prefix = tl.dot(tl.where(take, 1.0, 0.0).to(tl.float16), before) + 8388608.0
            base = row * C + count - 0x4B000000
            at = prefix.to(tl.int32, bitcast=True) + base[:, None]
            put(entries, tl.where(take, at, -1), score, tl.broadcast_to(s[None, :], (T, S)), PLAIN)
            count += tl.sum(take.to(tl.int32), axis=1)
        s0 += tiles * S
    return count


@triton.jit
def _emit(entries, selected, lse, batch, block, count, L, K, slots, T: tl.constexpr, C: tl.constexpr):
    """The K best of each list, and their logsumexp."""
    row, c = tl.arange(0, T), tl.arange(0, C)
    for r in range(0, tl.minimum(T, L - block * T)):
        have = tl.sum(tl.where(row == r, count, 0), axis=0)
        value, place, _ = get(entries + r * C, c, have)
        keep, _, kept = keep_best(value, c < have, K, 0)
        out = selected + (batch + block * T + r) * slots
        tl.store(out + tl.cumsum(keep.to(tl.int32), axis=0) - 1, place, mask=keep)
        tl.store(out + c, -1, mask=(c >= kept) & (c < slots))
        top = tl.max(tl.where(keep, value, -float("inf")), axis=0)
        total = tl.sum(tl.exp(tl.where(keep, value - top, -float("inf"))), axis=0)
        tl.store(lse + batch + block * T + r, top + tl.log(total))


# Compiled once for all lengths and k: no value of these makes the code better.
_PLAIN_NUMBERS = ["L", "n_batch", "n_blocks", "K", "slots", "slack", "stride", "rank", "PROGRAMS"]


@triton.jit(do_not_specialize=_PLAIN_NUMBERS)
def _select(
    q, k, w, start, entries, selected, lse, L, n_batch, n_blocks, K, slots, slack, stride, rank, PROGRAMS,
    J: tl.constexpr, DI: tl.constexpr, WIDE: tl.constexpr, N: tl.constexpr, T: tl.constexpr, S: tl.constexpr,
    C: tl.constexpr, PRECISION: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """Programs take blocks of queries in turn, the longest first, back and forth so that each has the same share.

    stride = 0 does without sampling.
    """
    entries += tl.program_id(0).to(tl.int64) * T * C
    row, i = tl.arange(0, T), tl.arange(0, S)
    before = (i[:, None] < i[None, :]).to(tl.float16)
    for turn in range(0, tl.cdiv(n_batch * n_blocks, PROGRAMS)):
        place = tl.program_id(0)
        unit = turn * PROGRAMS + tl.where(turn % 2 == 0, place, PROGRAMS - 1 - place)
        if unit < n_batch * n_blocks:
            batch = (unit % n_batch).to(tl.int64) * L
            block = n_blocks - 1 - unit // n_batch
            t = block * T + row
            first = tl.load(start + batch + t, mask=t < L, other=L)
            lowest = tl.min(first, axis=0) // S * S
            end = tl.minimum(block * T + T, L)
            q_, k_, w_ = q + batch * J * DI, k + batch * DI, w + batch * J
            qs, ws = load_heads(q_, w_, t, L, J, DI, WIDE, N)
            bound = tl.full((T,), -float("inf"), dtype=tl.float32)
            guessed = (stride > 0) & (end - lowest > C)
            if guessed:
                bound = _guess(
                    entries, qs, ws, q_, w_, k_, t, first, lowest, end, stride, rank, L, J, DI, WIDE, N, T, S, C,
                    PRECISION,
                )  # fmt: skip
            count = tl.zeros((T,), dtype=tl.int32)
            tries = 2
            while tries > 0:
                count = _append(
                    entries, qs, ws, q_, w_, k_, t, first, lowest, end, bound, before, K, slack, L, J, DI, WIDE, N, T,
                    S, C, PRECISION, PLAIN,
                )  # fmt: skip
                short = tl.max(((t < L) & (count < tl.minimum(K, t + 1 - first))).to(tl.int32), axis=0)
                tries = tl.where(guessed & (tries == 2) & (short > 0), 1, 0)
                bound = tl.full((T,), -float("inf"), dtype=tl.float32)
                tl.debug_barrier()
            _emit(entries, selected, lse, batch, block, count, L, K, slots, T, C)
            tl.debug_barrier()


class Tiling(NamedTuple):
    """How the work is cut: results do not depend on it."""

    queries: int = 64
    keys: int = 64
    warps: int = 4
    stages: int = 2
    programs: int = 2
    """Programs a multiprocessor."""
    stride: int = 16
    """Every stride-th key is sampled; 0 samples none."""
    entries: int = 2048
    """Least entries of a list: too few for a small k, and what the samples let pass overflows it."""
    registers: int | None = None
    """Most registers a thread, to fit more programs on a multiprocessor; None leaves it to the compiler."""


def document_starts(document_ids_BT: Tensor) -> Tensor:
    """(B, T) int32: the first position of each position's document. A document's positions lie side by side."""
    position_T = torch.arange(document_ids_BT.shape[1], device=document_ids_BT.device, dtype=torch.int32)
    fresh_BT = torch.ones_like(document_ids_BT, dtype=torch.bool)
    fresh_BT[:, 1:] = document_ids_BT[:, 1:] != document_ids_BT[:, :-1]
    return (position_T * fresh_BT).cummax(dim=1).values.to(torch.int32)


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
    q_BTJI, k_BSI, w_BTJ = q_BTJI.contiguous(), k_BSI.contiguous(), w_BTJ.contiguous()
    n_batch, length, n_heads, width = q_BTJI.shape
    tiling = tiling._replace(keys=fitting(tiling.keys, 1 << 15, width, size=q_BTJI.element_size()))
    k = min(k, length)
    slack = k // 8
    capacity = power_of_two(max(2 * k, k + slack + 4 * tiling.keys, tiling.entries))
    n_blocks = triton.cdiv(length, tiling.queries)
    processors = torch.cuda.get_device_properties(q_BTJI.device).multi_processor_count if q_BTJI.is_cuda else 2
    fit = SCRATCH_BYTES // (tiling.queries * capacity * 8)
    programs = max(1, min(processors * tiling.programs, n_batch * n_blocks, fit))
    stride = max(tiling.stride, power_of_two(triton.cdiv(length, capacity), 1)) if tiling.stride else 0
    share = k / stride if stride else 0.0
    rank = int(share + 3.5 * share**0.5) + 2
    device = q_BTJI.device
    entries = torch.empty(programs * tiling.queries * capacity, dtype=torch.int64, device=device)
    selected_BTK = torch.empty(n_batch, length, k, dtype=torch.int32, device=device)
    lse_BT = torch.empty(n_batch, length, dtype=torch.float32, device=device)
    _select[(programs,)](
        q_BTJI, k_BSI, w_BTJ, start_BT.contiguous(), entries, selected_BTK, lse_BT, length, n_batch, n_blocks, k, k,
        slack, stride, rank, programs, J=n_heads, DI=width, WIDE=power_of_two(width), N=held(tiling.queries, q_BTJI),
        T=tiling.queries, S=tiling.keys, C=capacity, PRECISION=precision(q_BTJI), PLAIN=not q_BTJI.is_cuda,
        num_warps=tiling.warps, num_stages=tiling.stages,
        **({} if tiling.registers is None else {"maxnreg": tiling.registers}),
    )  # fmt: skip
    return selected_BTK, lse_BT
