"""The lightning indexer of DeepSeek Sparse Attention: the module that scores the past.

    I[t,s] = sum_j w[t,j] relu(q[t,j] . k[s])

Source: DeepSeek-V3.2's released inference/model.py for LayerNorm (epsilon 1e-6), partial rotary embedding (half-split,
as corrected in November 2025; the first release interleaved) and scale.

Legend: B batch, T query, S key, D model width, J indexer heads, I indexer width, C columns of one product.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsabench.attention.base import AttentionContext, pairs
from dsabench.attention.dsa import masked, reference
from dsabench.attention.latent import query_source_width
from dsabench.ops import fused, rotate
from dsabench.spec.attention import DSASpec
from dsabench.spec.run import RunSpec


class LightningIndexer(nn.Module):
    """Index scores I[t,s]. The heads share one key for each token. Weights w are signed, and come from the query's
    token."""

    def __init__(self, spec: RunSpec, attention: DSASpec) -> None:
        super().__init__()
        indexer, self.plain = attention.indexer, attention.backend == "reference"
        self.learns = indexer.loss == "kl"
        self.n_heads, self.head_dim = indexer.n_heads, indexer.head_dim
        self.rope_base, self.rope_scaling = spec.model.rope_base, spec.model.rope_scaling
        self.query = nn.Linear(query_source_width(spec.model), self.n_heads * self.head_dim, bias=False)
        self.key = nn.Linear(spec.model.d_model, self.head_dim, bias=False)
        self.key_norm = nn.LayerNorm(self.head_dim, eps=indexer.norm_eps)
        self.weight = nn.Linear(spec.model.d_model, self.n_heads, bias=False)
        # J^-1/2 I^-1/2 is the temperature of softmax(I) in the KL loss.
        self.scale = (self.n_heads * self.head_dim) ** -0.5

    def forward(self, x_BTD: Tensor, context: AttentionContext) -> Tensor:
        """Scores (B, T, S), unmasked; no gradient reaches x."""
        return self.scores(*self.heads(x_BTD, context))

    def rotation(self, context: AttentionContext) -> tuple[Tensor, Tensor]:
        """cos and sin that turn the first half of a head, at the frequencies of the attention around it."""
        return context.rotation(self.head_dim // 2, self.rope_base, self.rope_scaling)

    def scores(self, q_BTJI: Tensor, k_BTI: Tensor, w_BTJ: Tensor) -> Tensor:
        """(B, T, S) of what `heads` gives."""
        index_scores = reference.index_scores if self.plain else masked.index_scores
        return index_scores(q_BTJI, k_BTI, w_BTJ).float()

    def heads(
        self, x_BTD: Tensor, context: AttentionContext, source_BTD: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, T, J, I), k (B, T, I) and w (B, T, J), all in the dtype of products. The input is detached here: no
        gradient of the indexer's loss reaches it. source: what the attention's own queries are made of, as in
        DeepSeek-V3.2; None is x."""
        apart = source_BTD is not None and source_BTD is not x_BTD
        x_BTD = x_BTD.detach()
        source_BTD = source_BTD.detach() if source_BTD is not None and apart else x_BTD
        cos_TD, sin_TD = self.rotation(context)
        if not self.plain and fused(x_BTD, self.query.weight, self.key_norm.weight):
            return self._fused_heads(x_BTD, source_BTD, cos_TD, sin_TD)
        q_BTJI = self.query(source_BTD).unflatten(-1, (-1, self.head_dim))
        q_BTJI = rotate(q_BTJI, cos_TD, sin_TD)  # the first half only
        k_BTI = rotate(self.key_norm(self.key(x_BTD))[:, :, None], cos_TD, sin_TD)[:, :, 0]
        w_BTJ = self.weight(x_BTD) * self.scale
        return q_BTJI, k_BTI.to(q_BTJI.dtype), w_BTJ.to(q_BTJI.dtype)

    def _fused_heads(
        self, x_BTD: Tensor, source_BTD: Tensor, cos_TD: Tensor, sin_TD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, T, J, I), k (B, T, I) and w (B, T, J), by one product, or two of another source, and one kernel."""
        from dsabench.attention.dsa.triton.indexer_heads import indexer_heads

        weights = [self.query.weight, self.key.weight, self.weight.weight]
        # Tensor cores take rows of a multiple of 16 bytes.
        padding = self.key.weight.new_zeros(-sum(map(len, weights)) % 8, x_BTD.shape[-1])
        if source_BTD is x_BTD:
            y_BTC = F.linear(x_BTD, torch.cat([*weights, padding]))
        else:
            rest_BTC = F.linear(x_BTD, torch.cat([*weights[1:], padding]))
            y_BTC = torch.cat([F.linear(source_BTD, weights[0]), rest_BTC], dim=-1)
        return indexer_heads(y_BTC, self.key_norm, cos_TD, sin_TD, self.n_heads, self.scale)

    def flops(self, spec: RunSpec) -> float:
        """Projections (no gradient to their input, so 4 of 6; 2 when untrained), and 2 J I for every causal pair."""
        of_queries = query_source_width(spec.model) * self.n_heads * self.head_dim
        numbers = of_queries + spec.model.d_model * (self.head_dim + self.n_heads)
        scores = 2.0 * pairs(spec) * self.n_heads * self.head_dim
        return (4.0 if self.learns else 2.0) * spec.length * numbers + scores
