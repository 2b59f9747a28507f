"""Index lists of selections by a hash, by chosen blocks and by a mask: a program writes one query's list.

    S[t], ascending, -1 in the slots after the last key

No scores are stored: a hash is computed anew wherever it is asked for. The passes over all of a query's keys cost a few
integer instructions a pair. Time of `hashed` on the H200 at L = 4096, k = 256, one row for all of the batch: predicted
from 8.4M pairs x 7 passes x 15 instructions 0.06 ms, measured 0.085.

Legend: B batch, T query, S key, R queries of a slab, K selected slots, C blocks of keys, N keys that a program looks at
together.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsabench.ops.triton.jit import jit

_KEYS, _WARPS = 1024, 4


@jit
def _emit(out, kept, keep, s):
    """Append the keys s that are kept to a list of so many; how many there are then."""
    place = kept + tl.cumsum(keep.to(tl.int32), axis=0) - 1
    tl.store(out + place, s, mask=keep)
    return kept + tl.sum(keep.to(tl.int32), axis=0)


@jit
def _empty(out, kept, K, N: tl.constexpr):
    """The slots after the last key."""
    for c0 in range(kept, K, N):
        c = c0 + tl.arange(0, N)
        tl.store(out + c, -1, mask=c < K)


@jit
def _hash(query, s):
    """24 bits, as ablations/random.py computes them; query and s are uint32, and so are all products and sums."""
    x = tl.add(query, tl.mul(s, 0x27D4EB2F, False), False)
    x = tl.mul(x ^ (x >> 16), 0x7FEB352D, False)
    x = tl.mul(x ^ (x >> 15), 0x846CA68B, False)
    return ((x ^ (x >> 16)) >> 8).to(tl.int32)


@jit
def _hashes(query, s, t):
    """Of keys s up to t; -1 beyond."""
    value = _hash(query, s.to(tl.uint32, bitcast=True))
    return tl.where(s <= t, value, -1)


@jit
def _hashed(query, start, out, T, K, N: tl.constexpr):
    """The K highest hashes, of equal ones the first keys. The K-th highest is searched for where it is expected: hashes
    are uniform, so that few counts are needed."""
    row = tl.program_id(0)
    t = row % T
    first = tl.load(start + row)
    hashed = tl.load(query + t).to(tl.uint32, bitcast=True)
    n = tl.arange(0, N)
    most = tl.minimum(K, t + 1 - first)
    # `have` keys are >= low, and at least as many as wanted; `over` are >= high, and fewer.
    low = 0 * K
    high = (1 << 24) + low
    have = t + 1 - first
    over = 0 * K
    steps = 0 * K
    while (have > most) & (low + 1 < high):
        share = (have - most).to(tl.float32) / (have - over).to(tl.float32)
        share = tl.where(steps % 4 == 3, 0.5, share)
        middle = low + (share * (high - low).to(tl.float32)).to(tl.int32)
        middle = tl.minimum(tl.maximum(middle, low + 1), high - 1)
        count = tl.zeros((N,), dtype=tl.int32)
        for s0 in range(first, t + 1, N):
            count += (_hashes(hashed, s0 + n, t) >= middle).to(tl.int32)
        above = tl.sum(count, axis=0)
        enough = above >= most
        low = tl.where(enough, middle, low)
        have = tl.where(enough, above, have)
        high = tl.where(enough, high, middle)
        over = tl.where(enough, over, above)
        steps += 1
    room = tl.where(have == most, most, most - over)
    out += row.to(tl.int64) * K
    kept = 0 * K
    tied = 0 * K
    for s0 in range(first, t + 1, N):
        value = _hashes(hashed, s0 + n, t)
        same = value == low
        keep = (value > low) | (same & (tied + tl.cumsum(same.to(tl.int32), axis=0) <= room))
        tied += tl.sum(same.to(tl.int32), axis=0)
        kept = _emit(out, kept, keep, s0 + n)
    _empty(out, kept, K, N)


@jit
def _blocks(chosen, start, out, first_query, R, T, C, K, SIZE, N: tl.constexpr):
    """The keys of chosen blocks, and the nearest others until there are K."""
    row = tl.program_id(0)
    batch = (row // R).to(tl.int64)
    t = first_query + row % R
    first = tl.load(start + batch * T + t)
    chosen += row.to(tl.int64) * C
    n = tl.arange(0, N)
    most = tl.minimum(K, t + 1 - first)
    near = t + 1 - most  # the others lie from here on, because there are no more than `most` keys in all
    mine = tl.zeros((N,), dtype=tl.int32)
    others = tl.zeros((N,), dtype=tl.int32)
    for s0 in range(first, t + 1, N):
        s = s0 + n
        took = tl.load(chosen + s // SIZE, mask=s <= t, other=0).to(tl.int32)
        mine += took
        others += tl.where((s >= near) & (s <= t), 1 - took, 0)
    farther = tl.sum(others, axis=0) - (most - tl.sum(mine, axis=0))
    out += (batch * T + t) * K
    kept = 0 * K
    passed = 0 * K
    for s0 in range(first, t + 1, N):
        s = s0 + n
        took = tl.load(chosen + s // SIZE, mask=s <= t, other=0) != 0
        other = (s >= near) & (s <= t) & (took == 0)
        keep = took | (other & (passed + tl.cumsum(other.to(tl.int32), axis=0) > farther))
        passed += tl.sum(other.to(tl.int32), axis=0)
        kept = _emit(out, kept, keep, s)
    _empty(out, kept, K, N)


@jit
def _masked(mask, out, first_query, R, T, S, K, N: tl.constexpr):
    """The keys of a row of a mask."""
    row = tl.program_id(0)
    mask += row.to(tl.int64) * S
    out += ((row // R).to(tl.int64) * T + first_query + row % R) * K
    kept = 0 * K
    for s0 in range(0, S, N):
        s = s0 + tl.arange(0, N)
        kept = _emit(out, kept, tl.load(mask + s, mask=s < S, other=0) != 0, s)
    _empty(out, kept, K, N)


def hashed(query_T: Tensor, start_BT: Tensor, k: int) -> Tensor:
    """(B, T, K) int32: the k keys from start[t] to t whose hash with query[t], int32, is highest, of equal ones the
    first."""
    out_BTK: Tensor = _hashed_op(query_T, start_BT, k)
    return out_BTK


@torch.library.custom_op("dsabench::hashed_list", mutates_args=())
def _hashed_op(query_T: Tensor, start_BT: Tensor, k: int) -> Tensor:
    out_BTK = torch.empty(*start_BT.shape, k, dtype=torch.int32, device=start_BT.device)
    length = start_BT.shape[1]
    keys = min(_KEYS, max(16, int(triton.next_power_of_2(length))))
    _hashed[(start_BT.numel(),)](query_T, start_BT.contiguous(), out_BTK, length, k, N=keys, num_warps=_WARPS)
    return out_BTK


@_hashed_op.register_fake
def _(query_T: Tensor, start_BT: Tensor, k: int) -> Tensor:
    return start_BT.new_empty(*start_BT.shape, k, dtype=torch.int32)


@torch.library.custom_op("dsabench::blocks_list", mutates_args=("out_BTK",))
def blocks(chosen_BRC: Tensor, start_BT: Tensor, out_BTK: Tensor, first_query: int, size: int) -> None:
    """Write the lists of queries first_query to first_query + R - 1: the keys of chosen blocks (uint8, C blocks of
    `size` keys), and the nearest others until there are K."""
    queries, count = chosen_BRC.shape[1:]
    length, k = out_BTK.shape[1:]
    keys = min(_KEYS, max(16, int(triton.next_power_of_2(length))))
    _blocks[(len(chosen_BRC) * queries,)](
        chosen_BRC.contiguous(), start_BT.contiguous(), out_BTK, first_query, queries, length, count, k, size, N=keys,
        num_warps=_WARPS,
    )  # fmt: skip


@torch.library.custom_op("dsabench::masked_list", mutates_args=("out_BTK",))
def masked(mask_BRS: Tensor, out_BTK: Tensor, first_query: int) -> None:
    """Write the lists of queries first_query to first_query + R - 1: the first K keys of a mask."""
    queries, n_keys = mask_BRS.shape[1:]
    length, k = out_BTK.shape[1:]
    keys = min(_KEYS, max(16, int(triton.next_power_of_2(n_keys))))
    _masked[(len(mask_BRS) * queries,)](
        mask_BRS.contiguous(), out_BTK, first_query, queries, length, n_keys, k, N=keys, num_warps=_WARPS
    )  # fmt: skip
