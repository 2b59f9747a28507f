"""The row-wise parts of masked DSA, fused: a program holds one query's row of S keys, at most kernels.WIDEST_ROW.

The products stay with cuBLAS; what lies between them (relu and weights, top-k, masked softmax, KL) is one pass each,
where plain PyTorch makes five to ten over the same L x L numbers. `masked` says what each computes.

Legend: B batch, T query, S key, H query heads, J indexer heads.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsabench.ops.triton.jit import jit
from dsabench.ops.triton.least import LEAST


@jit
def _combine(dots, w, out, S, J, WIDE: tl.constexpr):
    """out[s] = sum_j w[j] relu(dots[j, s])."""
    row = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, WIDE)
    total = tl.zeros((WIDE,), dtype=tl.float32)
    for j in range(0, J):
        dot = tl.load(dots + (row * J + j) * S + s, mask=s < S, other=0.0).to(tl.float32)
        total += tl.maximum(dot, 0.0) * tl.load(w + row * J + j).to(tl.float32)
    tl.store(out + row * S + s, total, mask=s < S)


@jit
def _combine_backward(dots, w, d_out, d_dots, d_w, S, J, WIDE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, WIDE)
    grad = tl.load(d_out + row * S + s, mask=s < S, other=0.0)
    for j in range(0, J):
        at = (row * J + j) * S + s
        dot = tl.load(dots + at, mask=s < S, other=0.0).to(tl.float32)
        weight = tl.load(w + row * J + j).to(tl.float32)
        tl.store(d_dots + at, tl.where(dot > 0, grad * weight, 0.0).to(d_dots.dtype.element_ty), mask=s < S)
        total = tl.sum(grad * tl.maximum(dot, 0.0), axis=0)
        tl.store(d_w + row * J + j, total.to(d_w.dtype.element_ty))


@jit
def _select(scores, allowed, out, T, S, k, batch_stride, WIDE: tl.constexpr):
    """True at the k highest allowed scores, ties to the lowest index: the k-th highest is found bit by bit."""
    row = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, WIDE)
    may = tl.load(allowed + (row // T) * batch_stride + (row % T) * S + s, mask=s < S, other=0) != 0
    value = tl.load(scores + row * S + s, mask=s < S, other=0.0) + 0.0  # -0.0 becomes 0.0
    bits = value.to(tl.int32, bitcast=True)
    # As integers, floats of one sign are in order; negative ones are turned round, and all are moved above zero.
    order = tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF).to(tl.int64) + 2147483648
    order = tl.where(may, order, -1)
    threshold = tl.zeros((), dtype=tl.int64)
    for i in range(0, 32):
        candidate = threshold + (tl.full((), 1, tl.int64) << (31 - i))
        enough = tl.sum((order >= candidate).to(tl.int32), axis=0) >= k
        threshold = tl.where(enough, candidate, threshold)
    above = order > threshold
    tied = (order == threshold) & may
    room = k - tl.sum(above.to(tl.int32), axis=0)
    chosen = above | (tied & (tl.cumsum(tied.to(tl.int32), axis=0) <= room))
    # With k allowed keys or fewer no candidate has enough: the threshold stays 0, which every allowed key is above.
    tl.store(out + row * S + s, chosen, mask=s < S)


@jit
def _softmax(scores, keep, p, mean, T, S, H, scale, batch_stride, WIDE: tl.constexpr):
    """p[h] = softmax of scores[h] * scale where keep; mean = mean over h of p, in fp32."""
    row = tl.program_id(0).to(tl.int64)
    batch, t = row // T, row % T
    s = tl.arange(0, WIDE)
    kept = tl.load(keep + batch * batch_stride + t * S + s, mask=s < S, other=0) != 0
    total = tl.zeros((WIDE,), dtype=tl.float32)
    for h in range(0, H):
        at = ((batch * H + h) * T + t) * S + s
        score = tl.where(kept, tl.load(scores + at, mask=kept, other=0.0).to(tl.float32) * scale, -float("inf"))
        e = tl.where(kept, tl.exp(score - tl.max(score, axis=0)), 0.0)
        e = e / tl.sum(e, axis=0)
        total += e
        tl.store(p + at, e.to(p.dtype.element_ty), mask=s < S)
    tl.store(mean + row * S + s, total / H, mask=s < S)


@jit
def _softmax_backward(p, d_p, d_scores, S, scale, WIDE: tl.constexpr):
    """ds = p (dp - sum p dp) scale."""
    row = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, WIDE)
    mine = tl.load(p + row * S + s, mask=s < S, other=0.0).to(tl.float32)
    grad = tl.load(d_p + row * S + s, mask=s < S, other=0.0).to(tl.float32)
    out = mine * (grad - tl.sum(mine * grad, axis=0)) * scale
    tl.store(d_scores + row * S + s, out.to(d_scores.dtype.element_ty), mask=s < S)


@jit
def _kl(scores, target, keep, loss, grad, T, S, scale, batch_stride, WIDE: tl.constexpr):
    """sum_s p log p - p log q, q = softmax of scores where keep; its gradient to the scores, (sum p) q - p."""
    row = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, WIDE)
    kept = tl.load(keep + (row // T) * batch_stride + (row % T) * S + s, mask=s < S, other=0) != 0
    score = tl.where(kept, tl.load(scores + row * S + s, mask=kept, other=0.0), -float("inf"))
    p = tl.load(target + row * S + s, mask=kept, other=0.0)
    top = tl.max(score, axis=0)
    e = tl.where(kept, tl.exp(score - top), 0.0)
    mass = tl.sum(e, axis=0)
    log_q = tl.where(kept, score - top - tl.log(mass), 0.0)
    entropy = p * tl.log(tl.maximum(p, LEAST))
    tl.store(loss + row, tl.sum(entropy - p * log_q, axis=0))
    tl.store(grad + row * S + s, (e / mass * tl.sum(p, axis=0) - p) * scale, mask=s < S)


def _shape(n_keys: int) -> dict[str, int]:
    """Width of a program's row, and its warps: few, so that sums over a row need no exchange between warps."""
    wide = max(16, int(triton.next_power_of_2(n_keys)))
    return {"WIDE": wide, "num_warps": min(8, max(1, wide // 512))}


def _masks(keep: Tensor) -> tuple[Tensor, int]:
    """The mask, and how far apart those of two batch rows are: 0 when they share one."""
    keep = keep.contiguous()
    return keep, 0 if keep.dim() == 2 else keep.shape[-1] * keep.shape[-2]


class IndexScores(torch.autograd.Function):
    """(q (B, T, J, I), k (B, S, I), w (B, T, J)) -> index scores (B, T, S), fp32; products in the dtype of q."""

    @staticmethod
    def forward(ctx: Any, q_BTJI: Tensor, k_BSI: Tensor, w_BTJ: Tensor) -> Tensor:
        """sum_j w relu(q k)."""
        n_batch, length, n_heads, width = q_BTJI.shape
        n_keys = k_BSI.shape[1]
        q_BXI, k_BSI, w_BTJ = q_BTJI.reshape(n_batch, -1, width), k_BSI.contiguous(), w_BTJ.contiguous()
        dots_BXS = q_BXI @ k_BSI.transpose(1, 2)
        out_BTS = torch.empty(n_batch, length, n_keys, dtype=torch.float32, device=q_BTJI.device)
        _combine[(n_batch * length,)](dots_BXS, w_BTJ, out_BTS, n_keys, n_heads, **_shape(n_keys))
        ctx.save_for_backward(q_BXI, k_BSI, w_BTJ, dots_BXS)
        return out_BTS

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and w, in their dtypes."""
        q_BXI, k_BSI, w_BTJ, dots_BXS = ctx.saved_tensors
        n_batch, length, n_heads = w_BTJ.shape
        n_keys = k_BSI.shape[1]
        d_dots, d_w = torch.empty_like(dots_BXS), torch.empty_like(w_BTJ)
        _combine_backward[(n_batch * length,)](
            dots_BXS, w_BTJ, grads[0].contiguous(), d_dots, d_w, n_keys, n_heads, **_shape(n_keys)
        )
        return (d_dots @ k_BSI).view(n_batch, length, n_heads, -1), d_dots.transpose(1, 2) @ q_BXI, d_w


def select(scores_BTS: Tensor, allowed: Tensor, k: int) -> Tensor:
    """masked.selection_mask."""
    scores_BTS = scores_BTS.contiguous()
    n_batch, length, n_keys = scores_BTS.shape
    allowed, stride = _masks(allowed)
    out_BTS = torch.empty(scores_BTS.shape, dtype=torch.bool, device=scores_BTS.device)
    _select[(n_batch * length,)](scores_BTS, allowed, out_BTS, length, n_keys, k, stride, **_shape(n_keys))
    return out_BTS


class MaskedAttention(torch.autograd.Function):
    """(q (B, H, T, D), k (B, G, S, D), v (B, G, S, V), keep, scale) -> masked.attention: out (B, H, T, V), and the
    probabilities' mean over heads (B, T, S) in fp32, without gradient.

    The heads of a group are rows of one product (X = H/G T): keys and values are never repeated, their gradients are
    summed by the product, and no operand needs a transposing copy when q, k and v are contiguous.
    """

    @staticmethod
    def forward(
        ctx: Any, q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, keep: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """0 where not kept; every query keeps at least one key."""
        n_batch, n_heads, length, width = q_BHTD.shape
        n_groups, n_keys = k_BGSD.shape[1:3]
        q_BGXD = q_BHTD.reshape(n_batch, n_groups, -1, width)
        k_BGSD, v_BGSD = k_BGSD.contiguous(), v_BGSD.contiguous()
        keep, stride = _masks(keep)
        p_BGXS = q_BGXD @ k_BGSD.transpose(-1, -2)  # scores, which the probabilities then take the place of
        mean_BTS = torch.empty(n_batch, length, n_keys, dtype=torch.float32, device=q_BHTD.device)
        _softmax[(n_batch * length,)](
            p_BGXS, keep, p_BGXS, mean_BTS, length, n_keys, n_heads, scale, stride, **_shape(n_keys)
        )
        ctx.save_for_backward(q_BGXD, k_BGSD, v_BGSD, p_BGXS)
        ctx.mark_non_differentiable(mean_BTS)
        ctx.scale, ctx.shape = scale, q_BHTD.shape
        return (p_BGXS @ v_BGSD).view(*q_BHTD.shape[:3], -1), mean_BTS

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Gradients of q, k and v."""
        q_BGXD, k_BGSD, v_BGSD, p_BGXS = ctx.saved_tensors
        d_out_BGXD = grads[0].reshape(*q_BGXD.shape[:3], -1)
        d_p_BGXS = d_out_BGXD @ v_BGSD.transpose(-1, -2)
        n_keys = p_BGXS.shape[-1]
        _softmax_backward[(p_BGXS.numel() // n_keys,)](p_BGXS, d_p_BGXS, d_p_BGXS, n_keys, ctx.scale, **_shape(n_keys))
        d_v = p_BGXS.transpose(-1, -2) @ d_out_BGXD
        d_k = d_p_BGXS.transpose(-1, -2) @ q_BGXD
        return (d_p_BGXS @ k_BGSD).view(ctx.shape), d_k, d_v, None, None


class IndexerKL(torch.autograd.Function):
    """(scores (B, T, S) fp32, target (B, T, S) fp32, keep) -> reference.indexer_kl."""

    @staticmethod
    def forward(ctx: Any, scores_BTS: Tensor, target_BTS: Tensor, keep: Tensor) -> Tensor:
        """The gradient is written in the same pass."""
        scores_BTS, target_BTS = scores_BTS.contiguous(), target_BTS.contiguous()
        n_batch, length, n_keys = scores_BTS.shape
        keep, stride = _masks(keep)
        rows = n_batch * length
        loss_BT = torch.empty(rows, dtype=torch.float32, device=scores_BTS.device)
        grad_BTS = torch.empty_like(scores_BTS)
        _kl[(rows,)](
            scores_BTS, target_BTS, keep, loss_BT, grad_BTS, length, n_keys, 1.0 / rows, stride, **_shape(n_keys)
        )
        ctx.save_for_backward(grad_BTS)
        return loss_BT.mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """What forward wrote, times the gradient of the loss."""
        (grad_BTS,) = ctx.saved_tensors
        return grad_BTS * grads[0], None, None
