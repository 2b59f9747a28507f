"""Pools of neighbouring tokens of a window: where they begin, which of them a query may see, and what is left over.

A document is cut into pools from its own first token. A pool holds `size` tokens, the next begins `stride` tokens
later; where the two are equal, every token is in one pool. A query sees a pool once the pool's last token is no later
than the query, in the query's document: never a pool that the query is inside of, for that holds tokens after it. The
tokens of its document after the last pool that it sees are the query's tail.

Legend: B batch (1 where no documents are packed), T query or token, C pools of a row, in the order of their tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dsabench.attention.base import AttentionContext
from dsabench.attention.dsa.reference import document_starts


class Pools(NamedTuple):
    """The pools of each row. All int64; no tensor of T x C elements, and no size that depends on values."""

    size: int
    stride: int
    packed: bool
    """Whether the rows hold several documents."""

    begin_BC: Tensor
    """The first token of each pool; the window's length where a row has fewer pools."""

    before_BT: Tensor
    """How many pools of earlier documents the row has before the token's own document: the first that it may see."""

    visible_BT: Tensor
    """How many pools the query sees: before <= c < before + visible."""

    tail_BT: Tensor
    """The first token of the query's tail, which ends at the query: it is empty where tail = t + 1."""

    start_BT: Tensor
    """The first token of the token's document."""

    @property
    def end_BC(self) -> Tensor:
        """The last token of each pool."""
        return self.begin_BC + self.size - 1

    def seen(self) -> Tensor:
        """(B, T, C) True where a query sees a pool."""
        return self.seen_by(slice(None), self.begin_BC.shape[1])

    def seen_by(self, queries: slice, n_pools: int) -> Tensor:
        """(B, R, C) of some queries and the first pools."""
        pool_C = torch.arange(n_pools, device=self.begin_BC.device)
        first_BR1 = self.before_BT[:, queries, None]
        return (pool_C >= first_BR1) & (pool_C < first_BR1 + self.visible_BT[:, queries, None])

    def pool_BT(self) -> Tensor:
        """(B, T) the pool that a token is in, where pools do not overlap; -1 where its pool never becomes complete."""
        token_T = torch.arange(self.before_BT.shape[1], device=self.begin_BC.device)
        # Pools that ended before the token; the next one is its own, unless that begins later.
        ended_BT = torch.searchsorted(self.end_BC, token_T.expand_as(self.before_BT).contiguous())
        inside_BT = ended_BT.clamp(max=self.begin_BC.shape[1] - 1)
        begin_BT = self.begin_BC.gather(1, inside_BT)
        return torch.where((ended_BT == inside_BT) & (begin_BT <= token_T), inside_BT, -1)


def pools_of(context: AttentionContext, size: int, stride: int | None = None) -> Pools:
    """The pools of the window, once a forward pass. stride: as large as the pool where None; never larger."""
    stride = size if stride is None else stride
    return context.once(("pools", size, stride), lambda: _cut(context, size, stride))


def _cut(context: AttentionContext, size: int, stride: int) -> Pools:
    length = len(context.positions_T)
    token_T = torch.arange(length, device=context.positions_T.device)
    ids_BT = context.document_ids_BT
    start_BT = torch.zeros_like(token_T)[None] if ids_BT is None else document_starts(ids_BT).long()
    place_BT = token_T - start_BT + 1  # tokens of the document up to this one
    visible_BT = ((place_BT - size).div(stride, rounding_mode="floor") + 1).clamp(min=0)
    ends_BT = (place_BT >= size) & ((place_BT - size) % stride == 0)
    ended_BT = ends_BT.cumsum(1)
    before_BT = ended_BT - visible_BT
    most = max(1, length // stride)
    # The token at which the c-th pool ends: `length` where there is none.
    nth_BC = torch.arange(1, most + 1, device=token_T.device).expand(len(start_BT), -1).contiguous()
    end_BC = torch.searchsorted(ended_BT, nth_BC)
    begin_BC = torch.where(end_BC < length, end_BC - size + 1, length)
    tail_BT = torch.where(visible_BT > 0, start_BT + (visible_BT - 1) * stride + size, start_BT)
    return Pools(size, stride, ids_BT is not None, begin_BC, before_BT, visible_BT, tail_BT, start_BT)


def pooled(x_BTW: Tensor, pools: Pools) -> Tensor:
    """(B, C, size, W): the tokens of each pool; of a pool that is not there some others, which nobody sees."""
    if not pools.packed and x_BTW.shape[1] >= pools.size:
        x_BCWN = x_BTW.unfold(1, pools.size, pools.stride)
        missing = pools.begin_BC.shape[1] - x_BCWN.shape[1]
        return F.pad(x_BCWN, (0, 0, 0, 0, 0, missing)).transpose(2, 3)
    offset_N = torch.arange(pools.size, device=x_BTW.device)
    token_BCN = (pools.begin_BC[..., None] + offset_N).clamp(max=x_BTW.shape[1] - 1)
    batch_B11 = torch.arange(len(x_BTW), device=x_BTW.device)[:, None, None]
    return x_BTW[batch_B11, token_BCN]
