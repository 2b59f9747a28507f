"""Rotary position embedding (RoFormer, arXiv 2104.09864), in the half-split (non-interleaved) layout.

Element i of a head turns with element i + width/2. For the indexer this is DeepSeek-V3.2's layout as its released
inference code was corrected in November 2025: the first release turned neighbours (2i and 2i + 1, interleaved) there,
which is the layout of DeepSeek's main attention alone. A model trained with one layout and run with the other has
other scores; trained from the start, the two differ by the order of the columns of its projections.

Legend: B batch, T query, H heads, D head width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dsabench.spec.model_settings import RopeScaling


def rotation(positions_T: Tensor, width: int, base: float, scaling: RopeScaling | None = None) -> tuple[Tensor, Tensor]:
    """cos and sin of positions[t] * f[i], f[i] = base^(-2i/width) for i < width/2, stretched where there is a scaling;
    both (T, width/2), fp32."""
    exponent = torch.arange(0, width, 2, device=positions_T.device, dtype=torch.float32) / width
    frequency = base**-exponent
    if scaling is not None:
        frequency = _stretched(frequency, scaling)
    angle = positions_T.float()[:, None] * frequency
    return angle.cos(), angle.sin()


def _stretched(frequency: Tensor, scaling: RopeScaling) -> Tensor:
    """Frequencies by the formula of RopeScaling: f where short wavelengths are kept (s = 1), f / factor where long ones
    are wholly stretched (s = 0)."""
    turns = scaling.original_length * frequency / (2 * math.pi)
    share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = share.clamp(0, 1)
    return kept * frequency + (1 - kept) * frequency / scaling.factor
