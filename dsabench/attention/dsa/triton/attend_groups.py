"""The kernels of `attend` for groups of neighbouring queries that share their keys (see `unions`).

A program is a group of Q queries with all heads that share a KV head: Q x HEADS rows of a product, 64 for 4 queries of
16 heads, which fill a wgmma tile. Each key of their union is gathered once and added to once.

Time on the H200 at L = 65,536, k = 2048, H = 16, G = 1, D = 64, unions of 2.24 k on the mean for 4 queries (ms; in
brackets one query a program). Backward, predicted: atomics of 512 bytes a key of a union, 38 GB, 11.7 at 3.3 TB/s;
products 3.1 TFLOP, 9 at 350 TFLOP/s beside them; 12 to 14. Measured: 12.6 (20.9); with unions of 1.9 k 10.9. Forward:
gathers of 19 GB 2.5, products 1.2 TFLOP 3.4; measured 3.9 (4.15), with 1.9 k 3.35. D = 128: backward 30.0 (43.1),
forward 7.4 (9.1). L = 131,072, 2.48 k: backward 27.6 (42.6), forward 8.5 (8.3). 8 heads, 8 queries, 3.1 k: 8.7 (21.2),
3.0 (4.3). 8 KV heads of one head each, 8 queries, 8 windows of 4096 with k = 256: 3.4 (10.5), 1.2 (2.7).

What helped the backward pass, in this order: three programs an SM by 168 registers (15.1 to 13.9); heads as rows of the
products (13.0: a row's logsumexp and delta take 2 registers, a column's 16); words that are loaded once for all
layouts, additions without masks (800 to 618 instructions a block, but 12.6 only: the atomics are the limit). One stage
of wide heads, for two programs an SM (33.7 to 29.3).
What did not: keys as rows (13.9 at best); blocks of 32 keys (18.4) or 128 (17.8); 8 warps (24.9); 8 queries of 16 heads
(18.5: registers spill); 2 queries (15.7, the floor of their atomics); 3 stages, all registers (12.9; 8 heads 9.3);
ranges of keys (13.3; D = 128: 32.0); 4 programs an SM by 128 registers (18.1). Forward: blocks of 128 keys (4.3), of 32
(5.0), 3 stages (4.5), 1 stage (4.9).

Legend: B batch, T query, S key, H query heads, G key/value heads, D head width, Q queries of a group, M = Q x HEADS
rows of products, N words of a block, C words of a group.
"""

from __future__ import annotations

import triton.language as tl

from dsabench.attention.dsa.triton import accumulate
from dsabench.attention.dsa.triton.attend_kernels import LOG2E, load_queries, store_queries
from dsabench.attention.dsa.triton.lse import exp2
from dsabench.attention.dsa.triton.unions import first_from, keys_of, load_words
from dsabench.ops.triton.jit import jit


