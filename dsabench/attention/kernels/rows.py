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


@triton.jit
def _combine(dots, w, out, S, J, WIDE: tl.constexpr):
    """out[s] = sum_j w[j] relu(dots[j, s])."""
    row = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, WIDE)
    total = tl.zeros((WIDE,), dtype=tl.float32)
    for j in range(0, J):
        dot = tl.load(dots + (row * J + j) * S + s, mask=s < S, other=0.0).to(tl.float32)
        total += tl.maximum(dot, 0.0) * tl.load(w + row * J + j).to(tl.float32)
    tl.store(out + row * S + s, total, mask=s < S)


@triton.jit
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


@triton.jit
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


@triton.jit
def _softmax(scores, keep, p, mean, T, S, H, batch_stride, WIDE: tl.constexpr):
    """p[h] = softmax of scores[h] where keep; mean = mean over h of p, in fp32."""
    row = tl.program_id(0).to(tl.int64)
    batch, t = row // T, row % T
    s = tl.arange(0, WIDE)
    kept = tl.load(keep + batch * batch_stride + t * S + s, mask=s < S, other=0) != 0
    total = tl.zeros((WIDE,), dtype=tl.float32)
    for h in range(0, H):
        at = ((batch * H + h) * T + t) * S + s
        score = tl.where(kept, tl.load(scores + at, mask=kept, other=0.0).to(tl.float32), -float("inf"))
        e = tl.where(kept, tl.exp(score - tl.max(score, axis=0)), 0.0)
        e = e / tl.sum(e, axis=0)
        total += e
        tl.store(p + at, e.to(p.dtype.element_ty), mask=s < S)
    tl.store(mean + row * S + s, total / H, mask=s < S)


@triton.jit
def _softmax_backward(p, d_p, d_scores, S, WIDE: tl.constexpr):
    """ds = p (dp - sum p dp)."""
    row = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, WIDE)
    mine = tl.load(p + row * S + s, mask=s < S, other=0.0).to(tl.float32)
    grad = tl.load(d_p + row * S + s, mask=s < S, other=0.0).to(tl.float32)
    out = mine * (grad - tl.sum(mine * grad, axis=0))
    tl.store(d_scores + row * S + s, out.to(d_scores.dtype.element_ty), mask=s < S)


@triton.jit
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
    entropy = tl.where(p > 0, p * tl.log(tl.where(p > 0, p, 1.0)), 0.0)
    tl.store(loss + row, tl.sum(entropy - p * log_q, axis=0))
    tl.store(grad + row * S + s, (e / mass * tl.sum(p, axis=0) - p) * scale, mask=s < S)


def _wide(n_keys: int) -> int:
    return max(16, int(triton.next_power_of_2(n_keys)))


def _masks(keep: Tensor) -> tuple[Tensor, int]:
    """The mask, and how far apart those of two batch rows are: 0 when they share one."""
    keep = keep.contiguous()
    return keep, 0 if keep.dim() == 2 else keep.shape[-1] * keep.shape[-2]


class Combine(torch.autograd.Function):
    """(dots (B, T, J, S), w (B, T, J)) -> index scores (B, T, S), fp32."""

    @staticmethod
    def forward(ctx: Any, dots_BTJS: Tensor, w_BTJ: Tensor) -> Tensor:
        """sum_j w relu(dots)."""
        dots_BTJS, w_BTJ = dots_BTJS.contiguous(), w_BTJ.contiguous()
        n_batch, length, n_heads, n_keys = dots_BTJS.shape
        out_BTS = torch.empty(n_batch, length, n_keys, dtype=torch.float32, device=dots_BTJS.device)
        _combine[(n_batch * length,)](dots_BTJS, w_BTJ, out_BTS, n_keys, n_heads, WIDE=_wide(n_keys))
        ctx.save_for_backward(dots_BTJS, w_BTJ)
        return out_BTS

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of dots and w, in their dtypes."""
        dots_BTJS, w_BTJ = ctx.saved_tensors
        n_batch, length, n_heads, n_keys = dots_BTJS.shape
        d_dots, d_w = torch.empty_like(dots_BTJS), torch.empty_like(w_BTJ)
        _combine_backward[(n_batch * length,)](
            dots_BTJS, w_BTJ, grads[0].contiguous(), d_dots, d_w, n_keys, n_heads, WIDE=_wide(n_keys)
        )
        return d_dots, d_w


def select(scores_BTS: Tensor, allowed: Tensor, k: int) -> Tensor:
    """masked.selection_mask."""
    scores_BTS = scores_BTS.contiguous()
    n_batch, length, n_keys = scores_BTS.shape
    allowed, stride = _masks(allowed)
    out_BTS = torch.empty(scores_BTS.shape, dtype=torch.bool, device=scores_BTS.device)
    _select[(n_batch * length,)](scores_BTS, allowed, out_BTS, length, n_keys, k, stride, WIDE=_wide(n_keys))
    return out_BTS


class MaskedSoftmax(torch.autograd.Function):
    """(scores (B, H, T, S), keep) -> p in `dtype`, and its mean over heads (B, T, S) in fp32, without gradient."""

    @staticmethod
    def forward(ctx: Any, scores_BHTS: Tensor, keep: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """0 where not kept; every query keeps at least one key."""
        scores_BHTS = scores_BHTS.contiguous()
        n_batch, n_heads, length, n_keys = scores_BHTS.shape
        keep, stride = _masks(keep)
        p_BHTS = torch.empty(scores_BHTS.shape, dtype=dtype, device=scores_BHTS.device)
        mean_BTS = torch.empty(n_batch, length, n_keys, dtype=torch.float32, device=scores_BHTS.device)
        _softmax[(n_batch * length,)](
            scores_BHTS, keep, p_BHTS, mean_BTS, length, n_keys, n_heads, stride, WIDE=_wide(n_keys)
        )
        ctx.save_for_backward(p_BHTS)
        ctx.dtype = scores_BHTS.dtype
        ctx.mark_non_differentiable(mean_BTS)
        return p_BHTS, mean_BTS

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of the scores."""
        (p_BHTS,) = ctx.saved_tensors
        d_scores = torch.empty(p_BHTS.shape, dtype=ctx.dtype, device=p_BHTS.device)
        n_keys = p_BHTS.shape[-1]
        _softmax_backward[(p_BHTS.numel() // n_keys,)](
            p_BHTS, grads[0].contiguous(), d_scores, n_keys, WIDE=_wide(n_keys)
        )
        return d_scores, None, None


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
            scores_BTS, target_BTS, keep, loss_BT, grad_BTS, length, n_keys, 1.0 / rows, stride, WIDE=_wide(n_keys)
        )
        ctx.save_for_backward(grad_BTS)
        return loss_BT.mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """What forward wrote, times the gradient of the loss."""
        (grad_BTS,) = ctx.saved_tensors
        return grad_BTS * grads[0], None, None
