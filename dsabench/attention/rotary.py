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
