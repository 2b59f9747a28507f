"""Rotary position embedding (RoFormer, arXiv 2104.09864), in the half-split (non-interleaved) layout.

Element i of a head turns with element i + width/2. For the indexer this is DeepSeek-V3.2's layout as its released
inference code was corrected in November 2025: the first release turned neighbours (2i and 2i + 1, interleaved) there,
which is the layout of DeepSeek's main attention alone. A model trained with one layout and run with the other has
other scores; trained from the start, the two differ by the order of the columns of its projections.

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
