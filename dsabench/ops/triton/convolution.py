"""Short causal convolution of each channel, with its input added, fused, forward and backward.

    y[t] = x[t] + sum_{i < N, t - i >= begin[t]} w[i] x[t - i]
    dx[t] = dy[t] + sum_{i < N, begin[t + i] <= t} w[i] dy[t + i]        dw[i] = sum_t dy[t] x[t - i]

A program holds a tile of tokens and channels; the shifted tiles come from the caches, so memory is read and written
about once.

Legend: B rows, T time, D channels, N taps, P programs.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsabench.ops.triton.jit import jit

_WIDE = 128
"""Channels of a tile."""

_TALL = 32
"""Tokens of a tile."""

_STRIPS = 64
"""Programs along time in the backward pass, each with a partial sum of the weight's gradient."""


@jit
def _forward(x, w, begin, y, T, D, N: tl.constexpr, PACKED: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr):
    row = tl.program_id(2).to(tl.int64)
    t = tl.program_id(0) * TALL + tl.arange(0, TALL)
    d = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    first = tl.load(begin + row * T + t, mask=t < T, other=0) if PACKED else tl.zeros((TALL,), dtype=tl.int32)
    at = (row * T + t[:, None]) * D + d[None, :]
    inside = (t < T)[:, None] & (d < D)[None, :]
    total = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    for i in tl.static_range(N):
        seen = inside & (t - i >= first)[:, None]
        tap = tl.load(w + d * N + i, mask=d < D, other=0.0).to(tl.float32)
        total += tap[None, :] * tl.load(x + at - i * D, mask=seen, other=0.0).to(tl.float32)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=inside)


@jit
def _backward(
    dy, x, w, begin, dx, dw, T, D, N: tl.constexpr, TAPS: tl.constexpr, PACKED: tl.constexpr, STRIPS: tl.constexpr,
    TALL: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    strip, row = tl.program_id(0), tl.program_id(2).to(tl.int64)
    d = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    tap_number = tl.arange(0, TAPS)
    partial = tl.zeros((TAPS, WIDE), dtype=tl.float32)
    for tile in range(strip, tl.cdiv(T, TALL), STRIPS):
        t = tile * TALL + tl.arange(0, TALL)
        at = (row * T + t[:, None]) * D + d[None, :]
        inside = (t < T)[:, None] & (d < D)[None, :]
        first = tl.load(begin + row * T + t, mask=t < T, other=0) if PACKED else tl.zeros((TALL,), dtype=tl.int32)
        grad = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        total = grad
        for i in tl.static_range(N):
            tap = tl.load(w + d * N + i, mask=d < D, other=0.0).to(tl.float32)
            later = t + i < T
            if PACKED:
                later = later & (tl.load(begin + row * T + t + i, mask=t + i < T, other=0) <= t)
            after = tl.load(dy + at + i * D, mask=inside & later[:, None], other=0.0).to(tl.float32)
            total += tap[None, :] * after
            seen = inside & (t - i >= first)[:, None]
            before = tl.load(x + at - i * D, mask=seen, other=0.0).to(tl.float32)
            partial += tl.where(tap_number[:, None] == i, tl.sum(grad * before, axis=0)[None, :], 0.0)
        tl.store(dx + at, total.to(dx.dtype.element_ty), mask=inside)
    place = ((row * STRIPS + strip) * D + d[None, :]) * N + tap_number[:, None]
    tl.store(dw + place, partial, mask=(d < D)[None, :] & (tap_number < N)[:, None])


class ShortConvolution(torch.autograd.Function):
    """(x (B, T, D), w (D, N), begin (B, T) int32 or None) -> y, in the dtype of x; sums in fp32, in a fixed order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, begin: Tensor | None) -> Tensor:
        """Shape and dtype of x."""
        x, w = x.contiguous(), w.contiguous()
        rows, length, width = x.shape
        y = torch.empty_like(x)
        grid = (triton.cdiv(length, _TALL), triton.cdiv(width, _WIDE), rows)
        _forward[grid](
            x, w, x if begin is None else begin, y, length, width, N=w.shape[1], PACKED=begin is not None, TALL=_TALL,
            WIDE=_WIDE,
        )  # fmt: skip
        ctx.save_for_backward(x, w, begin)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of x (in its dtype) and w."""
        x, w, begin = ctx.saved_tensors
        rows, length, width = x.shape
        n_taps = w.shape[1]
        dx = torch.empty_like(x)
        strips = min(_STRIPS, triton.cdiv(length, _TALL))
        partial_PDN = torch.empty(rows * strips, width, n_taps, dtype=torch.float32, device=x.device)
        _backward[(strips, triton.cdiv(width, _WIDE), rows)](
            grads[0].contiguous(), x, w, x if begin is None else begin, dx, partial_PDN, length, width, N=n_taps,
            TAPS=max(2, triton.next_power_of_2(n_taps)), PACKED=begin is not None, STRIPS=strips, TALL=_TALL,
            WIDE=_WIDE,
        )  # fmt: skip
        return dx, partial_PDN.sum(0).to(w.dtype), None
