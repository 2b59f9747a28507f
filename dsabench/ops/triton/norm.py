"""Residual addition, RMSNorm and the cast to the products' dtype, fused, forward and backward.

    x' = x + d        y = x' / sqrt(mean(x'^2) + eps) * w

Legend: N rows, D model width.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsabench.ops.triton.jit import jit

WIDEST = 16_384
"""Largest D of the fused version: a row is held by one program."""

_PROGRAMS = 264
"""Programs of the backward pass, each with a partial sum of the weight's gradient: two for each H100 multiprocessor."""


@jit
def _forward(x, d, w, x_out, y, scale, N, D, eps, HAS_D: tl.constexpr, R: tl.constexpr, WIDE: tl.constexpr):
    n = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    i = tl.arange(0, WIDE)
    keep = (n < N)[:, None] & (i < D)[None, :]
    at = n[:, None] * D + i[None, :]
    value = tl.load(x + at, mask=keep, other=0.0).to(tl.float32)
    if HAS_D:
        value += tl.load(d + at, mask=keep, other=0.0).to(tl.float32)
        tl.store(x_out + at, value.to(x_out.dtype.element_ty), mask=keep)
    r = 1.0 / tl.sqrt(tl.sum(value * value, axis=1) / D + eps)
    weight = tl.load(w + i, mask=i < D, other=0.0).to(tl.float32)
    tl.store(y + at, (value * r[:, None] * weight[None, :]).to(y.dtype.element_ty), mask=keep)
    tl.store(scale + n, r, mask=n < N)


@jit
def _backward(
    dy, dx_in, x, w, scale, dx, dd, dw, N, D, HAS_DX: tl.constexpr, HAS_D: tl.constexpr, R: tl.constexpr,
    WIDE: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    i = tl.arange(0, WIDE)
    weight = tl.load(w + i, mask=i < D, other=0.0).to(tl.float32)
    partial = tl.zeros((WIDE,), dtype=tl.float32)
    start = tl.program_id(0)
    for block in range(start, tl.cdiv(N, R), PROGRAMS):
        n = block * R + tl.arange(0, R).to(tl.int64)
        keep = (n < N)[:, None] & (i < D)[None, :]
        at = n[:, None] * D + i[None, :]
        r = tl.load(scale + n, mask=n < N, other=0.0)[:, None]
        normal = tl.load(x + at, mask=keep, other=0.0).to(tl.float32) * r
        g = tl.load(dy + at, mask=keep, other=0.0).to(tl.float32)
        partial += tl.sum(g * normal, axis=0)
        g = g * weight[None, :]
        grad = r * (g - normal * (tl.sum(g * normal, axis=1) / D)[:, None])
        if HAS_DX:
            grad += tl.load(dx_in + at, mask=keep, other=0.0).to(tl.float32)
        tl.store(dx + at, grad.to(dx.dtype.element_ty), mask=keep)
        if HAS_D:
            tl.store(dd + at, grad.to(dd.dtype.element_ty), mask=keep)
    tl.store(dw + start * D + i, partial, mask=i < D)


def _shape(x_ND: Tensor) -> tuple[int, int, int, int]:
    width = x_ND.shape[-1]
    wide = triton.next_power_of_2(width)
    return x_ND.numel() // width, width, max(1, 2048 // wide), wide


class AddNorm(torch.autograd.Function):
    """(x, d or None, w) -> (x', y); x' in x's dtype, y in `dtype`. Without d, x' is x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, d: Tensor | None, w: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Shapes as x, any leading dimensions."""
        x = x.contiguous()
        rows, width, tile, wide = _shape(x)
        x_out = x if d is None else torch.empty_like(x)
        y = torch.empty(x.shape, dtype=dtype, device=x.device)
        scale_N = torch.empty(rows, dtype=torch.float32, device=x.device)
        _forward[(triton.cdiv(rows, tile),)](
            x, x if d is None else d.contiguous(), w, x_out, y, scale_N, rows, width, eps, HAS_D=d is not None,
            R=tile, WIDE=wide,
        )  # fmt: skip
        ctx.save_for_backward(x_out, w, scale_N)
        ctx.dtype_d = None if d is None else d.dtype
        ctx.set_materialize_grads(False)
        return x_out, y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        """Gradients of x (in its dtype), d (in its own) and w."""
        x, w, scale_N = ctx.saved_tensors
        dx_in, dy = grads
        if dy is None:
            return dx_in, None if dx_in is None or ctx.dtype_d is None else dx_in.to(ctx.dtype_d), None, None, None
        rows, width, tile, wide = _shape(x)
        dx = torch.empty_like(x)
        dd = None if ctx.dtype_d is None else torch.empty(x.shape, dtype=ctx.dtype_d, device=x.device)
        partial_PD = torch.empty(_PROGRAMS, width, dtype=torch.float32, device=x.device)
        _backward[(_PROGRAMS,)](
            dy.contiguous(), x if dx_in is None else dx_in.contiguous(), x, w, scale_N, dx, dx if dd is None else dd,
            partial_PD, rows, width, HAS_DX=dx_in is not None, HAS_D=dd is not None, R=tile, WIDE=wide,
            PROGRAMS=_PROGRAMS,
        )  # fmt: skip
        return dx, dd, partial_PD.sum(0).to(w.dtype), None, None
