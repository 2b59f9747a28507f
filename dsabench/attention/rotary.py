"""Rotary position embedding (RoFormer, arXiv 2104.09864), in the half-split (non-interleaved) layout.

Legend: B batch, T query, H heads, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotation(positions_T: Tensor, width: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin of positions[t] * base^(-2i/width) for i < width/2; both (T, width/2), fp32."""
    exponent = torch.arange(0, width, 2, device=positions_T.device, dtype=torch.float32) / width
    angle = positions_T.float()[:, None] * base**-exponent
    return angle.cos(), angle.sin()


def rotate(x_BTHD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + D/2]) of every head by the position's angle i; same shape and dtype as x.

    out[i] = x[i] cos - x[i + D/2] sin,  out[i + D/2] = x[i + D/2] cos + x[i] sin
    """
    first, second = x_BTHD.float().chunk(2, dim=-1)
    cos, sin = cos_TD[:, None], sin_TD[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x_BTHD.dtype)
