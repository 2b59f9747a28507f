"""The indexer's KL loss over a selection, with its gradients in the same pass.

    loss = mean_t sum_{s in S[t]} p log(p / softmax(I))      p[t,s] = mean_h exp(Q[t,h] . K[s] / sqrt(D) - lse[t,h])
    dI = (softmax(I) - p) / (B T)

A program is one query. Since the logsumexp of the attention and of the index scores are known beforehand (attend and
top_k return them), p, softmax(I), the loss and dI of a block of slots follow from that block alone: one pass, nothing
of K entries a query is stored. The gradient of an indexer key is summed by atomics, or in fixed point.

Time on the H100 at L = 65,536, k = 2048, H = 16, D = 64, J = 4, I = 64 (ms): gathers of K and of the indexer's k, 256
bytes a slot, 34 GB, 4.4 at 7.7 TB/s; atomics of 256 bytes a slot, 34 GB, 10.4 at 3.3 TB/s. Their sum, 14.8, is what
is measured: 14.4 (D = 128: 15.1). With heads as rows of the products, whose sums over heads then cross lanes, 16.4 at
best.

Legend: B batch, T query, S key, H query heads, G key/value heads, D head width, J indexer heads, I (DI in code) indexer
width, K selected slots, M heads of a product, N slots of a block.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsabench.attention.dsa.triton import accumulate
from dsabench.attention.dsa.triton.attend_kernels import LOG2E, gather, in_group, load_queries, load_slots
from dsabench.attention.dsa.triton.attend_sizes import (
    GROUP,
    Tiling,
    group_shape,
    key_parts,
    together_at_most,
    widths,
)
from dsabench.attention.dsa.triton.kl_groups import kl_group
from dsabench.attention.dsa.triton.lse import load_indexer, selected_lse
from dsabench.attention.dsa.triton.tiles import check, power_of_two, precision
from dsabench.attention.dsa.triton.unions import Unions, joined, parts
from dsabench.ops.triton.jit import jit
from dsabench.ops.triton.least import LEAST


def group_kl(width: int) -> Tiling:
    """Groups: with so few registers three programs share a multiprocessor, of wide heads if they have one stage."""
    return GROUP._replace(stages=1 if width > 64 else 2, registers=168)


MOST_COLUMNS, WIDEST = 32, 64
"""Queries x indexer heads of a group, and the width of these heads: with more the registers do not hold a group."""


@jit
def _load_attention(
    q, lse, row, part, H, G, BLOCKS, D: tl.constexpr, WIDE: tl.constexpr, P: tl.constexpr, WIDE_P: tl.constexpr,
    M: tl.constexpr,
):  # fmt: skip
    """The part's heads of one query as columns, [WIDE, M] and, of latents, [WIDE_P, M], and their logsumexp to base 2,
    [M]: inf where there is no head."""
    m = part % BLOCKS * M + tl.arange(0, M)
    heads = m < H // G
    h = row * H + part // BLOCKS * (H // G) + m
    q_MD, q_MP = load_queries(q, h, heads, D, WIDE, P, WIDE_P)
    base = tl.load(lse + h, mask=heads, other=float("inf")) * LOG2E
    return tl.trans(q_MD), tl.trans(q_MP), tl.where(base == -float("inf"), float("inf"), base)


@jit
def _dots(
    k, s, keep, q_DM, q_PM, stride, D: tl.constexpr, WIDE: tl.constexpr, P: tl.constexpr, WIDE_P: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """k[s] . q, [N, M]."""
    dots = tl.dot(gather(k, s, keep, stride, D, WIDE), q_DM, input_precision=PRECISION)
    if P:
        dots = tl.dot(gather(k + D, s, keep, stride, P, WIDE_P), q_PM, dots, input_precision=PRECISION)
    return dots


@jit
def _kl(
    q, k, lse, q_index, k_index, w_index, selected, sizes, index_lse, loss, d_q, d_k, d_w, scale_k, T, H, G, K, BLOCKS,
    scale, inverse, ONE: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, P: tl.constexpr, WIDE_P: tl.constexpr,
    M: tl.constexpr, J: tl.constexpr, DI: tl.constexpr, WIDE_I: tl.constexpr, MJ: tl.constexpr, N: tl.constexpr,
    Q: tl.constexpr, PRECISION: tl.constexpr, GRADS: tl.constexpr, FIXED: tl.constexpr,
):  # fmt: skip
    """ONE: all heads share one KV head and one product, so their queries stay on chip. P: as in `attend_kernels`."""
    if in_group(sizes, tl.program_id(0), T, Q):
        return
    row = tl.program_id(0).to(tl.int64)
    batch = row // T * T
    k += batch * G * (D + P)
    k_index += batch * DI
    selected += row * K
    # Slots are the rows of every product, so that sums over heads stay within a few lanes.
    q_MI, w_M = load_indexer(q_index, w_index, row, J, DI, WIDE_I, MJ)
    q_IM = tl.trans(q_MI)
    q_DM, q_PM, base = _load_attention(q, lse, row, 0, H, G, BLOCKS, D, WIDE, P, WIDE_P, M)
    index_base = tl.load(index_lse + row)
    total = tl.zeros((N,), dtype=tl.float32)
    d_q_IM = tl.zeros((WIDE_I, MJ), dtype=tl.float32)
    d_w_NM = tl.zeros((N, MJ), dtype=tl.float32)
    i = tl.arange(0, WIDE_I)
    for n0 in range(0, K, N):
        s, keep = load_slots(selected, n0 + tl.arange(0, N), tl.program_id(0) % T, K)
        k_NI = gather(k_index, s, keep, DI, DI, WIDE_I)
        if ONE:
            score = _dots(k, s, keep, q_DM, q_PM, D + P, D, WIDE, P, WIDE_P, PRECISION) * (scale * LOG2E)
            p = tl.sum(tl.exp2(score - base[None, :]), axis=1)
        else:
            p = tl.zeros((N,), dtype=tl.float32)
            for part in range(0, G * BLOCKS):
                q_DM, q_PM, base = _load_attention(q, lse, row, part, H, G, BLOCKS, D, WIDE, P, WIDE_P, M)
                k_ = k + part // BLOCKS * (D + P)
                score = _dots(k_, s, keep, q_DM, q_PM, G * (D + P), D, WIDE, P, WIDE_P, PRECISION) * (scale * LOG2E)
                p += tl.sum(tl.exp2(score - base[None, :]), axis=1)
        dots = tl.dot(k_NI, q_IM, input_precision=PRECISION)
        relu = tl.maximum(dots, 0.0)
        p = tl.where(keep, p / H, 0.0)
        log_q = tl.where(keep, tl.sum(relu * w_M[None, :], axis=1) - index_base, 0.0)
        total += p * (tl.log(tl.maximum(p, LEAST)) - log_q)
        if GRADS:
            d_score = tl.where(keep, tl.exp(log_q) - p, 0.0)
            d_w_NM += relu * d_score[:, None]
            d_dots = tl.where(dots > 0, d_score[:, None] * w_M[None, :], 0.0).to(k_NI.dtype)
            to = (batch + s)[:, None] * DI + i[None, :]
            d_k_NI = tl.dot(d_dots, q_MI, input_precision=PRECISION)
            accumulate.add(d_k, to, d_k_NI, keep[:, None] & (i < DI)[None, :], scale_k, FIXED)
            d_q_IM += tl.dot(tl.trans(k_NI), d_dots, input_precision=PRECISION)
    tl.store(loss + row, tl.sum(total, axis=0))
    if GRADS:
        m = tl.arange(0, MJ)
        at = (row * J + m)[:, None] * DI + i[None, :]
        tl.store(d_q + at, tl.trans(d_q_IM) * inverse, mask=(m < J)[:, None] & (i < DI)[None, :])
        tl.store(d_w + row * J + m, tl.sum(d_w_NM, axis=0) * inverse, mask=m < J)


def sparse_kl(
    q_BTHD: Tensor, k_BSGD: Tensor, lse_BTH: Tensor, q_BTJI: Tensor, k_BSI: Tensor, w_BTJ: Tensor,
    selected_BTK: Tensor, index_lse_BT: Tensor | None = None, deterministic: bool | None = None,
    unions: Unions | None = None, scale: float | None = None, value_width: int | None = None,
) -> Tensor:  # fmt: skip
    """Mean over queries of KL(p[t] || softmax(I[t])) over S[t], in nats: a scalar, fp32.

    q, k and lse are the attention's (lse as `attend` returns it for this selection), detached here; gradients go to the
    indexer's q, k and w. index_lse as `top_k` returns it for this selection; None computes it, by another gather.
    `deterministic`, `unions`, `scale` and `value_width` as for `attend`.
    """
    check(q_BTHD, k_BSGD, q_BTJI, k_BSI, w_BTJ)
    selected_BTK = selected_BTK.int()
    q_BTHD, k_BSGD, lse_BTH = q_BTHD.detach(), k_BSGD.detach(), lse_BTH.detach()
    if index_lse_BT is None:
        index_lse_BT = _selected_lse(q_BTJI.detach(), k_BSI.detach(), w_BTJ.detach(), selected_BTK)
    grads = torch.is_grad_enabled() and any(x.requires_grad for x in (q_BTJI, k_BSI, w_BTJ))
    fixed = accumulate.deterministic(deterministic)
    loss: Tensor = _sparse_kl(
        q_BTHD, k_BSGD, lse_BTH, q_BTJI, k_BSI, w_BTJ, selected_BTK, *parts(unions), index_lse_BT, grads, fixed,
        q_BTHD.shape[-1] ** -0.5 if scale is None else scale, value_width or 0,
    )[0]  # fmt: skip
    return loss


@torch.library.custom_op("dsabench::sparse_selected_lse", mutates_args=())
def _selected_lse(q_BTJI: Tensor, k_BSI: Tensor, w_BTJ: Tensor, selected_BTK: Tensor) -> Tensor:
    return selected_lse(q_BTJI, k_BSI, w_BTJ, selected_BTK)


@_selected_lse.register_fake
def _(q_BTJI: Tensor, k_BSI: Tensor, w_BTJ: Tensor, selected_BTK: Tensor) -> Tensor:
    return q_BTJI.new_empty(q_BTJI.shape[:2], dtype=torch.float32)


@torch.library.custom_op("dsabench::sparse_kl", mutates_args=())
def _sparse_kl(
    q_BTHD: Tensor, k_BSGD: Tensor, lse_BTH: Tensor, q_BTJI: Tensor, k_BSI: Tensor, w_BTJ: Tensor,
    selected_BTK: Tensor, words_UC: Tensor | None, sizes_U: Tensor | None, neighbours: int, index_lse_BT: Tensor,
    grads: bool, deterministic: bool, scale: float, value_width: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    limit = 1 << (15 if k_BSI.dtype == torch.bfloat16 else 14)
    tiling = Tiling(stages=3).within(limit, k_BSI, *key_parts(k_BSGD, value_width), k_BSI.shape[-1])
    return launch(
        q_BTHD, k_BSGD, lse_BTH, q_BTJI, k_BSI, w_BTJ, selected_BTK, index_lse_BT, grads, deterministic, tiling,
        joined(words_UC, sizes_U, neighbours), None, scale, value_width,
    )  # fmt: skip


@_sparse_kl.register_fake
def _(
    q_BTHD: Tensor, k_BSGD: Tensor, lse_BTH: Tensor, q_BTJI: Tensor, k_BSI: Tensor, w_BTJ: Tensor,
    selected_BTK: Tensor, words_UC: Tensor | None, sizes_U: Tensor | None, neighbours: int, index_lse_BT: Tensor,
    grads: bool, deterministic: bool, scale: float, value_width: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    d_q, d_k, d_w = gradients(q_BTJI, k_BSI, w_BTJ, grads)
    return lse_BTH.new_empty(()), d_q, d_k, d_w


def gradients(q_BTJI: Tensor, k_BSI: Tensor, w_BTJ: Tensor, grads: bool) -> list[Tensor]:
    """Where the gradients go, fp32; without gradients nothing."""
    return [x.new_empty(x.shape if grads else (0,), dtype=torch.float32) for x in (q_BTJI, k_BSI, w_BTJ)]


def setup_loss(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep the gradients that came with the loss, the first output; they are no results of their own."""
    ctx.save_for_backward(*output[1:])
    ctx.dtype = inputs[3].dtype
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def loss_gradients(ctx: Any, d_loss: Tensor | None, *_: Tensor | None) -> list[Tensor | None]:
    """What came with the loss times the loss's own gradient, for inputs 3, 4 and 5."""
    if d_loss is None:
        return [None, None, None]
    # In one pass over memory: a product in fp32 whose cast is part of it.
    return [torch.mul(x, d_loss, out=torch.empty_like(x, dtype=ctx.dtype)) for x in ctx.saved_tensors]


