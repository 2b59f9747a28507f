"""The kernel of `kl` for groups of neighbouring queries that share their keys (see `unions`).

Time on the H200 at L = 65,536, k = 2048, H = 16, D = 64, J = 4, I = 64, unions of 2.24 k for 4 queries (ms; in
brackets one query a program). Predicted: atomics of 256 bytes a key of a union, 19 GB, 5.8 at 3.3 TB/s, gathers 2.4,
products 3 beside them: 8. Measured: 7.5 (14.0), with unions of 1.9 k 6.5. D = 128: 9.7 (14.8). 8 heads, 8 queries,
3.1 k: 6.9 (13.9). What did not help: 128 registers for a fourth program (8.4), 128 keys a block (9.6 to 12.5), 8
queries of 16 heads (20).

Not taken: the loss in the attention's backward pass, which has the same probabilities. That would save one of two
gathers and one of four products, about 2 ms; but the loss is wanted in the forward pass, where the output's gradient is
not known.

Legend: B batch, T query, S key, H query heads, G key/value heads, D head width, J indexer heads, I (DI in code) indexer
width, Q queries of a group, N words of a block, C words of a group.
"""

from __future__ import annotations

import triton.language as tl

from dsabench.attention.dsa.triton.attend_groups import add_rows, gather32, rows_of
from dsabench.attention.dsa.triton.attend_kernels import LOG2E, load_queries
from dsabench.attention.dsa.triton.lse import exp2, log2
from dsabench.attention.dsa.triton.unions import keys_of, load_words
from dsabench.ops.triton.jit import jit
from dsabench.ops.triton.least import LEAST


