"""The indexer's one product with x, split by a kernel: rotated queries, a normed rotated key, weights.

    q = rotate(y_q)        k = rotate(LayerNorm(y_k))        w = y_w * scale

Rotations turn the first half of a head. In one launch each way instead of a dozen.

Legend: N tokens (B T), T time, C columns of the product, J indexer heads, I indexer width, W = I / 4, P programs.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from dsabench.ops.triton.jit import jit

_TOKENS = 16

_PROGRAMS = 264
"""Programs of the backward pass, each with a partial sum of the norm's gradients."""


@jit
def _read(x, at, w, W, rows, WIDE: tl.constexpr, REST: tl.constexpr):
    """The two quarters that rotate and the half that stays, in fp32."""
    quarter = rows & (w < W)[None, :]
    first = tl.load(x + at + w[None, :], mask=quarter, other=0.0).to(tl.float32)
    second = tl.load(x + at + W + w[None, :], mask=quarter, other=0.0).to(tl.float32)
    r = tl.arange(0, REST)
    rest = tl.load(x + at + 2 * W + r[None, :], mask=rows & (r < 2 * W)[None, :], other=0.0).to(tl.float32)
    return first, second, rest


@jit
def _write(x, at, first, second, rest, w, W, rows, WIDE: tl.constexpr, REST: tl.constexpr):
    quarter = rows & (w < W)[None, :]
    tl.store(x + at + w[None, :], first.to(x.dtype.element_ty), mask=quarter)
    tl.store(x + at + W + w[None, :], second.to(x.dtype.element_ty), mask=quarter)
    r = tl.arange(0, REST)
    tl.store(x + at + 2 * W + r[None, :], rest.to(x.dtype.element_ty), mask=rows & (r < 2 * W)[None, :])


@jit
def _affine(vector, w, W, WIDE: tl.constexpr, REST: tl.constexpr):
    r = tl.arange(0, REST)
    first = tl.load(vector + w, mask=w < W, other=0.0).to(tl.float32)
    second = tl.load(vector + W + w, mask=w < W, other=0.0).to(tl.float32)
    rest = tl.load(vector + 2 * W + r, mask=r < 2 * W, other=0.0).to(tl.float32)
    return first[None, :], second[None, :], rest[None, :]


@jit
def _normal(first, second, rest, w, W, eps, WIDE: tl.constexpr, REST: tl.constexpr):
    """(x - mean) / sqrt(var + eps) in three parts, and 1 / sqrt(var + eps)."""
    mean = (tl.sum(first, axis=1) + tl.sum(second, axis=1) + tl.sum(rest, axis=1)) / (4 * W)
    r = tl.arange(0, REST)
    first = tl.where((w < W)[None, :], first - mean[:, None], 0.0)
    second = tl.where((w < W)[None, :], second - mean[:, None], 0.0)
    rest = tl.where((r < 2 * W)[None, :], rest - mean[:, None], 0.0)
    square = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1) + tl.sum(rest * rest, axis=1)
    rstd = (1.0 / tl.sqrt(square / (4 * W) + eps))[:, None]
    return first * rstd, second * rstd, rest * rstd, rstd


