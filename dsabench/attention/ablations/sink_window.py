"""Sinks and a window: the first tokens, which softmax attention uses as a place to put what it does not need, and the
nearest ones. Source: StreamingLLM (arXiv 2309.17453).

    S[t] = {0, ..., n - 1} and {t - (k - n) + 1, ..., t}

Legend: B batch, T query, S key, n sinks, K slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsabench.attention.ablations.selecting import PositionalAttention, ascending_keys, distance
from dsabench.attention.base import AttentionContext
from dsabench.attention.dsa import reference
from dsabench.attention.registry import register
from dsabench.spec.attention import SinkWindowSpec


@register
class SinkWindow(PositionalAttention):
    """Attention over the first n_sinks and the nearest other tokens."""

    spec_class = SinkWindowSpec

    def scores(self, q_BTHD: Tensor, k_BSGD: Tensor, context: AttentionContext) -> Tensor:
        """s - t, but 1 for the sinks; the query's own token, at 0, is the next."""
        length = len(context.positions_T)
        sinks = self._sinks(self.selecting.n_selected(length))
        nearest_TS = -distance(context).float()
        first_S = torch.arange(length, device=nearest_TS.device) < sinks
        return torch.where(first_S, 1.0, nearest_TS)

    def keys(self, first_BT: Tensor, k: int) -> Tensor:
        """Those before n, of a document that begins there, and the last up to t."""
        slot_K, t_T1, count_BT1 = ascending_keys(first_BT, k)
        sinks_BT1 = (self._sinks(k) - first_BT[..., None]).clamp(min=0).minimum(count_BT1)
        key_BTK = torch.where(slot_K < sinks_BT1, first_BT[..., None] + slot_K, t_T1 + 1 - count_BT1 + slot_K)
        return torch.where(slot_K < count_BT1, key_BTK, reference.EMPTY)

    def _sinks(self, k: int) -> int:
        assert isinstance(self.selecting, SinkWindowSpec)
        return min(self.selecting.n_sinks, k - 1)
