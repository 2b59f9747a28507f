"""Oracle: the k tokens that full attention gives most mass, so the most mass that any k tokens can hold. It computes
full attention to find them, and can never be cheaper than dense.

    score[t, s] = mean over heads of softmax(Q[t] K[0..t]^T / sqrt(D))[s]

Legend: B batch, T query, S key, D head width.
"""

from __future__ import annotations

from torch import Tensor

from dsabench.attention.ablations.selecting import SelectingAttention
from dsabench.attention.base import AttentionContext, pairs
from dsabench.attention.dsa import masked
from dsabench.attention.registry import register
from dsabench.spec.attention import OracleSpec


@register
class Oracle(SelectingAttention):
    """Attention over the k tokens of the largest full-attention probability, mean over heads."""

    spec_class = OracleSpec

    def scores(self, q_BTHD: Tensor, k_BSGD: Tensor, context: AttentionContext) -> Tensor:
        """Full softmax probabilities."""
        _, p_BTS = masked.attention(q_BTHD, k_BSGD, k_BSGD, context.allowed)
        return p_BTS

    def selection_flops(self) -> float:
        """Q K^T of every causal pair, forward: 2 H head_dim for each."""
        return 2.0 * pairs(self.spec) * self.spec.model.heads_width