@jit
def _forward(
    y, gain, bias, cos, sin, q, k, weight, N, T, C, J, W, eps, scale, R: tl.constexpr, WIDE: tl.constexpr,
    REST: tl.constexpr, WIDE_J: tl.constexpr,
):  # fmt: skip
    """A program is R tokens."""
    n = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    rows = (n < N)[:, None]
    w = tl.arange(0, WIDE)
    angle = (n % T)[:, None] * W + w[None, :]
    c = tl.load(cos + angle, mask=rows & (w < W)[None, :], other=0.0)
    s = tl.load(sin + angle, mask=rows & (w < W)[None, :], other=0.0)
    at = (n * C)[:, None]
    for j in range(0, J):
        first, second, rest = _read(y, at + j * 4 * W, w, W, rows, WIDE, REST)
        to = ((n * J + j) * 4 * W)[:, None]
        _write(q, to, first * c - second * s, second * c + first * s, rest, w, W, rows, WIDE, REST)
    first, second, rest = _read(y, at + J * 4 * W, w, W, rows, WIDE, REST)
    first, second, rest, _ = _normal(first, second, rest, w, W, eps, WIDE, REST)
    g1, g2, g3 = _affine(gain, w, W, WIDE, REST)
    b1, b2, b3 = _affine(bias, w, W, WIDE, REST)
    first, second, rest = first * g1 + b1, second * g2 + b2, rest * g3 + b3
    _write(k, (n * 4 * W)[:, None], first * c - second * s, second * c + first * s, rest, w, W, rows, WIDE, REST)
    j = tl.arange(0, WIDE_J)
    keep = rows & (j < J)[None, :]
    value = tl.load(y + at + (J + 1) * 4 * W + j[None, :], mask=keep, other=0.0).to(tl.float32) * scale
    tl.store(weight + (n * J)[:, None] + j[None, :], value.to(weight.dtype.element_ty), mask=keep)


