"""The specification of attention over a window and compressed entries: plain PyTorch, by L x (L + E) masks.

Every faster implementation must agree with these functions in outputs, gradients and selected sets.

Legend: B batch, T query, S key, E entry, H query heads, G key/value heads, D head width, J indexer heads, I indexer
width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def attention(
    q_BTHD: Tensor,
    keys: tuple[Tensor, Tensor],
    values: tuple[Tensor, Tensor],
    keep: tuple[Tensor, Tensor],
    sink_H: Tensor,
) -> tuple[Tensor, Tensor]:
    """out[t] = sum over the kept X of P[t, X] V[X], P[t, X] = exp(s[t, X]) / (exp(sink) + sum of exp(s[t, .])).

    s = Q K / sqrt(D) of tokens and entries in one softmax. keys and values: of the tokens, (B, S, G, D), and of the
    entries, (B, E, G, D). keep: (T, S) or (B, T, S) and (B, T, E). Returns out (B, T, H, D) and the entries'
    probabilities, mean over heads, (B, T, E), fp32 (fp64 for fp64 inputs) and detached: with the window and the sink
    below the fraction line they sum to less than 1.
    """
    k_BHXD, v_BHXD = (_heads(torch.cat(both, dim=1), q_BTHD.shape[2]) for both in (keys, values))
    keep_tokens, keep_BTE = keep
    n_batch = len(q_BTHD)
    keep_BTX = torch.cat([x.expand(n_batch, -1, -1) for x in (keep_tokens, keep_BTE)], dim=-1)
    q_BHTD = q_BTHD.transpose(1, 2) * q_BTHD.shape[-1] ** -0.5
    wide = torch.promote_types(q_BTHD.dtype, torch.float32)
    scores_BHTX = (q_BHTD @ k_BHXD.transpose(-1, -2)).to(wide).masked_fill(~keep_BTX[:, None], -torch.inf)
    sink_BHT1 = sink_H.to(wide)[:, None, None].expand(*scores_BHTX.shape[:3], 1)
    p_BHTX = torch.cat([scores_BHTX, sink_BHT1], dim=-1).softmax(dim=-1)[..., :-1]
    out_BHTD = p_BHTX.to(v_BHXD.dtype) @ v_BHXD
    return out_BHTD.transpose(1, 2), p_BHTX[..., keep_tokens.shape[-1] :].detach().mean(dim=1)


def index_scores(q_BTJI: Tensor, k_BEI: Tensor, w_BTJ: Tensor) -> Tensor:
    """I[t,e] = sum_j w[t,j] relu(q[t,j] . k[e]), (B, T, E), summed in fp32 (fp64 for fp64 inputs); no mask."""
    wide = torch.promote_types(q_BTJI.dtype, torch.float32)
    dots_BTJE = torch.einsum("btji,bei->btje", q_BTJI, k_BEI)
    return (dots_BTJE.relu().to(wide) * w_BTJ.to(wide)[..., None]).sum(dim=2)


def normalised(p_BTE: Tensor) -> Tensor:
    """The target of the indexer's loss: p / sum of p over the entries that were kept; 0 for a query without any."""
    return p_BTE / p_BTE.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(p_BTE.dtype).tiny)


def _heads(x_BXGD: Tensor, n_heads: int) -> Tensor:
    """(B, H, X, D), each KV head for all query heads that share it."""
    return x_BXGD.transpose(1, 2).repeat_interleave(n_heads // x_BXGD.shape[2], dim=1)
