"""The indexer's KL loss of the dense warm-up stage: over all keys that a query may see, streamed in tiles.

    loss = mean_t sum_{s <= t} p log(p / softmax(I))      p[t,s] = mean_h exp(Q[t,h] . K[s] / sqrt(D) - lse[t,h])
    dI = (softmax(I) - p) / (B T)

A program is a block of queries: for each tile of keys it recomputes every head's probabilities and the index scores,
whose logsumexps are known, and has the loss and dI of the tile; nothing of L x L elements exists. Gradients of the
block's own q are added to memory tile by tile, in order; those of the keys by atomics, or in fixed point. What is
added for q, u = sum_s dI 1[q . k > 0] k, gives two gradients afterwards, d_q = w u and d_w = q . u, and spares the
loops the row sums and the factor: the keys' gradient is the same masked dI times w q.

Time on the H100 at L = 65,536, H = 16, D = 64, J = 4, I = 64 (predicted, in ms): 2.15e9 pairs. Tensor cores: 4096 FLOP
a pair, 8.8 TFLOP, 9 at the peak and 18 at 500 TFLOP/s. Exponentials: 18 a pair at 132 x 16 a clock, 11. Instructions
besides: 95 a pair on 132 x 128 lanes, 7 beside them. L2: a tile of 128 x 128 reads 256 KB of q, 192 of the indexer's q
and 32 of keys, and adds 160 KB, 84 GB, 15 at 5.5 TB/s; tiles of 64 keys double it. 25 if these overlap by half, of a
stage whose attention takes 71. Two logsumexps before it: 3 for the indexer's, 13 for the attention's where it is not
given. Measured: 45.6, 61 for all three (D = 128: 58 and 80). Of 64 x 64 tiles, whose exponentials kept denormals and
which loaded K anew for each head: 103. Tiles of 128 x 64 take 70, of 64 x 64 67: L2 is what binds. Every fourth
exponential by a polynomial, to spare the unit that takes them, gave 1.6 per cent and was not kept.

Legend: as in `kl`; T block of queries, S block of keys.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsabench.attention.dsa.reference import document_starts
from dsabench.attention.dsa.triton import accumulate
from dsabench.attention.dsa.triton.attend_kernels import LOG2E
from dsabench.attention.dsa.triton.kl import gradients, loss_gradients, setup_loss
from dsabench.attention.dsa.triton.lse import attention_lse, exp2, fast, index_lse, last_keys, log2, padded, rows_of
from dsabench.attention.dsa.triton.tiles import check, precision
from dsabench.ops.triton.jit import jit
from dsabench.ops.triton.least import LEAST


class Tiling(NamedTuple):
    """How the work is cut: results do not depend on it, but for rounding."""

    queries: int = 128
    keys: int = 128
    warps: int = 8
    stages: int = 3
    registers: int | None = None
    """Most registers of a thread: fewer let more programs share an SM."""
    ahead: bool = True
    """A head's product runs on the tensor cores while the exponentials of the head before it are taken."""

    @classmethod
    def of(cls, q_BTHD: Tensor, k_BSI: Tensor) -> Tiling:
        """One that fits these widths."""
        if q_BTHD.dtype == torch.bfloat16 and q_BTHD.shape[3] <= 128 and k_BSI.shape[2] <= 64:
            return cls(ahead=q_BTHD.shape[3] <= 64)  # at 128 the product that waits takes registers that are short
        rows = rows_of(q_BTHD, k_BSI)
        return cls(rows, rows, warps=4, stages=2, ahead=False)