@jit
def _backward(
    dq, dk, d_weight, y, gain, cos, sin, dy, d_affine, N, T, C, J, W, eps, scale, R: tl.constexpr, WIDE: tl.constexpr,
    REST: tl.constexpr, WIDE_J: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    w = tl.arange(0, WIDE)
    r = tl.arange(0, REST)
    j = tl.arange(0, WIDE_J)
    g1, g2, g3 = _affine(gain, w, W, WIDE, REST)
    gain1 = tl.zeros((WIDE,), dtype=tl.float32)
    gain2 = tl.zeros((WIDE,), dtype=tl.float32)
    gain3 = tl.zeros((REST,), dtype=tl.float32)
    bias1 = tl.zeros((WIDE,), dtype=tl.float32)
    bias2 = tl.zeros((WIDE,), dtype=tl.float32)
    bias3 = tl.zeros((REST,), dtype=tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(N, R), PROGRAMS):
        n = block * R + tl.arange(0, R).to(tl.int64)
        rows = (n < N)[:, None]
        angle = (n % T)[:, None] * W + w[None, :]
        c = tl.load(cos + angle, mask=rows & (w < W)[None, :], other=0.0)
        s = tl.load(sin + angle, mask=rows & (w < W)[None, :], other=0.0)
        at = (n * C)[:, None]
        for head in range(0, J):
            first, second, rest = _read(dq, ((n * J + head) * 4 * W)[:, None], w, W, rows, WIDE, REST)
            _write(dy, at + head * 4 * W, first * c + second * s, second * c - first * s, rest, w, W, rows, WIDE, REST)
        first, second, d3 = _read(dk, (n * 4 * W)[:, None], w, W, rows, WIDE, REST)
        d1, d2 = first * c + second * s, second * c - first * s
        x1, x2, x3 = _read(y, at + J * 4 * W, w, W, rows, WIDE, REST)
        x1, x2, x3, rstd = _normal(x1, x2, x3, w, W, eps, WIDE, REST)
        bias1 += tl.sum(d1, axis=0)
        bias2 += tl.sum(d2, axis=0)
        bias3 += tl.sum(d3, axis=0)
        gain1 += tl.sum(d1 * x1, axis=0)
        gain2 += tl.sum(d2 * x2, axis=0)
        gain3 += tl.sum(d3 * x3, axis=0)
        d1, d2, d3 = d1 * g1, d2 * g2, d3 * g3
        mean = ((tl.sum(d1, axis=1) + tl.sum(d2, axis=1) + tl.sum(d3, axis=1)) / (4 * W))[:, None]
        along = tl.sum(d1 * x1, axis=1) + tl.sum(d2 * x2, axis=1) + tl.sum(d3 * x3, axis=1)
        along = (along / (4 * W))[:, None]
        d1, d2, d3 = (d1 - mean - x1 * along) * rstd, (d2 - mean - x2 * along) * rstd, (d3 - mean - x3 * along) * rstd
        _write(dy, at + J * 4 * W, d1, d2, d3, w, W, rows, WIDE, REST)
        keep = rows & (j < J)[None, :]
        value = tl.load(d_weight + (n * J)[:, None] + j[None, :], mask=keep, other=0.0).to(tl.float32) * scale
        keep = rows & (j < C - (J + 1) * 4 * W)[None, :]  # the padding too, as zeros
        tl.store(dy + at + (J + 1) * 4 * W + j[None, :], value.to(dy.dtype.element_ty), mask=keep)
    out = d_affine + tl.program_id(0) * 8 * W
    tl.store(out + w, gain1, mask=w < W)
    tl.store(out + W + w, gain2, mask=w < W)
    tl.store(out + 2 * W + r, gain3, mask=r < 2 * W)
    tl.store(out + 4 * W + w, bias1, mask=w < W)
    tl.store(out + 5 * W + w, bias2, mask=w < W)
    tl.store(out + 6 * W + r, bias3, mask=r < 2 * W)


class IndexerHeads(torch.autograd.Function):
    """(y (B, T, C), LayerNorm's gain and bias (I,), its eps, cos and sin (T, W), J, scale of the weights) ->
    q (B, T, J, I), k (B, T, I), w (B, T, J) in the dtype of y; C = (J + 1) I + J, and columns of padding."""

    @staticmethod
    def forward(
        ctx: Any, y_BTC: Tensor, gain_I: Tensor, bias_I: Tensor, eps: float, cos_TW: Tensor, sin_TW: Tensor,
        n_heads: int, scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Shapes as above."""
        y_BTC = y_BTC.contiguous()
        n_batch, length, columns = y_BTC.shape
        width = len(gain_I)
        q_BTJI = y_BTC.new_empty(n_batch, length, n_heads, width)
        k_BTI, w_BTJ = y_BTC.new_empty(n_batch, length, width), y_BTC.new_empty(n_batch, length, n_heads)
        ctx.sizes = (n_batch * length, length, columns, n_heads, width // 4, eps, scale)
        ctx.tiles = _tiles(width, columns - (n_heads + 1) * width)
        _forward[(triton.cdiv(n_batch * length, _TOKENS),)](
            y_BTC, gain_I, bias_I, cos_TW, sin_TW, q_BTJI, k_BTI, w_BTJ, *ctx.sizes, **ctx.tiles
        )
        ctx.save_for_backward(y_BTC, gain_I, cos_TW, sin_TW)
        return q_BTJI, k_BTI, w_BTJ

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None, None, None]:
        """Gradients of y, gain and bias."""
        y_BTC, gain_I, cos_TW, sin_TW = ctx.saved_tensors
        dq, dk, dw = (grad.contiguous() for grad in grads)
        dy_BTC = torch.empty_like(y_BTC)
        partial_P2I = torch.empty(_PROGRAMS, 2, len(gain_I), dtype=torch.float32, device=y_BTC.device)
        _backward[(_PROGRAMS,)](
            dq, dk, dw, y_BTC, gain_I, cos_TW, sin_TW, dy_BTC, partial_P2I, *ctx.sizes, **ctx.tiles, PROGRAMS=_PROGRAMS
        )
        d_gain, d_bias = partial_P2I.sum(0).to(gain_I.dtype)
        return dy_BTC, d_gain, d_bias, None, None, None, None, None


def indexer_heads(
    y_BTC: Tensor, norm: nn.LayerNorm, cos_TW: Tensor, sin_TW: Tensor, n_heads: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """q (B, T, J, I), k (B, T, I) and w (B, T, J), as IndexerHeads says."""
    q_BTJI, k_BTI, w_BTJ = IndexerHeads.apply(
        y_BTC, norm.weight, norm.bias, norm.eps, cos_TW, sin_TW, n_heads, scale
    )  # fmt: skip
    return q_BTJI, k_BTI, w_BTJ


def _tiles(width: int, tail: int) -> dict[str, int]:
    """R tokens, and powers of 2 that hold a quarter and a half of a head and the columns after the key."""
    quarter = triton.next_power_of_2(width // 4)
    return {"R": _TOKENS, "WIDE": quarter, "REST": 2 * quarter, "WIDE_J": triton.next_power_of_2(tail)}
