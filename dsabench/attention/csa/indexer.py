"""CSA's lightning indexer: scores of compressed entries, by a compressor of its own.

    I[t,e] = sum_j w[t,j] relu(q[t,j] . k[e])        k[e] of x by an overlapping compressor of the indexer's width

As DSA's indexer, with entries for tokens and the compressor's RMSNorm for its LayerNorm. Queries come from the layer's
input, because there is no query latent here. Source: DeepSeek-V4 (arXiv 2606.19348), section 2.3.1.

Legend: B batch, T query, E entry, D model width, J indexer heads, I indexer width.
"""

from __future__ import annotations

from torch import Tensor, nn

from dsabench.attention.base import AttentionContext
from dsabench.attention.csa.compressed_entries import Entries
from dsabench.attention.csa.compressor import Compressor
from dsabench.ops import rotate
from dsabench.spec.attention import CSASpec
from dsabench.spec.run import RunSpec


class CompressedIndexer(nn.Module):
    """Index scores I[t,e]. The heads share one key for each entry; the first half of a head is turned by position."""

    def __init__(self, spec: RunSpec, attention: CSASpec) -> None:
        super().__init__()
        indexer, d_model = attention.indexer, spec.model.d_model
        self.learns = indexer.loss == "kl"
        self.n_heads, self.head_dim = indexer.n_heads, indexer.head_dim
        self.rope_base, self.rope_scaling = spec.model.rope_base, spec.model.rope_scaling
        self.query = nn.Linear(d_model, self.n_heads * self.head_dim, bias=False)
        self.weight = nn.Linear(d_model, self.n_heads, bias=False)
        self.compressor = Compressor(
            d_model, 1, self.head_dim, attention.compress_ratio, True, indexer.norm_eps, values=False
        )
        # J^-1/2 I^-1/2 is the temperature of softmax(I) in the KL loss.
        self.scale = (self.n_heads * self.head_dim) ** -0.5

    def rotation(self, context: AttentionContext) -> tuple[Tensor, Tensor]:
        """cos and sin that turn the first half of a head, at the frequencies of the attention around it."""
        return context.rotation(self.head_dim // 2, self.rope_base, self.rope_scaling)

    def heads(self, x_BTD: Tensor, entries: Entries, context: AttentionContext) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, T, J, I), k (B, E, I) and w (B, T, J), all in the dtype of products. The input is detached here: no
        gradient of the indexer's loss reaches it."""
        x_BTD = x_BTD.detach()
        rotation = self.rotation(context)
        q_BTJI = rotate(self.query(x_BTD).unflatten(-1, (-1, self.head_dim)), *rotation)
        k_BE1I, _ = self.compressor(x_BTD, entries, rotation)
        w_BTJ = self.weight(x_BTD) * self.scale
        return q_BTJI, k_BE1I[:, :, 0].to(q_BTJI.dtype), w_BTJ.to(q_BTJI.dtype)

    def flops(self, spec: RunSpec, pairs: float) -> float:
        """Projections (no gradient to their input, so 4 of 6; 2 when untrained), and 2 J I for every pair of a query
        and an entry that it may see."""
        passes, d_model = (4.0 if self.learns else 2.0), spec.model.d_model
        columns = self.n_heads * self.head_dim + self.n_heads
        projections = passes * spec.length * d_model * columns + self.compressor.flops(spec.length, d_model, passes)
        return projections + 2.0 * pairs * self.n_heads * self.head_dim
