"""Rotary position embedding, fused: one pass over the tensor instead of eight.

Legend: B batch, T query, H heads, D head width, W half of the rotated width.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 64


@triton.jit
def _rotate(x, out, cos, sin, rows, T, H, D, W, sign, R: tl.constexpr, WIDE: tl.constexpr, REST: tl.constexpr):
    """out[n, i] = x[n, i] cos - x[n, W + i] sin; out[n, W + i] = x[n, W + i] cos + x[n, i] sin; the rest is copied."""
    n = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    w = tl.arange(0, WIDE)
    keep = (n < rows)[:, None] & (w < W)[None, :]
    angle = ((n // H) % T)[:, None] * W + w[None, :]
    c = tl.load(cos + angle, mask=keep, other=0.0)
    s = tl.load(sin + angle, mask=keep, other=0.0) * sign
    at = n[:, None] * D + w[None, :]
    first = tl.load(x + at, mask=keep, other=0.0).to(tl.float32)
    second = tl.load(x + at + W, mask=keep, other=0.0).to(tl.float32)
    tl.store(out + at, (first * c - second * s).to(out.dtype.element_ty), mask=keep)
    tl.store(out + at + W, (second * c + first * s).to(out.dtype.element_ty), mask=keep)
    if REST > 0:
        r = tl.arange(0, REST)
        rest = (n < rows)[:, None] & (r < D - 2 * W)[None, :]
        at = n[:, None] * D + 2 * W + r[None, :]
        tl.store(out + at, tl.load(x + at, mask=rest, other=0.0), mask=rest)


def _launch(x_BTHD: Tensor, cos_TW: Tensor, sin_TW: Tensor, sign: float) -> Tensor:
    x_BTHD = x_BTHD.contiguous()
    out = torch.empty_like(x_BTHD)
    _, length, n_heads, width = x_BTHD.shape
    half = cos_TW.shape[1]
    rows = x_BTHD.numel() // width
    rest = width - 2 * half
    _rotate[(triton.cdiv(rows, _ROWS),)](
        x_BTHD, out, cos_TW, sin_TW, rows, length, n_heads, width, half, sign,
        R=_ROWS, WIDE=triton.next_power_of_2(half), REST=triton.next_power_of_2(rest) if rest else 0,
    )  # fmt: skip
    return out


class Rotate(torch.autograd.Function):
    """The rotation by each position's angle; its gradient is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x_BTHD: Tensor, cos_TW: Tensor, sin_TW: Tensor) -> Tensor:
        """Same shape and dtype as x."""
        ctx.save_for_backward(cos_TW, sin_TW)
        return _launch(x_BTHD, cos_TW, sin_TW, 1.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """d x = the gradient turned back."""
        cos_TW, sin_TW = ctx.saved_tensors
        return _launch(grads[0], cos_TW, sin_TW, -1.0), None, None
