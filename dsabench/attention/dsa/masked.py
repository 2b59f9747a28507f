"""DSA as a masked dense product: the same functions as `reference`, by L x L masks instead of gathers.

Quadratic in memory and time, but the fastest way below the lengths at which gathering pays.

Legend: B batch, T query, S key, H query heads, G key/value heads, D head width, J indexer heads, I indexer width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsabench import ops
from dsabench.attention.dsa import reference


def index_scores(q_BTJI: Tensor, k_BSI: Tensor, w_BTJ: Tensor) -> Tensor:
    """I[t,s] = sum_j w[t,j] * relu(q[t,j] . k[s]); (B, T, S), summed over heads in fp32 (fp64 for fp64 inputs).

    The sum over a handful of heads is elementwise: as a matrix product it is one tiny product for each query.
    """
    wide = torch.promote_types(q_BTJI.dtype, torch.float32)
    if _fused(k_BSI.shape[1], q_BTJI, k_BSI, w_BTJ):
        from dsabench.attention.dsa.triton.masked_rows import IndexScores

        scores_BTS: Tensor = IndexScores.apply(q_BTJI, k_BSI, w_BTJ)
        return scores_BTS
    dots_BTJS = torch.einsum("btji,bsi->btjs", q_BTJI, k_BSI)
    return (dots_BTJS.relu().to(wide) * w_BTJ.to(wide)[..., None]).sum(dim=2)


def selection_mask(scores_BTS: Tensor, allowed: Tensor, k: int) -> Tensor:
    """True at the keys of S[t]; (B, T, S). The same set as reference.select_top_k, ties to the lowest index.

    The k-th highest score is a threshold: everything above it is in, and of the scores equal to it the first ones
    until k are in. torch.topk leaves open WHICH of equal scores it returns, but not their value.
    """
    if k >= scores_BTS.shape[-1]:
        return allowed.expand_as(scores_BTS)
    if _fused(scores_BTS.shape[-1], scores_BTS) and scores_BTS.dtype == torch.float32:
        from dsabench.attention.dsa.triton.masked_rows import select

        return select(scores_BTS, allowed, k)
    scores_BTS = scores_BTS.masked_fill(~allowed, -torch.inf)
    threshold_BT1 = scores_BTS.topk(k, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
    above_BTS = scores_BTS > threshold_BT1
    tied_BTS = scores_BTS == threshold_BT1
    room_BT1 = k - above_BTS.sum(dim=-1, keepdim=True)
    return (above_BTS | (tied_BTS & (tied_BTS.cumsum(dim=-1) <= room_BT1))) & allowed


def attention(
    q_BTHD: Tensor, k_BSGD: Tensor, v_BSGD: Tensor, keep: Tensor, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """out[t] = softmax(Q[t] K^T scale where keep, else -inf) V.

    scale None is D^-1/2; values, and so out, may have another width than keys. keep: (T, S) or (B, T, S), already
    causal, at least one key a query. Returns out (B, T, H, D) and the head-averaged probabilities (B, T, S), fp32 and
    detached: they are the indexer's target and nothing else.
    """
    scale = q_BTHD.shape[-1] ** -0.5 if scale is None else scale
    if _fused(k_BSGD.shape[1], q_BTHD, k_BSGD, v_BSGD):
        from dsabench.attention.dsa.triton.masked_rows import MaskedAttention

        out_BHTD, mean_BTS = MaskedAttention.apply(
            q_BTHD.transpose(1, 2), k_BSGD.transpose(1, 2), v_BSGD.transpose(1, 2), keep, scale
        )
        return out_BHTD.transpose(1, 2), mean_BTS
    groups = q_BTHD.shape[2] // k_BSGD.shape[2]
    q_BHTD = q_BTHD.transpose(1, 2) * scale
    k_BHSD, v_BHSD = k_BSGD.transpose(1, 2), v_BSGD.transpose(1, 2)
    if groups > 1:
        k_BHSD, v_BHSD = k_BHSD.repeat_interleave(groups, dim=1), v_BHSD.repeat_interleave(groups, dim=1)
    scores_BHTS = q_BHTD @ k_BHSD.transpose(-1, -2)
    keep_ = keep if keep.dim() == 2 else keep[:, None]
    p_BHTS = scores_BHTS.masked_fill(~keep_, -torch.inf).softmax(
        dim=-1, dtype=torch.promote_types(q_BTHD.dtype, torch.float32)
    )
    out_BHTD = p_BHTS.to(v_BHSD.dtype) @ v_BHSD
    return out_BHTD.transpose(1, 2), p_BHTS.detach().mean(dim=1)


def indexer_kl(scores_BTS: Tensor, target_BTS: Tensor, keep: Tensor) -> Tensor:
    """reference.indexer_kl over all keys; keep is (T, S) or (B, T, S)."""
    if _fused(scores_BTS.shape[-1], scores_BTS, target_BTS) and scores_BTS.dtype == torch.float32:
        from dsabench.attention.dsa.triton.masked_rows import IndexerKL

        loss: Tensor = IndexerKL.apply(scores_BTS, target_BTS.detach(), keep)
        return loss
    return reference.indexer_kl(scores_BTS, target_BTS, keep)


def _fused(n_keys: int, *tensors: Tensor) -> bool:
    """Whether the kernels take these tensors, and rows of so many keys."""
    return n_keys <= ops.WIDEST_ROW and ops.fused(*tensors)
