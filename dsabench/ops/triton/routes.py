"""Tokens to routes sorted by expert, and the sum of each token's routes: gathers both ways, no atomic additions.

    x_R[r] = x[token of route r]        y[n] = sum_k y_R[inverse[n, k]]

Each is the other's gradient. An index_add would add in any order, and in bf16 by a loop of compare-and-swap.

Legend: N tokens, D width, K routes a token, R = N K routes.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsabench.ops.triton.jit import jit

_WIDE = 1024


@jit
def _sum(y, inverse, out, D, K: tl.constexpr, WIDE: tl.constexpr):
    """A program is WIDE columns of one token; the sum in fp32."""
    n = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    total = tl.zeros((WIDE,), dtype=tl.float32)
    for k in range(0, K):
        route = tl.load(inverse + n * K + k)
        total += tl.load(y + route * D + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(out + n * D + d, total.to(out.dtype.element_ty), mask=d < D)


def _gathered_sum(y_RD: Tensor, inverse_NK: Tensor) -> Tensor:
    y_RD = y_RD.contiguous()
    (count, k), width = inverse_NK.shape, y_RD.shape[1]
    out_ND = torch.empty(count, width, dtype=y_RD.dtype, device=y_RD.device)
    wide = min(_WIDE, triton.next_power_of_2(width))
    _sum[(count, triton.cdiv(width, wide))](y_RD, inverse_NK, out_ND, width, K=k, WIDE=wide)
    return out_ND


class ToRoutes(torch.autograd.Function):
    """(x (N, D), token (R,), inverse (N, K)) -> x[token], (R, D)."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, token_R: Tensor, inverse_NK: Tensor) -> Tensor:
        """A gather."""
        ctx.save_for_backward(inverse_NK)
        return x_ND.index_select(0, token_R)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """The sum of each token's routes."""
        (inverse_NK,) = ctx.saved_tensors
        if inverse_NK.shape[1] == 1:
            return grads[0].index_select(0, inverse_NK.flatten()), None, None
        return _gathered_sum(grads[0], inverse_NK), None, None


class FromRoutes(torch.autograd.Function):
    """(y (R, D), token (R,), inverse (N, K)) -> the sum of each token's routes, (N, D)."""

    @staticmethod
    def forward(ctx: Any, y_RD: Tensor, token_R: Tensor, inverse_NK: Tensor) -> Tensor:
        """In the dtype of y, summed in fp32."""
        ctx.save_for_backward(token_R)
        return _gathered_sum(y_RD, inverse_NK)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """A gather."""
        (token_R,) = ctx.saved_tensors
        return grads[0].index_select(0, token_R), None, None
