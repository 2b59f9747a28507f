"""Oracle: the k tokens that full attention gives most mass, so the most mass that any k tokens can hold. It computes
full attention to find them, and can never be cheaper than dense.

    score[t, s] = mean over heads of softmax(Q[t] K[0..t]^T / sqrt(D))[s]

Legend: B batch, T query, R queries of a slab, S key, H heads, G key/value heads, D head width, K slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsabench.attention.ablations.selecting import SelectingAttention
from dsabench.attention.base import AttentionContext, pairs
from dsabench.attention.dsa import masked
from dsabench.attention.dsa.reference import allowed_at
from dsabench.attention.registry import register
from dsabench.spec.attention import OracleSpec

SLAB_NUMBERS = 2**26
"""Most probabilities of a slab of queries, over rows and heads: 128 MiB of bf16."""


@register
class Oracle(SelectingAttention):
    """Attention over the k tokens of the largest full-attention probability, mean over heads."""

    spec_class = OracleSpec

    def scores(self, q_BTHD: Tensor, k_BSGD: Tensor, context: AttentionContext) -> Tensor:
        """Full softmax probabilities."""
        _, p_BTS = masked.attention(q_BTHD, k_BSGD, k_BSGD, context.allowed, self.scale)
        return p_BTS

    def select(self, q_BTHD: Tensor, k_BSGD: Tensor, k: int, context: AttentionContext) -> Tensor:
        """The same by slabs of queries, each over the keys up to its last query."""
        from dsabench.attention.ablations.triton import index_lists

        n_batch, length, n_heads = q_BTHD.shape[:3]
        selected_BTK = torch.empty(n_batch, length, k, dtype=torch.int32, device=q_BTHD.device)
        rows = max(1, SLAB_NUMBERS // (n_batch * n_heads * length))
        for first in range(0, length, rows):
            end = min(first + rows, length)
            ids_BS = None if context.document_ids_BT is None else context.document_ids_BT[:, :end]
            allowed = allowed_at(torch.arange(first, end, device=q_BTHD.device), end, ids_BS)
            past_BSGD = k_BSGD[:, :end]
            _, p_BRS = masked.attention(q_BTHD[:, first:end], past_BSGD, past_BSGD, allowed, self.scale)
            index_lists.masked(masked.selection_mask(p_BRS, allowed, k), selected_BTK, first)
        return selected_BTK

    def selection_flops(self) -> float:
        """Q K^T of every causal pair, forward: 2 H head_dim for each."""
        return 2.0 * pairs(self.spec) * self.spec.model.heads_width
