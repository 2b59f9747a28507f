"""The compression of NSA: one key or value for a block of tokens.

    phi(x[1..l]) = W2 gelu(W1 [x[1] + e[1], ..., x[l] + e[l]])          e the position inside the block

The paper has "a learnable MLP with intra-block position encoding" and gives no sizes: one hidden layer of the head's
width here. Legend: B batch, T token, C blocks, N tokens of a block, G key/value heads, D head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsabench.attention.pooled_dsa.pools import Pools, pooled


class Compression(nn.Module):
    """phi, the same for all KV heads."""

    def __init__(self, block: int, head_dim: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.empty(block, head_dim))
        self.hidden = nn.Linear(block * head_dim, head_dim, bias=False)
        self.out = nn.Linear(head_dim, head_dim, bias=False)

    def forward(self, x_BTGD: Tensor, blocks: Pools) -> Tensor:
        """(B, C, G, D) of (B, T, G, D)."""
        x_BCNGD = pooled(x_BTGD.flatten(2), blocks).unflatten(-1, x_BTGD.shape[2:])
        placed_BCGND = (x_BCNGD + self.position[:, None].to(x_BCNGD.dtype)).transpose(2, 3)
        compressed: Tensor = self.out(F.gelu(self.hidden(placed_BCGND.flatten(-2))))
        return compressed
