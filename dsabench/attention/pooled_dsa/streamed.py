"""The selection of pools and its loss without any tensor of L x L elements, by DSA's kernels.

**Scores and top-k.** DSA's kernel has as many keys as queries, and a query sees the keys up to its own place. The
queries that see pools 0..c as their last are the pool's last token and the n - 1 after it (those of its document). So
the queries are laid out in n rows: place c of row r is the token r after the end of pool c, and it sees the keys up to
its own place. One launch over n rows of C keys scores every query against the pools that it sees, and those alone.

**Loss of the sparse stage.** DSA's kernel over the tokens of the selected pools, each with its pool's key. p is
normalised by the mass on pools, 1 - the mass on the tail, whose n - 1 tokens are looked at once more.

**Loss of the dense stage**, where everything is attended to: DSA's kernel, each token with its pool's key, and a last
key for each query: the last token of the last pool that it sees.

Legend: B batch, T query, R rows of the layout, S key, H query heads, G key/value heads, D head
width, C pools, P selected pools, J indexer heads, I indexer width, K slots of tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dsabench.attention.base import AttentionContext
from dsabench.attention.pooled_dsa.pools import Pools

LEAST_MASS = 1e-6
"""Least mass on pools by which probabilities are divided: of a query with less, rounding is all that is left."""


def select(q_BTJI: Tensor, k_BCI: Tensor, w_BTJ: Tensor, pools: Pools, n_pools: int) -> tuple[Tensor, Tensor]:
    """C[t], (B, T, P) int32, ascending, -1 in the last slots, and logsumexp over C[t] of I[t], (B, T) fp32; 0 where a
    query sees no pool. The same sets as reference.select_pools. No gradient."""
    from dsabench.attention.dsa.triton.top_k import top_k

    with torch.no_grad():
        n_batch, length = q_BTJI.shape[:2]
        count, size = k_BCI.shape[1], pools.size
        offset_R1 = torch.arange(size, device=q_BTJI.device)[:, None]
        query_BRC = (pools.end_BC[:, None] + offset_R1).clamp(max=length - 1).expand(n_batch, -1, -1)
        batch_B11 = torch.arange(n_batch, device=q_BTJI.device)[:, None, None]
        rows = [x[batch_B11, query_BRC].flatten(0, 1) for x in (q_BTJI, w_BTJ)]
        keys_RCI = k_BCI[:, None].expand(-1, size, -1, -1).flatten(0, 1)
        ids_RC = None
        if pools.packed:  # the document of a pool; pools that are not there are one of their own
            begin_BC = pools.begin_BC.clamp(max=length - 1)
            first_BC = torch.where(pools.begin_BC < length, pools.before_BT.gather(1, begin_BC), count)
            ids_RC = first_BC.repeat_interleave(size, dim=0)
        chosen_RCP, lse_RC = top_k(rows[0], keys_RCI, rows[1], n_pools, ids_RC)
        last_BT = (pools.before_BT + pools.visible_BT - 1).clamp(min=0)
        end_BT = pools.end_BC.gather(1, last_BT)
        row_BT = (torch.arange(length, device=q_BTJI.device) - end_BT).clamp(0, size - 1).expand(n_batch, -1)
        at = (batch_B11[..., 0], row_BT, last_BT.expand(n_batch, -1))
        sees_BT = (pools.visible_BT > 0).expand(n_batch, -1)
        selected_BTP = chosen_RCP.unflatten(0, (n_batch, size))[at].masked_fill(~sees_BT[..., None], -1)
        lse_BT = lse_RC.unflatten(0, (n_batch, size))[at].masked_fill(~sees_BT, 0.0)
    return selected_BTP, lse_BT


def tokens_of(selected_BTP: Tensor, pools: Pools) -> Tensor:
    """S[t], (B, T, K) int32: reference.tokens_of, by a kernel."""
    from dsabench.attention.pooled_dsa.triton.spans import tokens

    n_batch = len(selected_BTP)
    return tokens(selected_BTP, pools.begin_BC.expand(n_batch, -1), pools.tail_BT.expand(n_batch, -1), pools.size)


def sparse_loss(
    q_BTHD: Tensor, k_BSGD: Tensor, lse_BTH: Tensor, heads: tuple[Tensor, Tensor, Tensor], selected_BTP: Tensor,
    index_lse_BT: Tensor, pools: Pools, scale: float, value_width: int | None,
) -> Tensor:  # fmt: skip
    """The loss of the sparse stage; lse as `attend` gives it for S[t], scale and value_width as for it. Gradients go to
    the indexer's heads alone."""
    from dsabench.attention.dsa.triton.kl import sparse_kl

    q_BTJI, k_BCI, w_BTJ = heads
    tokens_BTK = tokens_of(selected_BTP, pools)[..., : selected_BTP.shape[2] * pools.size]
    query_T1 = torch.arange(q_BTHD.shape[1], device=q_BTHD.device)[:, None]
    # The tail follows the pools of a query that has fewer of them.
    tail_BT1 = pools.tail_BT[..., None]
    tokens_BTK = tokens_BTK.masked_fill((tokens_BTK >= tail_BT1) & (tokens_BTK <= query_T1), -1)
    with torch.no_grad():
        mass_BT = (1.0 - _tail_mass(q_BTHD, k_BSGD, lse_BTH, pools, scale)).clamp(min=LEAST_MASS)
        lse_BTH = lse_BTH + mass_BT.log()[..., None]
    k_BSI = _keys_of_tokens(k_BCI, pools)
    index_lse_BT = index_lse_BT + math.log(pools.size)
    return sparse_kl(
        q_BTHD, k_BSGD, lse_BTH, q_BTJI, k_BSI, w_BTJ, tokens_BTK, index_lse_BT, scale=scale, value_width=value_width
    )


