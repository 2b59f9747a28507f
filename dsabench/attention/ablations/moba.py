"""Mixture of block attention (MoBA): whole blocks of neighbouring tokens, scored by their mean key.

    score[t, b] = mean over heads of Q[t] . mean_{s in b} K[s]
    S[t] = t's own block, the max(1, k // size) - 1 best of those before it, and the nearest others until there are
           min(k, t + 1)

Source: MoBA (arXiv 2502.13189, section 2.2) and its released code (MoonshotAI/MoBA, moba_naive.py): keys after
rotation, mean over a block, scores without a softmax, the own block always and read as far as t, none that is not
wholly past.
Two things are other here, so that it is compared at DSA's number of keys: one selection serves all heads, where
MoBA's heads select by themselves; and where t's own block is not full yet, the nearest tokens of other blocks fill
S[t], where MoBA reads fewer. MoBA has no warm-up; `warmup_share: 0` is that.

Legend: B batch, T query, R queries of a slab, S key, H heads, G key/value heads, D head width, C blocks, N keys of a
block or best blocks, K slots.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dsabench.attention.ablations.selecting import SelectingAttention, distance, first_keys
from dsabench.attention.base import AttentionContext, pairs
from dsabench.attention.registry import register
from dsabench.spec.attention import MoBASpec

SLAB_NUMBERS = 2**24
"""Most scores of blocks of a slab of queries: 64 MiB."""


@register
class MoBA(SelectingAttention):
    """Attention over the best blocks."""

    spec_class = MoBASpec

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

    def select(self, q_BTHD: Tensor, k_BSGD: Tensor, k: int, context: AttentionContext) -> Tensor:
        """The same by slabs of queries, from one product with each block's mean key: L x L / size numbers in all."""
        from dsabench.attention.ablations.triton import index_lists

        length, size = q_BTHD.shape[1], self._size()
        first_BT = first_keys(context).expand(len(q_BTHD), -1)
        q_BTGD = q_BTHD.unflatten(2, (k_BSGD.shape[2], -1)).mean(3).float()
        keys_BCNGD = F.pad(k_BSGD.float(), (0, 0, 0, 0, 0, -length % size)).unflatten(1, (-1, size))
        mean_BCGD = keys_BCNGD.mean(2)  # of the last block, which is nobody's past, zeros are part
        rest_BSGD = keys_BCNGD.flip(2).cumsum(2).flip(2).flatten(1, 2)  # from a key to its block's end
        block_C = torch.arange(mean_BCGD.shape[1], device=q_BTHD.device)
        selected_BTK = torch.empty(len(q_BTHD), length, k, dtype=torch.int32, device=q_BTHD.device)
        count = min(max(1, self.selecting.n_selected(length) // size), len(block_C))
        rows = max(1, SLAB_NUMBERS // (len(q_BTHD) * len(block_C)))
        for at in range(0, length, rows):
            q_BRGD, first_BR = q_BTGD[:, at : at + rows], first_BT[:, at : at + rows].long()
            # The block in which the document begins counts from there.
            at_BRGD = first_BR[..., None, None].expand(-1, -1, *rest_BSGD.shape[2:])
            begun_BR = (q_BRGD * rest_BSGD.gather(1, at_BRGD)).sum((2, 3)) / (size - first_BR % size)
            with torch.autocast(q_BTHD.device.type, enabled=False):
                score_BRC = torch.einsum("brgd,bcgd->brc", q_BRGD, mean_BCGD)
            score_BRC = score_BRC.scatter(-1, first_BR[..., None] // size, begun_BR[..., None])
            own_R1 = (torch.arange(at, at + q_BRGD.shape[1], device=q_BTHD.device) // size)[:, None]
            outside = (block_C > own_R1) | (block_C < first_BR[..., None] // size)
            score_BRC = score_BRC.masked_fill(block_C == own_R1, torch.inf).masked_fill(outside, -torch.inf)
            best_BRN = score_BRC.topk(count, dim=-1).indices
            chosen_BRC = torch.zeros_like(score_BRC, dtype=torch.uint8).scatter(-1, best_BRN, 1)
            index_lists.blocks(chosen_BRC, first_BT.contiguous(), selected_BTK, at, size)
        return selected_BTK

    def _size(self) -> int:
        assert isinstance(self.selecting, MoBASpec)
        return min(self.selecting.block_size, self.selecting.n_selected(self.spec.length))

    def selection_flops(self) -> float:
        """Q against one mean key a block: 2 H head_dim for each causal pair of query and block."""
        return 2.0 * pairs(self.spec) * self.spec.model.heads_width / self._size()
