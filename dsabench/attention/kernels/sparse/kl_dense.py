"""The indexer's KL loss of the dense warm-up stage: over all keys that a query may see, streamed in tiles.

    loss = mean_t sum_{s <= t} p log(p / softmax(I))      p[t,s] = mean_h exp(Q[t,h] . K[s] / sqrt(D) - lse[t,h])
    dI = (softmax(I) - p) / (B T)

A program is a block of queries: for each tile of keys it recomputes every head's probabilities and the index scores,
whose logsumexps are known, and has the loss and dI of the tile; nothing of L x L elements exists. Gradients of the
block's own q and w are added to memory tile by tile, in order; those of the keys by atomics, or in fixed point.

Time on the H100 at L = 65,536, H = 16, D = 64, J = 4, I = 64 (predicted, in ms): 2.1e9 pairs x 4096 FLOP (heads 2048,
scores 512, again 512, q and k 1024) at 300 TFLOP/s: 29; 16 exponentials a pair: 10, beside it; own and key gradients
through L2, 80 KB a tile of 64 x 64: 10. 35 to 50, of a stage whose attention takes 71. Two logsumexps before it: 3 for
the indexer's, 20 for the attention's where it is not given.

Legend: as in `kl`; T block of queries, S block of keys.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsabench.attention.kernels.sparse import adding
from dsabench.attention.kernels.sparse.attend_kernels import LOG2E
from dsabench.attention.kernels.sparse.kl import gradients, loss_gradients, setup_loss
from dsabench.attention.kernels.sparse.lse import attention_lse, index_lse, rows_of
from dsabench.attention.kernels.sparse.tiles import check, load_keys, power_of_two, precision, score_tile
from dsabench.attention.kernels.sparse.top_k import document_starts


@triton.jit
def _kl(
    q, k, lse, q_index, k_index, w_index, start, index_lse, loss, d_q, d_k, d_w, scale_k, L, H, G, scale,
    D: tl.constexpr, WIDE: tl.constexpr, J: tl.constexpr, DI: tl.constexpr, WIDE_I: tl.constexpr, T: tl.constexpr,
    PRECISION: tl.constexpr, GRADS: tl.constexpr, FIXED: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64) * L
    t = (tl.num_programs(0) - 1 - tl.program_id(0)) * T + tl.arange(0, T)  # the longest first
    rows = t < L
    first = tl.load(start + batch + t, mask=rows, other=L)
    index_base = tl.load(index_lse + batch + t, mask=rows, other=0.0)
    q_index += batch * J * DI
    k_index += batch * DI
    w_index += batch * J
    d, i = tl.arange(0, WIDE), tl.arange(0, WIDE_I)
    total = tl.zeros((T,), dtype=tl.float32)
    for s0 in range(tl.min(first, axis=0) // T * T, tl.minimum(tl.max(t, axis=0) + 1, L), T):
        s = s0 + tl.arange(0, T)
        allowed = (s[None, :] <= t[:, None]) & (s[None, :] >= first[:, None])
        p = tl.zeros((T, T), dtype=tl.float32)
        for h in range(0, H):
            at = ((batch + t) * H + h)[:, None] * D + d[None, :]
            q_TD = tl.load(q + at, mask=rows[:, None] & (d < D)[None, :], other=0.0)
            key = ((batch + s) * G + h // (H // G))[None, :] * D + d[:, None]
            k_DS = tl.load(k + key, mask=(s < L)[None, :] & (d < D)[:, None], other=0.0)
            base = tl.load(lse + (batch + t) * H + h, mask=rows, other=float("inf")) * LOG2E
            score = tl.dot(q_TD, k_DS, input_precision=PRECISION) * (scale * LOG2E)
            p += tl.exp2(tl.where(allowed, score - base[:, None], -float("inf")))
        p = p / H
        k_IS = load_keys(k_index, s, L, DI, WIDE_I)
        score = score_tile((), (), q_index, w_index, t, k_IS, L, J, DI, WIDE_I, 0, T, T, PRECISION)
        log_q = tl.where(allowed, score - index_base[:, None], 0.0)
        total += tl.sum(tl.where(p > 0, p * (tl.log(tl.where(p > 0, p, 1.0)) - log_q), 0.0), axis=1)
        if GRADS:
            d_score = tl.where(allowed, tl.exp(log_q) - p, 0.0)
            d_k_SI = tl.zeros((T, WIDE_I), dtype=tl.float32)
            own = rows[:, None] & (i < DI)[None, :]
            for j in range(0, J):
                head = t.to(tl.int64) * J + j
                at = head[:, None] * DI + i[None, :]
                q_TI = tl.load(q_index + at, mask=own, other=0.0)
                w_T = tl.load(w_index + head, mask=rows, other=0.0).to(tl.float32)
                dots = tl.dot(q_TI, k_IS, input_precision=PRECISION)
                d_w_T = tl.sum(tl.maximum(dots, 0.0) * d_score, axis=1)
                tl.atomic_add(d_w + batch * J + head, d_w_T, mask=rows, sem="relaxed")
                d_dots = tl.where(dots > 0, d_score * w_T[:, None], 0.0).to(q_TI.dtype)
                d_q_TI = tl.dot(d_dots, tl.trans(k_IS), input_precision=PRECISION)
                tl.atomic_add(d_q + batch * J * DI + at, d_q_TI, mask=own, sem="relaxed")
                d_k_SI += tl.dot(tl.trans(d_dots), q_TI, input_precision=PRECISION)
            to = (batch + s)[:, None] * DI + i[None, :]
            adding.add(d_k, to, d_k_SI, (s < L)[:, None] & (i < DI)[None, :], scale_k, FIXED)
    tl.store(loss + batch + t, total, mask=rows)


def dense_kl(
    q_BTHD: Tensor, k_BSGD: Tensor, q_BTJI: Tensor, k_BSI: Tensor, w_BTJ: Tensor,
    document_ids_BT: Tensor | None = None, lse_BTH: Tensor | None = None, deterministic: bool | None = None,
) -> Tensor:  # fmt: skip
    """Mean over queries of KL(p[t] || softmax(I[t])) over s <= t in the query's document, in nats: a scalar, fp32.

    q and k are the attention's, detached here; lse (B, T, H) its scaled scores' logsumexp over those keys, computed
    when None. Gradients go to the indexer's q, k and w. `deterministic` as for `attend`.
    """
    check(q_BTHD, k_BSGD, q_BTJI, k_BSI, w_BTJ)
    if document_ids_BT is None:
        start_BT = torch.zeros(q_BTHD.shape[:2], dtype=torch.int32, device=q_BTHD.device)
    else:
        start_BT = document_starts(document_ids_BT)
    q_BTHD, k_BSGD = q_BTHD.detach(), k_BSGD.detach()
    lse_BTH = _attention_lse(q_BTHD, k_BSGD, start_BT) if lse_BTH is None else lse_BTH.detach().float()
    grads = torch.is_grad_enabled() and any(x.requires_grad for x in (q_BTJI, k_BSI, w_BTJ))
    loss: Tensor = _dense_kl(
        q_BTHD, k_BSGD, lse_BTH, q_BTJI, k_BSI, w_BTJ, start_BT, grads, adding.deterministic(deterministic)
    )[0]  # fmt: skip
    return loss


@torch.library.custom_op("dsabench::dense_attention_lse", mutates_args=())
def _attention_lse(q_BTHD: Tensor, k_BSGD: Tensor, start_BT: Tensor) -> Tensor:
    return attention_lse(q_BTHD, k_BSGD, start_BT)


@_attention_lse.register_fake
def _(q_BTHD: Tensor, k_BSGD: Tensor, start_BT: Tensor) -> Tensor:
    return q_BTHD.new_empty(q_BTHD.shape[:3], dtype=torch.float32)


@torch.library.custom_op("dsabench::dense_kl", mutates_args=())
def _dense_kl(
    q_BTHD: Tensor, k_BSGD: Tensor, lse_BTH: Tensor, q_BTJI: Tensor, k_BSI: Tensor, w_BTJ: Tensor, start_BT: Tensor,
    grads: bool, deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    q_BTHD, k_BSGD, q_BTJI, k_BSI, w_BTJ = (x.contiguous() for x in (q_BTHD, k_BSGD, q_BTJI, k_BSI, w_BTJ))
    n_batch, length, n_heads, width = q_BTHD.shape
    n_index, width_i = q_BTJI.shape[2:]
    loss_BT = torch.empty(n_batch, length, dtype=torch.float32, device=q_BTHD.device)
    d_q, d_k, d_w = (x.zero_() for x in gradients(q_BTJI, k_BSI, w_BTJ, grads))
    total, scale_k = d_k, None
    if deterministic and grads:
        total = adding.zeros(tuple(k_BSI.shape), k_BSI, True)
        most = q_BTJI.abs().amax().double() * w_BTJ.abs().amax() * n_index
        scale_k = adding.scale_for(most, length)
    block = rows_of(q_BTHD, k_BSI)
    _kl[(triton.cdiv(length, block), n_batch)](
        q_BTHD, k_BSGD, lse_BTH.contiguous(), q_BTJI, k_BSI, w_BTJ, start_BT,
        index_lse(q_BTJI, k_BSI, w_BTJ, start_BT), loss_BT, d_q, total, d_w, scale_k, length, n_heads,
        k_BSGD.shape[2], width**-0.5, D=width, WIDE=power_of_two(width), J=n_index, DI=width_i,
        WIDE_I=power_of_two(width_i), T=block, PRECISION=precision(q_BTHD), GRADS=grads,
        FIXED=deterministic and grads, num_warps=4, num_stages=2,
    )  # fmt: skip
    rows = n_batch * length
    if grads:
        d_k = adding.finish(total, scale_k, torch.float32)
    return loss_BT.mean(), d_q / rows, d_k / rows, d_w / rows


@_dense_kl.register_fake
def _(
    q_BTHD: Tensor, k_BSGD: Tensor, lse_BTH: Tensor, q_BTJI: Tensor, k_BSI: Tensor, w_BTJ: Tensor, start_BT: Tensor,
    grads: bool, deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    d_q, d_k, d_w = gradients(q_BTJI, k_BSI, w_BTJ, grads)
    return lse_BTH.new_empty(()), d_q, d_k, d_w


_dense_kl.register_autograd(
    lambda ctx, *grads: (None, None, None, *loss_gradients(ctx, *grads), None, None, None),
    setup_context=setup_loss,
)
