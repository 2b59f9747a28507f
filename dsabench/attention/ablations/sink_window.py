"""Sinks and a window: the first tokens, which softmax attention uses as a place to put what it does not need, and the
nearest ones. Source: StreamingLLM (arXiv 2309.17453).

    S[t] = {0, ..., n - 1} and {t - (k - n) + 1, ..., t}

Legend: T query, S key, n sinks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsabench.attention.ablations.selecting import SelectingAttention, distance
from dsabench.attention.base import AttentionContext
from dsabench.attention.registry import register
from dsabench.spec.attention import SinkWindowSpec


@register
class SinkWindow(SelectingAttention):
    """Attention over the first n_sinks and the nearest other tokens."""

    spec_class = SinkWindowSpec

    def scores(self, q_BTHD: Tensor, k_BSGD: Tensor, context: AttentionContext) -> Tensor:
        """s - t, but 1 for the sinks; the query's own token, at 0, is the next."""
        assert isinstance(self.selecting, SinkWindowSpec)
        length = len(context.positions_T)
        sinks = min(self.selecting.n_sinks, self.selecting.n_selected(length) - 1)
        nearest_TS = -distance(context).float()
        first_S = torch.arange(length, device=nearest_TS.device) < sinks
        return torch.where(first_S, 1.0, nearest_TS)
