"""Scaled embedding, fused: y = E[token] * scale; the gradient by atomic additions instead of a sort of the tokens.

Legend: N tokens, D model width, V vocabulary.
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
def _gather(tokens, weight, out, D, scale, WIDE: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    value = tl.load(weight + tl.load(tokens + n) * D + d, mask=d < D, other=0.0).to(tl.float32) * scale
    tl.store(out + n * D + d, value.to(out.dtype.element_ty), mask=d < D)


class Embed(torch.autograd.Function):
    """(tokens int64 of any shape, E (V, D), scale) -> E[tokens] * scale, in the dtype of E."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight_VD: Tensor, scale: float) -> Tensor:
        """Shape of tokens, and D."""
        tokens, weight_VD = tokens.contiguous(), weight_VD.contiguous()
        width = weight_VD.shape[1]
        out = weight_VD.new_empty(*tokens.shape, width)
        wide = min(_WIDE, triton.next_power_of_2(width))
        grid = (tokens.numel(), triton.cdiv(width, wide))
        _gather[grid](tokens, weight_VD, out, width, scale, WIDE=wide, num_warps=max(1, wide // 128))
        ctx.save_for_backward(tokens)
        ctx.shape, ctx.scale = weight_VD.shape, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        """In no fixed order of additions."""
        (tokens,) = ctx.saved_tensors
        d_VD = grads[0].new_zeros(ctx.shape)
        d_VD.index_add_(0, tokens.flatten(), grads[0].flatten(0, -2), alpha=ctx.scale)
        return None, d_VD, None