_sparse_kl.register_autograd(
    lambda ctx, *grads: (None, None, None, *loss_gradients(ctx, *grads), *(None,) * 9),
    setup_context=setup_loss,
)


def launch(
    q_BTHD: Tensor, k_BSGD: Tensor, lse_BTH: Tensor, q_BTJI: Tensor, k_BSI: Tensor, w_BTJ: Tensor,
    selected_BTK: Tensor, index_lse_BT: Tensor, grads: bool, deterministic: bool, tiling: Tiling,
    unions: Unions | None = None, group_tiling: Tiling | None = None, scale: float | None = None, value_width: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The loss, and its gradients to the indexer's q, k and w in fp32, by a tiling of choice."""
    q_BTHD, k_BSGD, q_BTJI, k_BSI, w_BTJ = (x.contiguous() for x in (q_BTHD, k_BSGD, q_BTJI, k_BSI, w_BTJ))
    n_batch, length, n_heads, width = q_BTHD.shape
    scale = width**-0.5 if scale is None else scale
    groups, slots, n_index, width_i = k_BSGD.shape[2], selected_BTK.shape[2], *q_BTJI.shape[2:]
    rows = n_batch * length
    loss_R = torch.empty(rows, dtype=torch.float32, device=q_BTHD.device)
    d_q, d_k, d_w = gradients(q_BTJI, k_BSI, w_BTJ, grads)
    total = accumulate.zeros(tuple(k_BSI.shape if grads else (0,)), k_BSI, deterministic)
    scale_k = None
    if deterministic and grads:
        most = q_BTJI.abs().amax().double() * w_BTJ.abs().amax() * n_index  # |softmax - p| <= 1
        scale_k = accumulate.scale_for(most, length)
    heads = together_at_most(q_BTHD, n_heads // groups)
    blocks = triton.cdiv(n_heads // groups, heads)
    if unions and (unions.queries * power_of_two(n_index, 1) > MOST_COLUMNS or width_i > WIDEST):
        unions = None
    queries, sizes = (unions.queries, unions.sizes_U) if unions else (0, None)
    index = {"ONE": groups * blocks == 1, "J": n_index, "DI": width_i, "WIDE_I": power_of_two(width_i)}
    modes = {"GRADS": grads, "FIXED": deterministic}
    before = (q_BTHD, k_BSGD, lse_BTH.contiguous(), q_BTJI, k_BSI, w_BTJ)
    after = (index_lse_BT.contiguous(), loss_R, d_q, total, d_w, scale_k, length, n_heads, groups)
    _kl[(rows,)](
        *before, selected_BTK.contiguous(), sizes, *after, slots, blocks, scale, 1.0 / rows,
        **widths(k_BSGD, value_width), M=heads, MJ=power_of_two(n_index), N=tiling.slots, Q=queries,
        PRECISION=precision(q_BTHD), num_warps=tiling.warps, num_stages=tiling.stages, **index, **modes,
    )  # fmt: skip
    if unions:
        units, words = unions.words_UC.shape
        kl_group[(units,)](
            *before, unions.words_UC, sizes, *after, words, triton.cdiv(length, queries), scale, 1.0 / rows,
            MJ=power_of_two(n_index, max(1, 16 // queries)), **(group_tiling or group_kl(width)).options(),
            **index, **modes, **group_shape(q_BTHD, k_BSGD, unions, value_width),
        )  # fmt: skip
    if grads:
        d_k = accumulate.finish(total, scale_k, torch.float32) / rows
    return loss_R.mean(), d_q, d_k, d_w