def _tail_mass(q_BTHD: Tensor, k_BSGD: Tensor, lse_BTH: Tensor, pools: Pools, scale: float) -> Tensor:
    """(B, T) fp32: the attention probability on each query's tail, mean over heads."""
    q_BTGMD = q_BTHD.detach().unflatten(2, (k_BSGD.shape[2], -1)).float()
    token_T = torch.arange(q_BTHD.shape[1], device=q_BTHD.device)
    total_BT = torch.zeros(q_BTHD.shape[:2], device=q_BTHD.device)
    for back in range(pools.size - 1):
        k_BTGD = k_BSGD.detach()[:, (token_T - back).clamp(min=0)].float()
        scores_BTH = (q_BTGMD * k_BTGD[:, :, :, None]).sum(-1).flatten(2) * scale
        inside_BT = token_T - back >= pools.tail_BT
        total_BT = total_BT + (scores_BTH - lse_BTH).exp().mean(-1) * inside_BT
    return total_BT


def dense_loss(
    q_BTHD: Tensor, k_BSGD: Tensor, heads: tuple[Tensor, Tensor, Tensor], pools: Pools, context: AttentionContext
) -> Tensor:
    """The loss of the dense stage, over all pools that a query sees; scores are scaled by D^-1/2."""
    from dsabench.attention.dsa.triton.kl_dense import dense_kl

    q_BTJI, k_BCI, w_BTJ = heads
    seen_BT = (pools.visible_BT * pools.size + pools.start_BT - 1).int().expand(len(k_BCI), -1)
    loss: Tensor = dense_kl(
        q_BTHD, k_BSGD, q_BTJI, _keys_of_tokens(k_BCI, pools), w_BTJ, context.document_ids_BT, last_BT=seen_BT
    )
    return loss


def _keys_of_tokens(k_BCI: Tensor, pools: Pools) -> Tensor:
    """(B, S, I): of each token its pool's key; of a token whose pool never becomes complete some other."""
    inside_BT = pools.pool_BT().clamp(min=0).expand(len(k_BCI), -1)
    return k_BCI.gather(1, inside_BT[..., None].expand(-1, -1, k_BCI.shape[-1]))
