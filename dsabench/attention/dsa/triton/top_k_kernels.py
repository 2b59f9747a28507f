"""The kernels of `top_k`, which says what they compute and in what time.

A row is one query. Its list has C entries of 8 bytes, a score and a position, in ascending order of positions; before
the list is begun its memory holds the row's samples. A unit is a block of T queries of one batch row; `unit` counts
them from the last block of all rows, which has most keys, to the first one, so that those of a chunk take about the
same time. Lists, counts and bounds are those of a chunk of units, the first of which is `base`.

Legend: L length, J indexer heads, I (DI in code) indexer width, K selected slots, T queries of a unit, S block of keys,
C entries of a list, M groups of a row's samples.
"""

from __future__ import annotations

import triton.language as tl

from dsabench.attention.dsa.triton.candidates import get, prune, put
from dsabench.attention.dsa.triton.threshold import as_float, below, ordered, threshold
from dsabench.attention.dsa.triton.tiles import load_heads, load_keys, score_tile
from dsabench.ops.triton.jit import jit

# Compiled once for all lengths and k: no value of these makes the code better.
_PLAIN_NUMBERS = ["L", "n_rows", "n_blocks", "base", "K", "slots", "slack", "stride", "rank", "room", "shorter"]


@jit
def _place(unit, L, n_rows, n_blocks, T: tl.constexpr):
    """A unit's batch row, as an offset in tokens, and its first query."""
    return (unit % n_rows).to(tl.int64) * L, (n_blocks - 1 - unit // n_rows) * T


@jit
def _unit(start, base, L, n_rows, n_blocks, T: tl.constexpr):
    """This program's batch row (as an offset in tokens), queries, first keys of each and of all, and end of keys."""
    batch, t0 = _place(base + tl.program_id(0), L, n_rows, n_blocks, T)
    t = t0 + tl.arange(0, T)
    first = tl.load(start + batch + t, mask=t < L, other=L)
    return batch, t, first, tl.min(first, axis=0), tl.minimum(tl.max(t, axis=0) + 1, L)


@jit(do_not_specialize=_PLAIN_NUMBERS)
def sample(
    q, k, w, start, samples, base, L, n_rows, n_blocks, stride, room, J: tl.constexpr, DI: tl.constexpr,
    WIDE: tl.constexpr, N: tl.constexpr, T: tl.constexpr, S: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
    PRECISION: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """The best score of each of M groups of every stride-th key of a unit, 2C fp32 a row: group m has the samples m,
    m + M, and so on. -inf where a query may not see any key of a group."""
    batch, t, first, lowest, end = _unit(start, base, L, n_rows, n_blocks, T)
    n_samples = tl.cdiv(end - lowest, stride)
    m0 = tl.program_id(1) * TILES * S
    if (end - lowest > room) & (m0 < n_samples):
        q += batch * J * DI
        k += batch * DI
        w += batch * J
        qs, ws = load_heads(q, w, t, L, J, DI, WIDE, N)
        to = samples + (tl.program_id(0).to(tl.int64) * T + tl.arange(0, T)) * (2 * C)
        for m1 in range(m0, tl.minimum(tl.minimum(m0 + TILES * S, n_samples), M), S):
            best = tl.full((T, S), -float("inf"), dtype=tl.float32)
            for c1 in range(m1, n_samples, M):
                s = lowest + (c1 + tl.arange(0, S)) * stride
                score = score_tile(qs, ws, q, w, t, load_keys(k, s, L, DI, WIDE), L, J, DI, WIDE, N, T, S, PRECISION)
                allowed = (s[None, :] <= t[:, None]) & (s[None, :] >= first[:, None])
                best = tl.maximum(best, tl.where(allowed, score, -float("inf")))
            m = m1 + tl.arange(0, S)
            tl.store(to[:, None] + m[None, :], best, mask=(m < tl.minimum(n_samples, M))[None, :])


@jit(do_not_specialize=_PLAIN_NUMBERS)
def guess(
    samples, start, bound, base, L, n_rows, n_blocks, stride, rank, room, T: tl.constexpr, C: tl.constexpr,
    M: tl.constexpr,
):  # fmt: skip
    """A row's bound: about `rank` of its samples are above it. -inf for a row whose keys all find room in its list.

    Of n samples in M groups, r that lie anywhere are in M (1 - (1 - r/n)^(n/M)) different groups.
    """
    batch, t0 = _place(base + tl.program_id(0) // T, L, n_rows, n_blocks, T)
    t = t0 + tl.program_id(0) % T
    ts = t0 + tl.arange(0, T)
    lowest = tl.min(tl.load(start + batch + ts, mask=ts < L, other=L), axis=0)
    result = -float("inf")
    visible = t + 1 - tl.load(start + batch + t, mask=t < L, other=L)
    if visible > room:
        m = tl.arange(0, M)
        there = m < tl.cdiv(tl.minimum(t0 + T, L) - lowest, stride)
        value = tl.load(samples + tl.program_id(0).to(tl.int64) * (2 * C) + m, mask=there, other=-float("inf"))
        filled = value > -float("inf")
        n = visible.to(tl.float32) / stride
        if n > M:
            rank = (M * (1.0 - tl.exp(tl.log(1.0 - rank / n) * (n / M)))).to(tl.int32)
        if tl.sum(filled.to(tl.int32), axis=0) >= rank:
            limit, _ = threshold(ordered(value, filled), filled, rank, rank // 16)
            result = as_float(limit)
    tl.store(bound + tl.program_id(0), result)


@jit
def _append_range(
    entries, qs, ws, q, w, k, t, first, from_key, to_key, bound, count, before, K, L, J: tl.constexpr, DI: tl.constexpr,
    WIDE: tl.constexpr, N: tl.constexpr, T: tl.constexpr, S: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr,
    PLAIN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Keys from a multiple of S up to to_key. before[i, j] = (i < j).

    Scores that equal the bound are taken while the list has fewer than K entries; one that comes later loses to K
    earlier ones. They are common: relu makes a plateau of zeros, and a query whose weights are all negative has its
    bound there.
    """
    row = tl.arange(0, T)
    lower = below(bound)
    for s0 in range(from_key, to_key, S):
        s = s0 + tl.arange(0, S)
        score = score_tile(qs, ws, q, w, t, load_keys(k, s, L, DI, WIDE), L, J, DI, WIDE, N, T, S, PRECISION)
        if MASKED:
            allowed = (s[None, :] <= t[:, None]) & (s[None, :] >= first[:, None])
            score = tl.where(allowed, score, -float("inf"))
        limit = tl.where(count < K, lower, bound)
        taken = tl.where(score > limit[:, None], 1.0, 0.0)
        # Prefix sums by the tensor cores: small integers, exact, and in the layout that the scores have.
        prefix = tl.dot(taken.to(tl.float16), before)
        # A list that is full is written at its end, and known by its count.
        place = row * (1.0 * C) + tl.minimum(count, C - S)
        put(entries, prefix, place, score, limit, s, T, S, PLAIN)
        count += tl.sum(taken, axis=1)
    return count


@jit(do_not_specialize=_PLAIN_NUMBERS)
def append(
    q, k, w, start, bound, entries, counts, base, L, n_rows, n_blocks, K, J: tl.constexpr, DI: tl.constexpr,
    WIDE: tl.constexpr, N: tl.constexpr, T: tl.constexpr, S: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr,
    PLAIN: tl.constexpr,
):  # fmt: skip
    """A row's list: every key above its bound, and the first ones at it; and their number."""
    batch, t, first, lowest, end = _unit(start, base, L, n_rows, n_blocks, T)
    row, i = tl.program_id(0) * T + tl.arange(0, T), tl.arange(0, S)
    before = (i[:, None] < i[None, :]).to(tl.float16)
    entries += tl.program_id(0).to(tl.int64) * T * C
    q += batch * J * DI
    k += batch * DI
    w += batch * J
    qs, ws = load_heads(q, w, t, L, J, DI, WIDE, N)
    limit = tl.load(bound + row)
    count = tl.zeros((T,), dtype=tl.float32)
    # Between these two every row may see every key.
    lowest = lowest // S * S
    inner = tl.minimum(tl.cdiv(tl.max(first, axis=0), S) * S, end)
    outer = tl.maximum(tl.min(t, axis=0) // S * S, inner)
    count = _append_range(
        entries, qs, ws, q, w, k, t, first, lowest, inner, limit, count, before, K, L, J, DI, WIDE, N, T, S, C,
        PRECISION, PLAIN, True,
    )  # fmt: skip
    count = _append_range(
        entries, qs, ws, q, w, k, t, first, inner, outer, limit, count, before, K, L, J, DI, WIDE, N, T, S, C,
        PRECISION, PLAIN, False,
    )  # fmt: skip
    count = _append_range(
        entries, qs, ws, q, w, k, t, first, outer, end, limit, count, before, K, L, J, DI, WIDE, N, T, S, C,
        PRECISION, PLAIN, True,
    )  # fmt: skip
    tl.store(counts + row, count.to(tl.int32))


@jit(do_not_specialize=_PLAIN_NUMBERS)
def redo(
    q, k, w, start, entries, counts, base, L, n_rows, n_blocks, K, slack, J: tl.constexpr, DI: tl.constexpr,
    WIDE: tl.constexpr, N: tl.constexpr, T: tl.constexpr, S: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A unit in which a list is too short or was full, again and without a guess: a list about to overflow is cut to
    its K best, and those are its bound from then on. Right for every input."""
    batch, t, first, lowest, end = _unit(start, base, L, n_rows, n_blocks, T)
    row = tl.arange(0, T)
    counts += tl.program_id(0) * T + row
    count = tl.load(counts)
    bad = (count < tl.minimum(K, t + 1 - first)) | (count > C - S)
    if tl.max(((t < L) & bad).to(tl.int32), axis=0) == 0:
        return
    entries += tl.program_id(0).to(tl.int64) * T * C
    q += batch * J * DI
    k += batch * DI
    w += batch * J
    qs, ws = load_heads(q, w, t, L, J, DI, WIDE, N)
    count = tl.zeros((T,), dtype=tl.int32)
    bound = tl.full((T,), -float("inf"), dtype=tl.float32)
    for s0 in range(lowest // S * S, end, S):
        if C - tl.max(count, axis=0) < S:
            count, bound = prune(entries, count, bound, K, slack, T, C)
        s = s0 + tl.arange(0, S)
        score = score_tile(qs, ws, q, w, t, load_keys(k, s, L, DI, WIDE), L, J, DI, WIDE, N, T, S, PRECISION)
        allowed = (s[None, :] <= t[:, None]) & (s[None, :] >= first[:, None])
        take = allowed & (score > bound[:, None])
        taken = take.to(tl.int32)
        at = row[:, None] * C + count[:, None] + tl.cumsum(taken, axis=1) - taken
        word = (score.to(tl.int32, bitcast=True).to(tl.int64) << 32) | s[None, :].to(tl.int64)
        tl.store(entries + at, word, mask=take)
        count += tl.sum(taken, axis=1)
    tl.store(counts, count)


@jit(do_not_specialize=_PLAIN_NUMBERS)
def emit(
    entries, counts, selected, lse, base, L, n_rows, n_blocks, K, slots, shorter, T: tl.constexpr, C: tl.constexpr,
    WIDTH: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """The K best of a row's list, and their logsumexp, of lists with more than `shorter` and up to WIDTH entries."""
    batch, t0 = _place(base + tl.program_id(0) // T, L, n_rows, n_blocks, T)
    t = t0 + tl.program_id(0) % T
    have = tl.load(counts + tl.program_id(0))
    if (t < L) & (have > shorter) & (have <= WIDTH):
        entries += tl.program_id(0).to(tl.int64) * C
        c = tl.arange(0, WIDTH)
        high = entries.to(tl.pointer_type(tl.int32)) + 2 * c + 1
        filled = c < have
        order = ordered(tl.load(high, mask=filled, other=0).to(tl.float32, bitcast=True), filled)
        k = tl.minimum(K, have)
        limit, reach = threshold(order, filled, k, 0)
        room = k - tl.sum((order > limit).to(tl.int32), axis=0)
        top = as_float(tl.max(order, axis=0))
        # Piece by piece from here on: the whole row's positions and places would not fit the registers.
        at = batch + t
        out = selected + at * slots
        kept, tied = 0, 0
        total = tl.zeros((PIECE,), dtype=tl.float32)
        for c0 in range(0, have, PIECE):
            e = c0 + tl.arange(0, PIECE)
            value, place, _word = get(entries, e, have)
            x = ordered(value, e < have)
            keep = (x >= limit) & (e < have)
            if reach > k:  # more keys equal the last one than there is room for: the first ones
                same = keep & (x == limit)
                keep = keep & ((x > limit) | (tied + tl.cumsum(same.to(tl.int32), axis=0) <= room))
                tied += tl.sum(same.to(tl.int32), axis=0)
            number = kept + tl.cumsum(keep.to(tl.int32), axis=0)
            tl.store(out + number - 1, place, mask=keep)
            total += tl.exp(tl.where(keep, value - top, -float("inf")))
            kept += tl.sum(keep.to(tl.int32), axis=0)
        for c0 in range(k, slots, PIECE):
            e = c0 + tl.arange(0, PIECE)
            tl.store(out + e, -1, mask=e < slots)
        tl.store(lse + at, top + tl.log(tl.sum(total, axis=0)))
