"""The specification of DSA's kernels: eager torch, written to be read and checked, not to be fast.

Every faster implementation must agree with these functions in outputs, gradients and selected sets.
They compute in the inputs' dtype; tests run them in fp64.

Legend: B batch, T query, S key, H query heads, G key/value heads, D head width, J indexer heads, I indexer width,
K selected slots. Source of the formulas: DeepSeek-V3.2 (arXiv 2512.02556), section 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

EMPTY = -1
"""Index that marks an unfilled slot of a selection: a query with fewer than K keys in its past leaves slots empty."""


def allowed_keys(length: int, document_ids_BT: Tensor | None, device: torch.device) -> Tensor:
    """True where query t may see key s: s <= t and, where documents are packed, both in one document.

    (T, S) without document ids, (B, T, S) with them.
    """
    return allowed_at(torch.arange(length, device=device), length, document_ids_BT)


def allowed_at(query_Q: Tensor, length: int, document_ids_BT: Tensor | None) -> Tensor:
    """The rows of allowed_keys of these queries: (Q, S), or (B, Q, S) with document ids."""
    causal_QS = torch.arange(length, device=query_Q.device) <= query_Q[:, None]
    if document_ids_BT is None:
        return causal_QS
    return causal_QS & (document_ids_BT[:, query_Q, None] == document_ids_BT[:, None, :])


def document_starts(document_ids_BT: Tensor) -> Tensor:
    """(B, T) int32: the first position of each position's document. A document's positions lie side by side."""
    position_T = torch.arange(document_ids_BT.shape[1], device=document_ids_BT.device, dtype=torch.int32)
    fresh_BT = torch.ones_like(document_ids_BT, dtype=torch.bool)
    fresh_BT[:, 1:] = document_ids_BT[:, 1:] != document_ids_BT[:, :-1]
    return (position_T * fresh_BT).cummax(dim=1).values.to(torch.int32)


def index_scores(q_BTJI: Tensor, k_BSI: Tensor, w_BTJ: Tensor) -> Tensor:
    """I[t,s] = sum_j w[t,j] * relu(q[t,j] . k[s]); (B, T, S), no mask. w already carries the scale J^-1/2 I^-1/2."""
    dots_BTJS = torch.einsum("btji,bsi->btjs", q_BTJI, k_BSI)
    return torch.einsum("btj,btjs->bts", w_BTJ, dots_BTJS.relu())


def select_top_k(scores_BTS: Tensor, allowed: Tensor, k: int) -> Tensor:
    """S[t]: indices of the k highest scores among the allowed keys, best first; (B, T, K = min(k, S)), int64.

    Ties go to the lowest index: relu makes a plateau of exact zeros, so ties are the rule and need one.
    A query with fewer than k allowed keys has EMPTY in its last slots; no returned index is ever a disallowed key.
    """
    # + 0.0 turns -0.0 (a negative weight times a zero relu) into 0.0: radix sorts tell the two apart.
    scores_BTS = (scores_BTS + 0.0).masked_fill(~allowed, -torch.inf)
    order_BTS = scores_BTS.sort(dim=-1, descending=True, stable=True).indices
    selected_BTK = order_BTS[..., :k]
    filled_BTK = allowed.expand_as(scores_BTS).gather(-1, selected_BTK)
    return selected_BTK.masked_fill(~filled_BTK, EMPTY)


def attention(
    q_BTHD: Tensor, k_BSGD: Tensor, v_BSGD: Tensor, selected_BTK: Tensor, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """out[t] = softmax(Q[t] K[S[t]]^T scale) V[S[t]] by gathering each query's keys and values; scale None is D^-1/2,
    and values may have another width than keys.

    A slot holding EMPTY, or an index beyond t, takes part in nothing (the causal mask, applied again after top-k).
    Returns out (B, T, H, D) and the head-averaged probabilities of the slots (B, T, K), 0 in dropped slots.
    """
    n_batch, length, n_heads, width = q_BTHD.shape
    groups = n_heads // k_BSGD.shape[2]
    scale = width**-0.5 if scale is None else scale
    query_T = torch.arange(length, device=q_BTHD.device)
    keep_BTK = (selected_BTK >= 0) & (selected_BTK <= query_T[:, None])
    batch_B = torch.arange(n_batch, device=q_BTHD.device)[:, None, None]
    slots_BTK = selected_BTK.clamp(min=0)
    k_BTKHD = k_BSGD[batch_B, slots_BTK].repeat_interleave(groups, dim=3)
    v_BTKHD = v_BSGD[batch_B, slots_BTK].repeat_interleave(groups, dim=3)
    scores_BTHK = torch.einsum("bthd,btkhd->bthk", q_BTHD, k_BTKHD) * scale
    p_BTHK = scores_BTHK.masked_fill(~keep_BTK[:, :, None], -torch.inf).softmax(dim=-1)
    return torch.einsum("bthk,btkhd->bthd", p_BTHK, v_BTKHD), p_BTHK.mean(dim=2)


def indexer_kl(scores_BTX: Tensor, target_BTX: Tensor, keep: Tensor) -> Tensor:
    """Mean over queries of KL(p[t] || softmax(I[t])) in nats over the kept entries X (all keys, or the slots of S[t]).

    target: attention probabilities averaged over heads, which are the head sum L1-normalised; 0 where not kept.
    The target is detached: this loss teaches the indexer alone. Gradient to the scores: (softmax(I) - p) / (B T).
    """
    target_BTX = target_BTX.detach()
    log_q_BTX = scores_BTX.masked_fill(~keep, -torch.inf).log_softmax(dim=-1).masked_fill(~keep, 0.0)
    return (torch.xlogy(target_BTX, target_BTX) - target_BTX * log_q_BTX).sum(dim=-1).mean()
