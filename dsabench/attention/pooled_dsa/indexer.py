"""The indexer of pools: DSA's lightning indexer with one key a pool.

    I[t,c] = sum_j w[t,j] relu(q[t,j] . k[c])      k[c] = rotate(LayerNorm(mean of the pool's keys), its first position)

The mean is of keys before the norm and before rotation, as in Qwen3.8-Flash-Next (QSA). All else is DSA's, so that a
pair with `dsa` differs by the pools alone; `reference` says where the two released indexers differ from it.

Legend: B batch, T query or token, C pools, N tokens of a pool, D model width, J indexer heads, I indexer width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsabench.attention.base import AttentionContext, pairs
from dsabench.attention.dsa.indexer import LightningIndexer
from dsabench.attention.pooled_dsa.pools import Pools, pooled
from dsabench.ops import rotate
from dsabench.spec.attention import PooledDSASpec
from dsabench.spec.run import RunSpec


class PooledIndexer(LightningIndexer):
    """Index scores of pools. Its parameters have the names, the sizes and the start of LightningIndexer's."""

    def __init__(self, spec: RunSpec, attention: PooledDSASpec) -> None:
        super().__init__(spec, attention)
        self.attention = attention

    def pooled_heads(
        self, x_BTD: Tensor, pools: Pools, context: AttentionContext, source_BTD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, T, J, I), k (B, C, I) and w (B, T, J) in the dtype of products; no gradient reaches x or the source,
        which the attention's queries are made of."""
        x_BTD, source_BTD = x_BTD.detach(), source_BTD.detach()
        cos_TD, sin_TD = self.rotation(context)
        q_BTJI = rotate(self.query(source_BTD).unflatten(-1, (-1, self.head_dim)), cos_TD, sin_TD)
        keys_BCNI = pooled(self.key(x_BTD), pools)
        wide = torch.promote_types(keys_BCNI.dtype, torch.float32)
        k_BCI = self.key_norm(keys_BCNI.to(wide).mean(2).to(keys_BCNI.dtype))
        first_BC = pools.begin_BC.clamp(max=x_BTD.shape[1] - 1).expand(len(x_BTD), -1)
        # Each pool is turned by a position of its own: as a sequence of one token a pool.
        k_PI = rotate(k_BCI.flatten(0, 1)[:, None], cos_TD[first_BC.flatten()], sin_TD[first_BC.flatten()])
        k_BCI = k_PI.view_as(k_BCI).to(q_BTJI.dtype)
        w_BTJ = self.weight(x_BTD) * self.scale
        return q_BTJI, k_BCI, w_BTJ.to(q_BTJI.dtype)

    def pooled_flops(self, spec: RunSpec, seen: float) -> float:
        """As LightningIndexer.flops, with 2 J I for each of the `seen` pairs of a query and a pool that it sees."""
        every = 2.0 * pairs(spec) * self.n_heads * self.head_dim
        return self.flops(spec) - every + 2.0 * seen * self.n_heads * self.head_dim
