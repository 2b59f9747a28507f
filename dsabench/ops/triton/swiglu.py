"""SwiGLU with a weight a row, fused: h = silu(g) * u * w, forward and backward in one pass each.

Where w is 0 (an expert that was not chosen) nothing is read: h, dg and du are 0 anyway, and dw is written as 0.

Legend: N tokens, E experts, F expert width.
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
def _forward(g, u, w, h, F, WIDE: tl.constexpr):
    """A program is a row (n, e)."""
    row = tl.program_id(0).to(tl.int64)
    weight = tl.load(w + row).to(tl.float32)
    read = tl.where(weight != 0.0, F, 0)
    for start in range(0, F, WIDE):
        i = start + tl.arange(0, WIDE)
        keep = i < read
        gate = tl.load(g + row * F + i, mask=keep, other=0.0).to(tl.float32)
        up = tl.load(u + row * F + i, mask=keep, other=0.0).to(tl.float32)
        out = gate * tl.sigmoid(gate) * up * weight
        tl.store(h + row * F + i, out.to(h.dtype.element_ty), mask=i < F)


@jit
def _backward(dh, g, u, w, dg, du, dw, F, WIDE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    weight = tl.load(w + row).to(tl.float32)
    read = tl.where(weight != 0.0, F, 0)
    total = tl.zeros((WIDE,), dtype=tl.float32)
    for start in range(0, F, WIDE):
        i = start + tl.arange(0, WIDE)
        keep = i < read
        gate = tl.load(g + row * F + i, mask=keep, other=0.0).to(tl.float32)
        up = tl.load(u + row * F + i, mask=keep, other=0.0).to(tl.float32)
        grad = tl.load(dh + row * F + i, mask=keep, other=0.0).to(tl.float32)
        s = tl.sigmoid(gate)
        total += grad * gate * s * up
        grad = grad * weight
        tl.store(du + row * F + i, (grad * gate * s).to(du.dtype.element_ty), mask=i < F)
        tl.store(dg + row * F + i, (grad * up * s * (1 + gate * (1 - s))).to(dg.dtype.element_ty), mask=i < F)
    tl.store(dw + row, tl.sum(total, axis=0).to(dw.dtype.element_ty))


def _shape(width: int) -> tuple[int, int]:
    """Columns at a time, and warps: 8 columns a thread, 16 bytes in bf16."""
    wide = min(_WIDE, int(triton.next_power_of_2(width)))
    return wide, max(1, wide // 256)


class SwiGLU(torch.autograd.Function):
    """(g (N, E, F), u (N, E, F), w (N, E)) -> h (N, E, F)."""

    @staticmethod
    def forward(ctx: Any, g_NEF: Tensor, u_NEF: Tensor, w_NE: Tensor) -> Tensor:
        """h in g's dtype."""
        g_NEF, u_NEF, w_NE = g_NEF.contiguous(), u_NEF.contiguous(), w_NE.contiguous()
        width = g_NEF.shape[-1]
        h_NEF = torch.empty_like(g_NEF)
        wide, warps = _shape(width)
        _forward[(w_NE.numel(),)](g_NEF, u_NEF, w_NE, h_NEF, width, WIDE=wide, num_warps=warps)
        ctx.save_for_backward(g_NEF, u_NEF, w_NE)
        return h_NEF

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of g, u and w."""
        g_NEF, u_NEF, w_NE = ctx.saved_tensors
        width = g_NEF.shape[-1]
        dg_NEF, du_NEF, dw_NE = torch.empty_like(g_NEF), torch.empty_like(u_NEF), torch.empty_like(w_NE)
        wide, warps = _shape(width)
        _backward[(w_NE.numel(),)](
            grads[0].contiguous(), g_NEF, u_NEF, w_NE, dg_NEF, du_NEF, dw_NE, width, WIDE=wide, num_warps=warps
        )
        return dg_NEF, du_NEF, dw_NE
