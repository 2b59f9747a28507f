"""Queries, keys and values out of one product, queries and keys turned by rotary embedding: one launch each way.

Legend: B batch, T time, C columns of the product (q's heads, then k's, then v's), H query heads, G key/value heads,
D head width, W half of the rotated width.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsabench.ops.triton.jit import jit

_TOKENS = 16


@jit
def _turn(source, target, from_rows, to_rows, from_d, to_d, c, s, rows, D, W, WIDE: tl.constexpr, REST: tl.constexpr):
    """target[i] = source[i] c - source[W + i] s; target[W + i] = source[W + i] c + source[i] s; the rest is copied."""
    w = tl.arange(0, WIDE)[None, :]
    keep = rows & (w < W)
    first = tl.load(source + from_rows + w * from_d, mask=keep, other=0.0).to(tl.float32)
    second = tl.load(source + from_rows + (W + w) * from_d, mask=keep, other=0.0).to(tl.float32)
    tl.store(target + to_rows + w * to_d, (first * c - second * s).to(target.dtype.element_ty), mask=keep)
    tl.store(target + to_rows + (W + w) * to_d, (second * c + first * s).to(target.dtype.element_ty), mask=keep)
    if REST > 0:
        r = 2 * W + tl.arange(0, REST)[None, :]
        keep = rows & (r < D)
        value = tl.load(source + from_rows + r * from_d, mask=keep, other=0.0)
        tl.store(target + to_rows + r * to_d, value.to(target.dtype.element_ty), mask=keep)


@jit
def _heads(
    x, q, k, v, cos, sin, qb, qt, qh, qd, kb, kt, kh, kd, vb, vt, vh, vd, N, T, H, G, D, W, sign, BACK: tl.constexpr,
    R: tl.constexpr, WIDE: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """A program is R tokens of one head of q, k or v; x -> (q, k, v), or BACK."""
    n = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    head = tl.program_id(1)
    b, t = n // T, n % T
    rows = (n < N)[:, None]
    w = tl.arange(0, WIDE)[None, :]
    angle = t[:, None] * W + w
    c = tl.load(cos + angle, mask=rows & (w < W), other=0.0)
    s = tl.load(sin + angle, mask=rows & (w < W), other=0.0) * sign
    here = (n * (H + 2 * G) * D + head * D)[:, None]
    if head < H:
        there = (b * qb + t * qt + head * qh)[:, None]
        if BACK:
            _turn(q, x, there, here, qd, 1, c, s, rows, D, W, WIDE, REST)
        else:
            _turn(x, q, here, there, 1, qd, c, s, rows, D, W, WIDE, REST)
    elif head < H + G:
        there = (b * kb + t * kt + (head - H) * kh)[:, None]
        if BACK:
            _turn(k, x, there, here, kd, 1, c, s, rows, D, W, WIDE, REST)
        else:
            _turn(x, k, here, there, 1, kd, c, s, rows, D, W, WIDE, REST)
    else:
        there = (b * vb + t * vt + (head - H - G) * vh)[:, None]
        one, none = c * 0.0 + 1.0, s * 0.0
        if BACK:
            _turn(v, x, there, here, vd, 1, one, none, rows, D, W, WIDE, REST)
        else:
            _turn(x, v, here, there, 1, vd, one, none, rows, D, W, WIDE, REST)


def _launch(x_BTC: Tensor, heads: list[Tensor], cos_TW: Tensor, sin_TW: Tensor, sign: float, back: bool) -> None:
    """Between x (contiguous) and q, k and v, each (B, T, heads, D) of any strides."""
    n_batch, length, n_heads, width = heads[0].shape
    n_groups, half = heads[1].shape[2], cos_TW.shape[1]
    rest = width - 2 * half
    strides = [stride for tensor in heads for stride in tensor.stride()]
    _heads[(triton.cdiv(n_batch * length, _TOKENS), n_heads + 2 * n_groups)](
        x_BTC, *heads, cos_TW, sin_TW, *strides, n_batch * length, length, n_heads, n_groups, width, half, sign,
        BACK=back, R=_TOKENS, WIDE=triton.next_power_of_2(half), REST=triton.next_power_of_2(rest) if rest else 0,
    )  # fmt: skip


class SplitHeads(torch.autograd.Function):
    """x (B, T, (H + 2 G) D) -> q (B, T, H, D), k and v (B, T, G, D), q and k turned by each position's angle.

    `head_major` lays them out in memory as (B, H, T, D), as batched products want them.
    """

    @staticmethod
    def forward(
        ctx: Any, x_BTC: Tensor, n_heads: int, n_groups: int, cos_TW: Tensor, sin_TW: Tensor, head_major: bool
    ) -> tuple[Tensor, ...]:
        """In the dtype of x."""
        x_BTC = x_BTC.contiguous()
        n_batch, length, columns = x_BTC.shape
        width = columns // (n_heads + 2 * n_groups)

        def empty(heads: int) -> Tensor:
            if head_major:
                return x_BTC.new_empty(n_batch, heads, length, width).transpose(1, 2)
            return x_BTC.new_empty(n_batch, length, heads, width)

        heads = [empty(n_heads), empty(n_groups), empty(n_groups)]
        _launch(x_BTC, heads, cos_TW, sin_TW, 1.0, back=False)
        ctx.save_for_backward(cos_TW, sin_TW)
        return tuple(heads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        """The gradients turned back and put side by side."""
        cos_TW, sin_TW = ctx.saved_tensors
        n_batch, length, n_heads, width = grads[0].shape
        dx_BTC = grads[0].new_empty(n_batch, length, (n_heads + 2 * grads[1].shape[2]) * width)
        _launch(dx_BTC, list(grads), cos_TW, sin_TW, -1.0, back=True)
        return dx_BTC, None, None, None, None, None
