"""Strided: every r-th token before the query, the query's own included, over the whole past; where these are fewer
than k, the nearest others too. Source: the strided pattern of Sparse Transformers (arXiv 1904.10509), section 4.2.

    S[t] = {t - r i >= 0}, r = ceil(L / k), and the nearest others until there are min(k, t + 1)

Legend: B batch, T query, S key, L length, r stride, K slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsabench.attention.ablations.selecting import PositionalAttention, ascending_keys, distance
from dsabench.attention.base import AttentionContext
from dsabench.attention.dsa import reference
from dsabench.attention.registry import register
from dsabench.spec.attention import StridedSpec


@register
class Strided(PositionalAttention):
    """Attention over k tokens, as far as possible at equal distances."""

    spec_class = StridedSpec

    def scores(self, q_BTHD: Tensor, k_BSGD: Tensor, context: AttentionContext) -> Tensor:
        """s - t, but 1 where r divides it; s = 0..t holds at most ceil(L / r) <= k of these."""
        length = len(context.positions_T)
        stride = self._stride(length)
        apart_TS = distance(context)
        return torch.where(apart_TS % stride == 0, 1.0, -apart_TS.float())

    def keys(self, first_BT: Tensor, k: int) -> Tensor:
        """Every distance up to x, and then the multiples of r. x is the distance of the last of the others: of those
        that r does not divide, the n-th is n + (n - 1) // (r - 1)."""
        slot_K, t_T1, count_BT1 = ascending_keys(first_BT, k)
        stride = self._stride(first_BT.shape[1])
        others_BT1 = count_BT1 - ((t_T1 - first_BT[..., None]) // stride + 1)
        last_BT1 = torch.where(others_BT1 > 0, others_BT1 + (others_BT1 - 1) // max(1, stride - 1), -1)
        nearest_BTK = count_BT1 - 1 - slot_K  # the slot in order of distance
        beyond_BTK = (last_BT1 // stride + nearest_BTK - last_BT1) * stride
        apart_BTK = torch.where(nearest_BTK <= last_BT1, nearest_BTK, beyond_BTK)
        return torch.where(slot_K < count_BT1, t_T1 - apart_BTK, reference.EMPTY)

    def _stride(self, length: int) -> int:
        return -(-length // self.selecting.n_selected(length))