@jit
def rows_of(unit, g, T, H, G, n_blocks, Q: tl.constexpr, HEADS: tl.constexpr):
    """A group's first token in all batch rows, its batch row's, and of its rows the member, head and whether it is."""
    m = tl.arange(0, Q * HEADS)
    t0 = unit % n_blocks * Q
    batch = (unit // n_blocks).to(tl.int64) * T
    member = m // HEADS
    there = (m % HEADS < H // G) & (t0 + member < T)
    return batch, (batch + t0 + member) * H + g * (H // G) + m % HEADS, member, there


@jit
def gather32(x, s, keep, stride, D: tl.constexpr, WIDE: tl.constexpr):
    """Rows s of x, [N, WIDE], at offsets of 32 bits; 0 where not kept."""
    d = tl.arange(0, WIDE)
    return tl.load(x + (s[:, None] * stride + d[None, :]), mask=keep[:, None] & (d < D)[None, :], other=0.0)


@jit
def add_rows(total, s, x_ND, scale, stride, D: tl.constexpr, WIDE: tl.constexpr, FIXED: tl.constexpr):
    """Rows s of total += x."""
    d = tl.arange(0, WIDE)
    to = s[:, None] * stride + d[None, :]
    if D == WIDE:
        accumulate.add(total, to, x_ND, None, scale, FIXED)
    else:
        accumulate.add(total, to, x_ND, (d < D)[None, :], scale, FIXED)


@jit(do_not_specialize=["n_lists"])
def forward_group(
    q, k, v, words, sizes, out, lse, T, H, G, C, n_lists, n_blocks, scale, D: tl.constexpr, WIDE: tl.constexpr,
    P: tl.constexpr, WIDE_P: tl.constexpr, HEADS: tl.constexpr, Q: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """A program is a group, unless its queries go by themselves, and the heads of one KV head. Of n_lists unions, a
    batch row's or all rows', it has number unit % n_lists."""
    unit, g = tl.program_id(0) // G, tl.program_id(0) % G
    end = tl.load(sizes + unit % n_lists)
    if end == 0:
        return
    batch, row, member, there = rows_of(unit, g, T, H, G, n_blocks, Q, HEADS)
    d = tl.arange(0, WIDE)
    at = row[:, None] * D + d[None, :]
    mask = there[:, None] & (d < D)[None, :]
    q_MD, q_MP = load_queries(q, row, there, D, WIDE, P, WIDE_P)
    k += (batch * G + g) * (D + P)
    if P == 0:
        v += (batch * G + g) * D
    words += (unit % n_lists).to(tl.int64) * C
    mine = 1 << member
    top = tl.full((Q * HEADS,), -float("inf"), dtype=tl.float32)
    mass = tl.zeros((Q * HEADS,), dtype=tl.float32)
    total = tl.zeros((Q * HEADS, WIDE), dtype=tl.float32)
    n = tl.arange(0, N)
    word_N2 = load_words(words, n, end, N)
    for n0 in range(0, end, N):
        s, who = keys_of(word_N2, 0)
        word_N2 = load_words(words, n0 + N + n, end, N)
        k_ND = gather32(k, s, who != 0, G * (D + P), D, WIDE)
        score = tl.dot(q_MD, tl.trans(k_ND), input_precision=PRECISION)
        if P:
            v_ND = k_ND
            k_NP = gather32(k + D, s, who != 0, G * (D + P), P, WIDE_P)
            score = tl.dot(q_MP, tl.trans(k_NP), score, input_precision=PRECISION)
        else:
            v_ND = gather32(v, s, who != 0, G * D, D, WIDE)
        score = tl.where((who[None, :] & mine[:, None]) != 0, score, -float("inf"))
        above = tl.maximum(top, tl.max(score, axis=1) * (scale * LOG2E))
        finite = tl.where(above == -float("inf"), 0.0, above)
        p = exp2(score * (scale * LOG2E) - finite[:, None], FAST)
        shrink = tl.exp2(top - finite)
        mass = mass * shrink + tl.sum(p, axis=1)
        total = total * shrink[:, None] + tl.dot(p.to(v_ND.dtype), v_ND, input_precision=PRECISION)
        top = above
    some = mass > 0
    mass = tl.where(some, mass, 1.0)
    tl.store(out + at, (total / mass[:, None]).to(out.dtype.element_ty), mask=mask)
    tl.store(lse + row, tl.where(some, (top + tl.log2(mass)) / LOG2E, -float("inf")), mask=there)


@jit(do_not_specialize=["n_lists", "from_key", "to_key"])
def backward_group(
    q, k, v, words, sizes, out, lse, d_out, d_q, d_k, d_v, scale_k, scale_v, T, H, G, C, n_lists, n_blocks, scale,
    from_key, to_key, D: tl.constexpr, WIDE: tl.constexpr, P: tl.constexpr, WIDE_P: tl.constexpr, HEADS: tl.constexpr,
    Q: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr, FIXED: tl.constexpr, RANGED: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """RANGED: only words whose keys lie in [from_key, to_key) take part, and dQ is added to what is there. The scale is
    where attend_backward has it."""
    unit, g = tl.program_id(0) // G, tl.program_id(0) % G
    end = tl.load(sizes + unit % n_lists)
    if end == 0:
        return
    batch, row, member, there = rows_of(unit, g, T, H, G, n_blocks, Q, HEADS)
    d = tl.arange(0, WIDE)
    n = tl.arange(0, N)
    at = row[:, None] * D + d[None, :]
    mask = there[:, None] & (d < D)[None, :]
    words += (unit % n_lists).to(tl.int64) * C
    begin = 0 * end
    if RANGED:
        begin = first_from(words, from_key, end)
        end = first_from(words, to_key, end)
        if begin == end:
            return
    q_MD, q_MP = load_queries(q, row, there, D, WIDE, P, WIDE_P)
    d_out_MD = tl.load(d_out + at, mask=mask, other=0.0)
    delta = tl.sum(d_out_MD.to(tl.float32) * tl.load(out + at, mask=mask, other=0.0).to(tl.float32), axis=1)
    base = tl.load(lse + row, mask=there, other=float("inf")) * LOG2E
    base = tl.where(base == -float("inf"), float("inf"), base)  # no key at all: P is 0
    start = (batch * G + g) * (D + P)
    k += start
    d_k += start
    if P == 0:
        v += start
        d_v += start
    d_q_MP = tl.zeros((Q * HEADS, WIDE_P), dtype=tl.float32)
    mine = 1 << member
    spare = (unit % n_blocks * Q + n) % T
    d_q_MD = tl.zeros((Q * HEADS, WIDE), dtype=tl.float32)
    word_N2 = load_words(words, begin + n, end, N)
    for n0 in range(begin, end, N):
        s, who = keys_of(word_N2, spare)
        word_N2 = load_words(words, n0 + N + n, end, N)
        k_ND = gather32(k, s, who != 0, G * (D + P), D, WIDE)
        score = tl.dot(q_MD, tl.trans(k_ND), input_precision=PRECISION)
        if P:
            v_ND = k_ND
            k_NP = gather32(k + D, s, who != 0, G * (D + P), P, WIDE_P)
            score = tl.dot(q_MP, tl.trans(k_NP), score, input_precision=PRECISION)
        else:
            v_ND = gather32(v, s, who != 0, G * D, D, WIDE)
        score *= scale * LOG2E
        p = tl.where((who[None, :] & mine[:, None]) != 0, exp2(score - base[:, None], FAST), 0.0)
        d_p = tl.dot(d_out_MD, tl.trans(v_ND), input_precision=PRECISION)
        d_score = p * (d_p - delta[:, None])
        if P:
            d_score *= scale
        d_score = d_score.to(q_MD.dtype)
        d_v_ND = tl.dot(tl.trans(p.to(q_MD.dtype)), d_out_MD, input_precision=PRECISION)
        if P == 0:
            add_rows(d_v, s, d_v_ND, scale_v, G * D, D, WIDE, FIXED)
        d_q_MD += tl.dot(d_score, k_ND, input_precision=PRECISION)
        if P:
            d_k_ND = tl.dot(tl.trans(d_score), q_MD, d_v_ND, input_precision=PRECISION)
            d_q_MP += tl.dot(d_score, k_NP, input_precision=PRECISION)
            d_k_NP = tl.dot(tl.trans(d_score), q_MP, input_precision=PRECISION)
            add_rows(d_k + D, s, d_k_NP, scale_k, G * (D + P), P, WIDE_P, FIXED)
        else:
            d_k_ND = tl.dot(tl.trans(d_score), q_MD, input_precision=PRECISION)
        add_rows(d_k, s, d_k_ND, scale_k, G * (D + P), D, WIDE, FIXED)
    if P == 0:
        d_q_MD *= scale
    store_queries(d_q, row, there, d_q_MD, d_q_MP, D, WIDE, P, WIDE_P, RANGED)
