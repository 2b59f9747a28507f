"""The kernels of `attend`, which says what they compute and in what time.

P: of each key, D + P wide, the first D numbers are its value too (latents); 0: values are a tensor of their own.

Legend: B batch, T query, S key, H query heads, G key/value heads, D head width, K selected slots, M heads of a program,
N slots of a block.
"""

from __future__ import annotations

import triton.language as tl

from dsabench.attention.dsa.triton import accumulate
from dsabench.ops.triton.jit import jit

LOG2E = tl.constexpr(1.4426950408889634)


@jit
def load_slots(selected, n, t, K):
    """The keys of slots n, and whether they count."""
    s = tl.load(selected + n, mask=n < K, other=-1)
    keep = (s >= 0) & (s <= t)
    return tl.where(keep, s, 0), keep


@jit
def gather(x, s, keep, stride, D: tl.constexpr, WIDE: tl.constexpr):
    """Rows s of x, [N, WIDE]; 0 where not kept."""
    d = tl.arange(0, WIDE)
    at = s.to(tl.int64)[:, None] * stride + d[None, :]
    return tl.load(x + at, mask=keep[:, None] & (d < D)[None, :], other=0.0)


@jit
def load_queries(q, row, there, D: tl.constexpr, WIDE: tl.constexpr, P: tl.constexpr, WIDE_P: tl.constexpr):
    """Rows of q, D + P wide, in two parts, [M, WIDE] and [M, WIDE_P]; where P = 0, the first one twice."""
    d, r = tl.arange(0, WIDE), tl.arange(0, WIDE_P)
    first = tl.load(q + row[:, None] * (D + P) + d[None, :], mask=there[:, None] & (d < D)[None, :], other=0.0)
    rest = first
    if P:
        at = row[:, None] * (D + P) + (D + r)[None, :]
        rest = tl.load(q + at, mask=there[:, None] & (r < P)[None, :], other=0.0)
    return first, rest


@jit
def store_queries(
    d_q, row, there, first, rest, D: tl.constexpr, WIDE: tl.constexpr, P: tl.constexpr, WIDE_P: tl.constexpr,
    RANGED: tl.constexpr,
):  # fmt: skip
    """The gradient of what `load_queries` gave. RANGED: it is added to what is there."""
    d, r = tl.arange(0, WIDE), tl.arange(0, WIDE_P)
    at = d_q + row[:, None] * (D + P) + d[None, :]
    mask = there[:, None] & (d < D)[None, :]
    if RANGED:
        first += tl.load(at, mask=mask, other=0.0)
    tl.store(at, first.to(d_q.dtype.element_ty), mask=mask)
    if P:
        at = d_q + row[:, None] * (D + P) + (D + r)[None, :]
        mask = there[:, None] & (r < P)[None, :]
        if RANGED:
            rest += tl.load(at, mask=mask, other=0.0)
        tl.store(at, rest.to(d_q.dtype.element_ty), mask=mask)