@jit
def _target(
    q, k, k_DS, lse, at_q, at_k, x, L, H, G, scale, D: tl.constexpr, T: tl.constexpr, S: tl.constexpr,
    PRECISION: tl.constexpr, ONE: tl.constexpr, FAST: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """The sum of every head's probabilities of a tile, [T, S]; keys that a row may not see get any number.

    k_DS are the first KV head's keys.
    """
    scale *= LOG2E
    p = tl.zeros((T, S), dtype=tl.float32)
    if AHEAD:
        base = tl.load(lse + x)
        score = tl.dot(tl.load(q + at_q), k_DS, input_precision=PRECISION)
    for h in range(1 if AHEAD else 0, H):
        if ONE:
            key_DS = k_DS
        else:
            key_DS = tl.load(k + h // (H // G) * D + at_k)
        q_TD = tl.load(q + h * D + at_q)
        following = tl.load(lse + h * L + x)
        dots = tl.dot(q_TD, key_DS, input_precision=PRECISION)
        if AHEAD:
            p += exp2(score * scale - base[:, None], FAST)
            score = dots
            base = following
        else:
            p += exp2(dots * scale - following[:, None], FAST)
    if AHEAD:
        p += exp2(score * scale - base[:, None], FAST)
    return p


@jit
def _kl(
    q, k, lse, q_index, k_index, w_index, qw_index, start, last, index_lse, loss, d_q, d_k, scale_k, L, H, G, J,
    scale, inverse, D: tl.constexpr, DI: tl.constexpr, T: tl.constexpr, S: tl.constexpr, PRECISION: tl.constexpr,
    ONE: tl.constexpr, FAST: tl.constexpr, AHEAD: tl.constexpr, GRADS: tl.constexpr, FIXED: tl.constexpr,
    LIMIT: tl.constexpr,
):  # fmt: skip
    """ONE: all heads share one KV head. lse is (B, H, L) and index_lse (B, L), both to base 2."""
    batch = tl.program_id(1).to(tl.int64) * L
    t0 = (tl.num_programs(0) - 1 - tl.program_id(0)) * T  # the longest first
    d, i = tl.arange(0, D), tl.arange(0, DI)
    t = t0 + tl.arange(0, T)
    # What lies beyond the last row is the last row again, which may see nothing there: loads and sums need no mask.
    x = tl.minimum(t, L - 1) - t0
    first = tl.where(t < L, tl.load(start + batch + t0 + x), 2147483647)
    end = last_keys(last + batch, t0 + x, LIMIT)
    index_base = tl.load(index_lse + batch + t0 + x)
    # A block's rows lie within 32 bits of its first one; the tensors do not.
    q += (batch + t0) * H * D
    lse += batch * H + t0
    k += batch * G * D
    q_index += (batch + t0) * J * DI
    qw_index += (batch + t0) * J * DI
    d_q += (batch + t0) * J * DI
    w_index += (batch + t0) * J
    k_index += batch * DI
    d_k += batch * DI
    at_q = x[:, None] * (H * D) + d[None, :]
    at_index = x[:, None] * (J * DI) + i[None, :]
    total = tl.zeros((T,), dtype=tl.float32)
    inner, outer = tl.max(first, axis=0), tl.min(end, axis=0) + 1  # every row may see these keys
    for s0 in range(tl.min(first, axis=0) // S * S, tl.max(end, axis=0) + 1, S):
        s = s0 + tl.arange(0, S)
        y = tl.minimum(s, L - 1).to(tl.int64)
        k_IS = tl.load(k_index + y[None, :] * DI + i[:, None])
        at_k = y[None, :] * G * D + d[:, None]
        k_DS = tl.load(k + at_k)
        p = _target(q, k, k_DS, lse, at_q, at_k, x, L, H, G, scale, D, T, S, PRECISION, ONE, FAST, AHEAD)
        p *= inverse
        score = tl.zeros((T, S), dtype=tl.float32)
        for j in range(0, J):
            dots = tl.dot(tl.load(q_index + j * DI + at_index), k_IS, input_precision=PRECISION)
            score += tl.maximum(dots, 0.0) * tl.load(w_index + x * J + j).to(tl.float32)[:, None]
        log_q = score * LOG2E - index_base[:, None]
        if (s0 < inner) | (s0 + S > outer):  # few tiles; the others need no mask
            allowed = (s[None, :] <= end[:, None]) & (s[None, :] >= first[:, None])
            p = tl.where(allowed, p, 0.0)
            log_q = tl.where(allowed, log_q, -1e30)  # 0 x it is 0, not NaN
        total += tl.sum(p * (log2(tl.maximum(p, LEAST), FAST) - log_q), axis=1)
        if GRADS:
            d_score = exp2(log_q, FAST) - p
            d_k_SI = tl.zeros((S, DI), dtype=tl.float32)
            for j in range(0, J):
                q_TI = tl.load(q_index + j * DI + at_index)
                qw_TI = tl.load(qw_index + j * DI + at_index)
                dots = tl.dot(q_TI, k_IS, input_precision=PRECISION)
                d_dots = tl.where(dots > 0, d_score, 0.0).to(q_TI.dtype)
                d_k_SI = tl.dot(tl.trans(d_dots), qw_TI, d_k_SI, input_precision=PRECISION)
                d_q_TI = tl.dot(d_dots, tl.trans(k_IS), input_precision=PRECISION)
                tl.atomic_add(d_q + j * DI + at_index, d_q_TI, sem="relaxed")
            accumulate.add(d_k, y[:, None] * DI + i[None, :], d_k_SI, None, scale_k, FIXED)
    tl.store(loss + batch + t, total / LOG2E, mask=t < L)


def dense_kl(
    q_BTHD: Tensor, k_BSGD: Tensor, q_BTJI: Tensor, k_BSI: Tensor, w_BTJ: Tensor,
    document_ids_BT: Tensor | None = None, lse_BTH: Tensor | None = None, deterministic: bool | None = None,
    last_BT: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Mean over queries of KL(p[t] || softmax(I[t])) over s <= t in the query's document, in nats: a scalar, fp32.

    q and k are the attention's, detached here; lse (B, T, H) its scaled scores' logsumexp over those keys, computed
    when None. Gradients go to the indexer's q, k and w. `deterministic` as for `attend`.

    last, int32: the loss is over s <= last[t] alone, where last[t] <= t; a query whose last key is the one before its
    document has no loss. p is normalised by the mass on these keys: mean_h of probabilities over all keys, divided by
    its sum.
    """
    check(q_BTHD, k_BSGD, q_BTJI, k_BSI, w_BTJ)
    if document_ids_BT is None:
        start_BT = torch.zeros(q_BTHD.shape[:2], dtype=torch.int32, device=q_BTHD.device)
    else:
        start_BT = document_starts(document_ids_BT)
    q_BTHD, k_BSGD = q_BTHD.detach(), k_BSGD.detach()
    lse_BTH = _attention_lse(q_BTHD, k_BSGD, start_BT) if lse_BTH is None else lse_BTH.detach().float()
    if last_BT is not None:
        last_BT = last_BT.contiguous()
        mass_BT1 = (_attention_lse(q_BTHD, k_BSGD, start_BT, last_BT) - lse_BTH).exp().mean(-1, keepdim=True)
        # A query without keys keeps its logsumexp: powers of keys that it may not see stay finite.
        lse_BTH = lse_BTH + torch.where(mass_BT1 > LEAST.value, mass_BT1, 1.0).log()
    grads = torch.is_grad_enabled() and any(x.requires_grad for x in (q_BTJI, k_BSI, w_BTJ))
    loss: Tensor = _dense_kl(
        q_BTHD, k_BSGD, lse_BTH, q_BTJI, k_BSI, w_BTJ, start_BT, grads, accumulate.deterministic(deterministic), last_BT
    )[0]  # fmt: skip
    return loss


@torch.library.custom_op("dsabench::dense_attention_lse", mutates_args=())
def _attention_lse(q_BTHD: Tensor, k_BSGD: Tensor, start_BT: Tensor, last_BT: Tensor | None = None) -> Tensor:
    return attention_lse(q_BTHD, k_BSGD, start_BT, last_BT=last_BT)


@_attention_lse.register_fake
def _(q_BTHD: Tensor, k_BSGD: Tensor, start_BT: Tensor, last_BT: Tensor | None = None) -> Tensor:
    return q_BTHD.new_empty(q_BTHD.shape[:3], dtype=torch.float32)


@torch.library.custom_op("dsabench::dense_kl", mutates_args=())
def _dense_kl(
    q_BTHD: Tensor, k_BSGD: Tensor, lse_BTH: Tensor, q_BTJI: Tensor, k_BSI: Tensor, w_BTJ: Tensor, start_BT: Tensor,
    grads: bool, deterministic: bool, last_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    index_lse_BT = index_lse(q_BTJI, k_BSI, w_BTJ, start_BT, last_BT=last_BT)
    tiling = Tiling.of(q_BTHD, k_BSI)
    return launch(
        q_BTHD, k_BSGD, lse_BTH, q_BTJI, k_BSI, w_BTJ, start_BT, index_lse_BT, grads, deterministic, tiling,
        last_BT,
    )  # fmt: skip


def launch(
    q_BTHD: Tensor, k_BSGD: Tensor, lse_BTH: Tensor, q_BTJI: Tensor, k_BSI: Tensor, w_BTJ: Tensor, start_BT: Tensor,
    index_lse_BT: Tensor, grads: bool, deterministic: bool, tiling: Tiling,
    last_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The loss and its gradients to the indexer's q, k and w, by a tiling of choice."""
    n_batch, length, n_heads, width = q_BTHD.shape
    n_index, width_i = q_BTJI.shape[2:]
    q_BTHD, k_BSGD, q_BTJI, k_BSI = (padded(x) for x in (q_BTHD, k_BSGD, q_BTJI, k_BSI))
    loss_BT = torch.empty(n_batch, length, dtype=torch.float32, device=q_BTHD.device)
    d_q, d_k, d_w = (x.zero_() for x in gradients(q_BTJI, k_BSI, w_BTJ, grads))
    total, scale_k = d_k, None
    if deterministic and grads:
        total = accumulate.zeros(tuple(k_BSI.shape), k_BSI, True)
        most = q_BTJI.abs().amax().double() * w_BTJ.abs().amax() * n_index
        scale_k = accumulate.scale_for(most, length)
    weighted = q_BTJI * w_BTJ[..., None] if grads else q_BTJI
    _kl[(triton.cdiv(length, tiling.queries), n_batch)](
        q_BTHD, k_BSGD, (lse_BTH * LOG2E.value).transpose(1, 2).contiguous(), q_BTJI, k_BSI, w_BTJ.contiguous(),
        weighted, start_BT, start_BT if last_BT is None else last_BT, index_lse_BT * LOG2E.value, loss_BT, d_q, total,
        scale_k, length, n_heads, k_BSGD.shape[2], n_index, width**-0.5, 1 / n_heads, D=q_BTHD.shape[3],
        DI=k_BSI.shape[2], T=tiling.queries, S=tiling.keys,
        PRECISION=precision(q_BTHD), ONE=k_BSGD.shape[2] == 1, FAST=fast(q_BTHD), AHEAD=tiling.ahead,
        GRADS=grads, FIXED=deterministic and grads, LIMIT=last_BT is not None,
        num_warps=tiling.warps, num_stages=tiling.stages, maxnreg=tiling.registers,
    )  # fmt: skip
    if not grads:
        return loss_BT.mean(), d_q, d_k, d_w
    # d_q holds u, the sums of dI k over the keys where a head is active.
    rows = loss_BT.numel()
    d_w = (q_BTJI * d_q).sum(-1) / rows
    d_q = (d_q * (w_BTJ[..., None] / rows))[..., :width_i].contiguous()
    d_k = accumulate.finish(total, scale_k, torch.float32)[..., :width_i] / rows
    return loss_BT.mean(), d_q, d_k.contiguous(), d_w


@_dense_kl.register_fake
def _(
    q_BTHD: Tensor, k_BSGD: Tensor, lse_BTH: Tensor, q_BTJI: Tensor, k_BSI: Tensor, w_BTJ: Tensor, start_BT: Tensor,
    grads: bool, deterministic: bool, last_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    d_q, d_k, d_w = gradients(q_BTJI, k_BSI, w_BTJ, grads)
    return lse_BTH.new_empty(()), d_q, d_k, d_w


_dense_kl.register_autograd(
    lambda ctx, *grads: (None, None, None, *loss_gradients(ctx, *grads), None, None, None, None),
    setup_context=setup_loss,
)
