"""Block selection: whole blocks of neighbouring tokens, scored by their mean key. Source: MoBA (arXiv 2502.13189), but
with one selection for all heads, as DSA has it.

    score[t, b] = mean over heads of Q[t] . mean_{s in b} K[s]
    S[t] = t's own block, the max(1, k // size) - 1 best of those before it, and the nearest others until there are
           min(k, t + 1)

Legend: B batch, T query, S key, H heads, G key/value heads, D head width, C blocks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dsabench.attention.ablations.selecting import SelectingAttention, distance
from dsabench.attention.base import AttentionContext, pairs
from dsabench.attention.registry import register
from dsabench.spec.attention import BlockSpec


@register
class Block(SelectingAttention):
    """Attention over the best blocks."""

    spec_class = BlockSpec

    def scores(self, q_BTHD: Tensor, k_BSGD: Tensor, context: AttentionContext) -> Tensor:
        """1 in the selected blocks, else s - t. Means are over allowed keys: a block that another document begins
        is scored by the query's own part of it."""
        length = len(context.positions_T)
        size = self._size()
        count = max(1, self.selecting.n_selected(length) // size)
        groups = k_BSGD.shape[2]
        q_BTGD = q_BTHD.unflatten(2, (groups, -1)).mean(3)
        dots_BTS = torch.einsum("btgd,bsgd->bts", q_BTGD.float(), k_BSGD.float())
        allowed = context.allowed.expand_as(dots_BTS)
        pad = (0, -length % size)
        sums_BTC = F.pad(dots_BTS * allowed, pad).unflatten(-1, (-1, size)).sum(-1)
        counts_BTC = F.pad(allowed.float(), pad).unflatten(-1, (-1, size)).sum(-1)
        block_C = torch.arange(sums_BTC.shape[-1], device=q_BTHD.device)
        own_TC = (torch.arange(length, device=q_BTHD.device) // size)[:, None] == block_C
        means_BTC = (sums_BTC / counts_BTC.clamp(min=1)).masked_fill(counts_BTC == 0, -torch.inf)
        means_BTC = means_BTC.masked_fill(own_TC, torch.inf)
        best_BTN = means_BTC.topk(min(count, len(block_C)), dim=-1).indices
        chosen_BTC = torch.zeros_like(means_BTC).scatter(-1, best_BTN, 1.0)
        chosen_BTS = chosen_BTC.repeat_interleave(size, dim=-1)[..., :length]
        return torch.where(chosen_BTS > 0, 1.0, -distance(context).float())

    def _size(self) -> int:
        assert isinstance(self.selecting, BlockSpec)
        return min(self.selecting.block_size, self.selecting.n_selected(self.spec.length))

    def selection_flops(self) -> float:
        """Q against one mean key a block: 2 H head_dim for each causal pair of query and block."""
        return 2.0 * pairs(self.spec) * self.spec.model.heads_width / self._size()