@jit
def _place(T, H, G, BLOCKS, M: tl.constexpr):
    """This program's query, KV head, heads and which of them there are. Neighbouring programs share a query."""
    row = tl.program_id(0) // (G * BLOCKS)
    g = (tl.program_id(0) // BLOCKS) % G
    m = (tl.program_id(0) % BLOCKS) * M + tl.arange(0, M)
    return row, (row // T).to(tl.int64), row % T, g, g * (H // G) + m, m < H // G


@jit
def in_group(sizes, row, T, Q: tl.constexpr):
    """Whether a group of Q neighbours does the work of the query with this row of lists; Q = 0: there are no groups."""
    grouped = False
    if Q:
        grouped = tl.load(sizes + row // T * tl.cdiv(T, Q) + row % T // Q) > 0
    return grouped


@jit(do_not_specialize=["LISTS"])
def attend_forward(
    q, k, v, selected, sizes, out, lse, T, H, G, K, LISTS, BLOCKS, scale, D: tl.constexpr, WIDE: tl.constexpr,
    P: tl.constexpr, WIDE_P: tl.constexpr, M: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program is one query, unless a group has it, and the heads that `_place` gives it. Of LISTS lists, a batch
    row's or all rows', the query has number row % LISTS."""
    row, batch, t, g, h, heads = _place(T, H, G, BLOCKS, M)
    if in_group(sizes, row % LISTS, T, Q):
        return
    d = tl.arange(0, WIDE)
    at = (row.to(tl.int64) * H + h)[:, None] * D + d[None, :]
    mask = heads[:, None] & (d < D)[None, :]
    q_MD, q_MP = load_queries(q, row.to(tl.int64) * H + h, heads, D, WIDE, P, WIDE_P)
    k += (batch * T * G + g) * (D + P)
    if P == 0:
        v += (batch * T * G + g) * D
    selected += (row % LISTS).to(tl.int64) * K
    top = tl.full((M,), -float("inf"), dtype=tl.float32)
    mass = tl.zeros((M,), dtype=tl.float32)
    total = tl.zeros((M, WIDE), dtype=tl.float32)
    for n0 in range(0, K, N):
        s, keep = load_slots(selected, n0 + tl.arange(0, N), t, K)
        k_ND = gather(k, s, keep, G * (D + P), D, WIDE)
        score = tl.dot(q_MD, tl.trans(k_ND), input_precision=PRECISION)
        if P:
            v_ND = k_ND
            k_NP = gather(k + D, s, keep, G * (D + P), P, WIDE_P)
            score = tl.dot(q_MP, tl.trans(k_NP), score, input_precision=PRECISION)
        else:
            v_ND = gather(v, s, keep, G * D, D, WIDE)
        score *= scale * LOG2E
        score = tl.where(keep[None, :], score, -float("inf"))
        above = tl.maximum(top, tl.max(score, axis=1))
        finite = tl.where(above == -float("inf"), 0.0, above)  # a block of empty slots first
        p = tl.exp2(score - finite[:, None])
        shrink = tl.exp2(top - finite)
        mass = mass * shrink + tl.sum(p, axis=1)
        total = total * shrink[:, None] + tl.dot(p.to(v_ND.dtype), v_ND, input_precision=PRECISION)
        top = above
    some = mass > 0
    mass = tl.where(some, mass, 1.0)
    total = total / mass[:, None]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)
    value = tl.where(some, (top + tl.log2(mass)) / LOG2E, -float("inf"))
    tl.store(lse + row.to(tl.int64) * H + h, value, mask=heads)


@jit
def _first_from(selected, key, K):
    """The first slot whose key is `key` or beyond, in a row of ascending keys with the empty slots last."""
    low = 0 * K
    high = K + low
    while low < high:
        middle = (low + high) // 2
        s = tl.load(selected + middle)
        before = (s >= 0) & (s < key)
        low = tl.where(before, middle + 1, low)
        high = tl.where(before, high, middle)
    return low


@jit(do_not_specialize=["LISTS", "from_key", "to_key"])
def attend_backward(
    q, k, v, selected, sizes, out, lse, d_out, d_q, d_k, d_v, scale_k, scale_v, T, H, G, K, LISTS, BLOCKS, scale,
    from_key, to_key, D: tl.constexpr, WIDE: tl.constexpr, P: tl.constexpr, WIDE_P: tl.constexpr, M: tl.constexpr,
    N: tl.constexpr, Q: tl.constexpr, PRECISION: tl.constexpr, FIXED: tl.constexpr, RANGED: tl.constexpr,
):  # fmt: skip
    """RANGED: only the slots whose keys lie in [from_key, to_key) take part, and dQ is added to what is there.

    P = 0: dS lacks the scale, and so does what is added to d_k. Else both gradients of a latent are one sum, and dS has
    it.
    """
    row, batch, t, g, h, heads = _place(T, H, G, BLOCKS, M)
    if in_group(sizes, row % LISTS, T, Q):
        return
    d = tl.arange(0, WIDE)
    at = (row.to(tl.int64) * H + h)[:, None] * D + d[None, :]
    mask = heads[:, None] & (d < D)[None, :]
    q_MD, q_MP = load_queries(q, row.to(tl.int64) * H + h, heads, D, WIDE, P, WIDE_P)
    d_out_MD = tl.load(d_out + at, mask=mask, other=0.0)
    delta = tl.sum(d_out_MD.to(tl.float32) * tl.load(out + at, mask=mask, other=0.0).to(tl.float32), axis=1)
    base = tl.load(lse + row.to(tl.int64) * H + h, mask=heads, other=float("inf")) * LOG2E
    base = tl.where(base == -float("inf"), float("inf"), base)  # no key at all: P is 0
    start = (batch * T * G + g) * (D + P)
    k += start
    if P == 0:
        v += start
    p_ = tl.arange(0, WIDE_P)
    d_q_MP = tl.zeros((M, WIDE_P), dtype=tl.float32)
    selected += (row % LISTS).to(tl.int64) * K
    d_q_MD = tl.zeros((M, WIDE), dtype=tl.float32)
    begin = 0 * K
    end = K + begin
    if RANGED:
        if t < from_key:
            return
        begin = _first_from(selected, from_key, K)
        end = _first_from(selected, to_key, K)
    for n0 in range(begin, end, N):
        s, keep = load_slots(selected, n0 + tl.arange(0, N), t, end)
        k_ND = gather(k, s, keep, G * (D + P), D, WIDE)
        score = tl.dot(q_MD, tl.trans(k_ND), input_precision=PRECISION)
        if P:
            v_ND = k_ND
            k_NP = gather(k + D, s, keep, G * (D + P), P, WIDE_P)
            score = tl.dot(q_MP, tl.trans(k_NP), score, input_precision=PRECISION)
        else:
            v_ND = gather(v, s, keep, G * D, D, WIDE)
        score *= scale * LOG2E
        p = tl.where(keep[None, :], tl.exp2(score - base[:, None]), 0.0)
        d_p = tl.dot(d_out_MD, tl.trans(v_ND), input_precision=PRECISION)
        d_score = p * (d_p - delta[:, None])
        if P:
            d_score *= scale
        d_score = d_score.to(q_MD.dtype)
        d_q_MD += tl.dot(d_score, k_ND, input_precision=PRECISION)
        to = start + s.to(tl.int64)[:, None] * (G * (D + P))
        kept = keep[:, None] & (d < D)[None, :]
        d_v_ND = tl.dot(tl.trans(p.to(q_MD.dtype)), d_out_MD, input_precision=PRECISION)
        if P:
            d_k_ND = tl.dot(tl.trans(d_score), q_MD, d_v_ND, input_precision=PRECISION)
            d_q_MP += tl.dot(d_score, k_NP, input_precision=PRECISION)
            d_k_NP = tl.dot(tl.trans(d_score), q_MP, input_precision=PRECISION)
            accumulate.add(d_k + D, to + p_[None, :], d_k_NP, keep[:, None] & (p_ < P)[None, :], scale_k, FIXED)
        else:
            accumulate.add(d_v, to + d[None, :], d_v_ND, kept, scale_v, FIXED)
            d_k_ND = tl.dot(tl.trans(d_score), q_MD, input_precision=PRECISION)
        accumulate.add(d_k, to + d[None, :], d_k_ND, kept, scale_k, FIXED)
    if P == 0:
        d_q_MD *= scale
    store_queries(d_q, row.to(tl.int64) * H + h, heads, d_q_MD, d_q_MP, D, WIDE, P, WIDE_P, RANGED)
