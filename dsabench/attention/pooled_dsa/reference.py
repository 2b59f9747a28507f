"""The specification of DSA over pools: eager torch, to be read and checked.

    I[t,c] = sum_j w[t,j] relu(q[t,j] . k[c])          c a complete pool of n tokens up to t, in t's document
    C[t] = the k // n pools of the highest I[t,c]      S[t] = their tokens, and the tail: those after t's last pool
    loss = KL(p[t] || u[t])    p[t,s] = attention's probability over the tokens s of pools, normalised to 1
                               u[t,s] = softmax over pools of I[t], at the pool of s, divided by n

In the dense stage the pools of the loss are all that t sees, in the sparse stage those of C[t].

**The loss is DSA's with one score for all n tokens of a pool.** Its gradient is softmax(I) - P, P[t,c] the mass of pool
c: that of KL(P[t] || softmax(I[t])). Its value is larger by log n less the entropy inside pools, which no indexer of
pools can change, and can be read beside `dsa`'s. A query that sees no pool has no loss.

Sources: the released code of Qwen3.8-Flash-Next (transformers, `qwen4_exp`: "QSA", indexer_compress_ratio 4,
indexer_budget 2048) and of GLM-5.3-Flash (`glm5_next`: index_kpool 4, index_topk 2048). They agree in the pool's causal
edge (a pool is scored once its last token is visible), in C[t], and in the tail, which is always read and comes on top
of the budget; so a query that ends a pool may not see itself. They differ in the key of a pool: QSA has the mean of
raw keys, then RMSNorm, then rotation by the pool's first position; GLM a learned softmax over the pool's LayerNormed
keys, without rotation. QSA has no weights w (all are 1) and an RMSNorm on q. Here: QSA's mean and rotation, with
DSA's LayerNorm, q and w. Neither model's training code is public; Megatron-LM's proposal for QSA (pull request 7234)
takes the maximum of a pool's probabilities where this takes their sum, the attention mass.

Legend: B batch, T query, S key token, C pools, J indexer heads, I indexer width, P selected pools, K slots of tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsabench.attention.dsa import masked, reference
from dsabench.attention.pooled_dsa.pools import Pools


def select_pools(scores_BTC: Tensor, pools: Pools, n_pools: int) -> Tensor:
    """C[t]: (B, T, P) int64, the highest score first, ties to the first pool, -1 in slots that are left."""
    return reference.select_top_k(scores_BTC, pools.seen().expand_as(scores_BTC), n_pools)


def tokens_of(selected_BTP: Tensor, pools: Pools) -> Tensor:
    """S[t]: (B, T, K = P n + n - 1) int64: the tokens of the selected pools in the order given, the tail; EMPTY in the
    other slots. The pools of a query fill its first slots."""
    n_batch, length, _ = selected_BTP.shape
    begin_BT1C = pools.begin_BC.expand(n_batch, -1)[:, None].expand(-1, length, -1)
    begin_BTP = begin_BT1C.gather(-1, selected_BTP.clamp(min=0))
    token_BTPN = begin_BTP[..., None] + torch.arange(pools.size, device=begin_BTP.device)
    token_BTPN = token_BTPN.masked_fill(selected_BTP[..., None] < 0, reference.EMPTY)
    query_T1 = torch.arange(length, device=begin_BTP.device)[:, None]
    tail_BTN = pools.tail_BT.expand(n_batch, -1)[..., None] + torch.arange(pools.size - 1, device=begin_BTP.device)
    tail_BTN = torch.where(tail_BTN <= query_T1, tail_BTN, reference.EMPTY)
    return torch.cat([token_BTPN.flatten(2), tail_BTN], dim=-1)


def token_scores(scores_BTC: Tensor, pool_BT: Tensor) -> Tensor:
    """(B, T, S): of each token the score of its pool; of a token whose pool never becomes complete that of pool 0,
    which means nothing."""
    index_BTS = pool_BT.clamp(min=0)[:, None].expand(len(scores_BTC), scores_BTC.shape[1], -1)
    return scores_BTC.gather(-1, index_BTS)


def pool_tokens(kept_BTC: Tensor, pool_BT: Tensor) -> Tensor:
    """(B, T, S) True at the tokens of the kept pools."""
    index_BTS = pool_BT.clamp(min=0)[:, None].expand(len(kept_BTC), kept_BTC.shape[1], -1)
    return kept_BTC.gather(-1, index_BTS) & (pool_BT >= 0)[:, None]


def tail_tokens(pools: Pools) -> Tensor:
    """(B, T, S) True at the query's tail."""
    token_T = torch.arange(pools.tail_BT.shape[1], device=pools.tail_BT.device)
    return (token_T >= pools.tail_BT[..., None]) & (token_T <= token_T[:, None])


def pooled_kl(token_scores_BTS: Tensor, p_BTS: Tensor, pools_BTS: Tensor) -> Tensor:
    """The loss, mean over queries, in nats. p: attention's probabilities, mean over heads. pools: True at the tokens of
    the loss's pools."""
    target_BTS = p_BTS.detach() * pools_BTS
    total_BT1 = target_BTS.sum(-1, keepdim=True)
    # A query without pools has a target of zeros, and so no loss; its softmax is over everything, to be a number.
    keep_BTS = pools_BTS | ~pools_BTS.any(-1, keepdim=True)
    target_BTS = target_BTS / total_BT1.clamp(min=torch.finfo(target_BTS.dtype).tiny)
    return masked.indexer_kl(token_scores_BTS, target_BTS, keep_BTS)
