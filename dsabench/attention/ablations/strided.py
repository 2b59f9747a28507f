"""Strided: every r-th token before the query, the query's own included, over the whole past; where these are fewer
than k, the nearest others too. Source: the strided pattern of Sparse Transformers (arXiv 1904.10509), section 4.2.

    S[t] = {t - r i >= 0}, r = ceil(L / k), and the nearest others until there are min(k, t + 1)

Legend: T query, S key, L length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsabench.attention.ablations.selecting import SelectingAttention, distance
from dsabench.attention.base import AttentionContext
from dsabench.attention.registry import register
from dsabench.spec.attention import StridedSpec


@register
class Strided(SelectingAttention):
    """Attention over k tokens, as far as possible at equal distances."""

    spec_class = StridedSpec

    def scores(self, q_BTHD: Tensor, k_BSGD: Tensor, context: AttentionContext) -> Tensor:
        """s - t, but 1 where r divides it; s = 0..t holds at most ceil(L / r) <= k of these."""
        length = len(context.positions_T)
        stride = -(-length // self.selecting.n_selected(length))
        apart_TS = distance(context)
        return torch.where(apart_TS % stride == 0, 1.0, -apart_TS.float())