@jit
def _load_attention(
    q, lse, unit, g, T, H, G, n_blocks, D: tl.constexpr, WIDE: tl.constexpr, P: tl.constexpr, WIDE_P: tl.constexpr,
    Q: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Queries of the heads that share KV head g as columns, [WIDE, Q HEADS] and, of latents, [WIDE_P, Q HEADS], and
    their logsumexp to base 2."""
    _, row, _, there = rows_of(unit, g, T, H, G, n_blocks, Q, HEADS)
    q_MD, q_MP = load_queries(q, row, there, D, WIDE, P, WIDE_P)
    base = tl.load(lse + row, mask=there, other=float("inf")) * LOG2E
    return tl.trans(q_MD), tl.trans(q_MP), tl.where(base == -float("inf"), float("inf"), base)


@jit
def _dots(
    k, s, keep, q_DM, q_PM, stride, D: tl.constexpr, WIDE: tl.constexpr, P: tl.constexpr, WIDE_P: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """k[s] . q, [N, Q HEADS]."""
    dots = tl.dot(gather32(k, s, keep, stride, D, WIDE), q_DM, input_precision=PRECISION)
    if P:
        dots = tl.dot(gather32(k + D, s, keep, stride, P, WIDE_P), q_PM, dots, input_precision=PRECISION)
    return dots


@jit
def _of_each_query(x, N: tl.constexpr, Q: tl.constexpr, HEADS: tl.constexpr):
    """Sums over heads: [N, Q HEADS] to [N, Q]."""
    return tl.sum(tl.reshape(x, (N, Q, HEADS)), axis=2)


@jit
def kl_group(
    q, k, lse, q_index, k_index, w_index, words, sizes, index_lse, loss, d_q, d_k, d_w, scale_k, T, H, G, C, n_blocks,
    scale, inverse, ONE: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, P: tl.constexpr, WIDE_P: tl.constexpr,
    HEADS: tl.constexpr, J: tl.constexpr, DI: tl.constexpr, WIDE_I: tl.constexpr, MJ: tl.constexpr, Q: tl.constexpr,
    N: tl.constexpr, PRECISION: tl.constexpr, GRADS: tl.constexpr, FIXED: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """ONE: all heads share one KV head, so their queries stay on chip. MJ: the columns of an indexer's query."""
    unit = tl.program_id(0)
    end = tl.load(sizes + unit)
    if end == 0:
        return
    batch, row, _, there = rows_of(unit, 0, T, J, 1, n_blocks, Q, MJ)
    i = tl.arange(0, WIDE_I)
    at = row[:, None] * DI + i[None, :]
    mask = there[:, None] & (i < DI)[None, :]
    q_MI = tl.load(q_index + at, mask=mask, other=0.0)
    q_IM = tl.trans(q_MI)
    w_M = tl.load(w_index + row, mask=there, other=0.0).to(tl.float32)
    j = tl.arange(0, Q)
    token = batch + unit % n_blocks * Q + j
    within = unit % n_blocks * Q + j < T
    index_base = tl.load(index_lse + token, mask=within, other=0.0)
    k += batch * G * (D + P)
    k_index += batch * DI
    d_k += batch * DI
    words += unit.to(tl.int64) * C
    q_DM, q_PM, base = _load_attention(q, lse, unit, 0, T, H, G, n_blocks, D, WIDE, P, WIDE_P, Q, HEADS)
    per_head = 1.0 / H
    total = tl.zeros((N, Q), dtype=tl.float32)
    d_q_IM = tl.zeros((WIDE_I, Q * MJ), dtype=tl.float32)
    d_w_NM = tl.zeros((N, Q * MJ), dtype=tl.float32)
    n = tl.arange(0, N)
    spare = (unit % n_blocks * Q + n) % T
    word_N2 = load_words(words, n, end, N)
    for n0 in range(0, end, N):
        s, who = keys_of(word_N2, spare)
        word_N2 = load_words(words, n0 + N + n, end, N)
        keep = who != 0
        k_NI = gather32(k_index, s, keep, DI, DI, WIDE_I)
        if ONE:
            score = _dots(k, s, keep, q_DM, q_PM, D + P, D, WIDE, P, WIDE_P, PRECISION) * (scale * LOG2E)
            p = _of_each_query(exp2(score - base[None, :], FAST), N, Q, HEADS)
        else:
            p = tl.zeros((N, Q), dtype=tl.float32)
            for g in range(0, G):
                q_DM, q_PM, base = _load_attention(q, lse, unit, g, T, H, G, n_blocks, D, WIDE, P, WIDE_P, Q, HEADS)
                k_ = k + g * (D + P)
                score = _dots(k_, s, keep, q_DM, q_PM, G * (D + P), D, WIDE, P, WIDE_P, PRECISION) * (scale * LOG2E)
                p += _of_each_query(exp2(score - base[None, :], FAST), N, Q, HEADS)
        member = (who[:, None] & (1 << j)[None, :]) != 0
        dots = tl.dot(k_NI, q_IM, input_precision=PRECISION)
        relu = tl.maximum(dots, 0.0)
        # Both distributions to base 2.
        p = tl.where(member, p * per_head, 0.0)
        log_q = (_of_each_query(relu * w_M[None, :], N, Q, MJ) - index_base[None, :]) * LOG2E
        log_q = tl.where(member, log_q, 0.0)
        total += p * (log2(tl.maximum(p, LEAST), FAST) - log_q)
        if GRADS:
            d_score = tl.where(member, exp2(log_q, FAST) - p, 0.0)
            d_score_NM = tl.reshape(tl.broadcast_to(d_score[:, :, None], (N, Q, MJ)), (N, Q * MJ))
            d_w_NM += relu * d_score_NM
            d_dots = tl.where(dots > 0, d_score_NM * w_M[None, :], 0.0).to(k_NI.dtype)
            d_k_NI = tl.dot(d_dots, q_MI, input_precision=PRECISION)
            add_rows(d_k, s, d_k_NI, scale_k, DI, DI, WIDE_I, FIXED)
            d_q_IM += tl.dot(tl.trans(k_NI), d_dots, input_precision=PRECISION)
    tl.store(loss + token, tl.sum(total, axis=0) / LOG2E, mask=within)
    if GRADS:
        tl.store(d_q + at, tl.trans(d_q_IM) * inverse, mask=mask)
        tl.store(d_w + row, tl.sum(d_w_NM, axis=0) * inverse, mask=there)
