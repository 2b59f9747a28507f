"""The specification of native sparse attention: eager torch, to be read and checked.

    out[t] = sum over branches of g[t] * branch[t]         branches: compressed, selected, window; g of each head
    compressed: attention over the compressed entries whose block of l tokens, one every d tokens, ended at or before t
    selected:   attention over the tokens up to t of the n blocks of l' tokens in B[t]
    window:     attention over the last w tokens, t among them

    P[t,i] = the compressed branch's probabilities, summed over the query heads of a KV head
    score[t,j] = sum_i P[t,i] * (how many of the pieces of d tokens of entry i's block lie in block j)
    B[t] = t's own block and the other local ones, the initial ones, and the best of the rest until there are n

The score is the paper's double sum over m < l'/d and m' < l/d of p[(l'/d) j - m - m'], whose indices count from 1. All
query heads of a KV head share B[t]. A compressed entry is seen only when its whole block is in the past; the query's
own block is not, so it is selected without a score, and is read as far as t.

Packed documents: each is cut into blocks from its own first token.

Legend: B batch, T query, R queries of a slab, S key token, H query heads, G key/value heads, D head width, C compressed
entries, N selection blocks (complete ones).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsabench.attention.dsa import masked
from dsabench.attention.pooled_dsa.pools import Pools


def compressed(q_BRHD: Tensor, k_BCGD: Tensor, v_BCGD: Tensor, seen_BRC: Tensor) -> tuple[Tensor, Tensor]:
    """out (B, R, H, D), and P (B, R, G, C) fp32 (fp64 of fp64 inputs), detached. A query that sees no entry has zeros
    in both."""
    groups, width = k_BCGD.shape[2], q_BRHD.shape[-1]
    wide = torch.promote_types(q_BRHD.dtype, torch.float32)
    q_BRGMD = q_BRHD.unflatten(2, (groups, -1))
    scores_BRGMC = torch.einsum("brgmd,bcgd->brgmc", q_BRGMD, k_BCGD) * width**-0.5
    seen_BR11C = seen_BRC[:, :, None, None]
    scores_BRGMC = scores_BRGMC.masked_fill(~seen_BR11C, torch.finfo(scores_BRGMC.dtype).min)
    p_BRGMC = scores_BRGMC.softmax(dim=-1, dtype=wide) * seen_BR11C
    out_BRGMD = torch.einsum("brgmc,bcgd->brgmd", p_BRGMC.to(v_BCGD.dtype), v_BCGD)
    return out_BRGMD.flatten(2, 3), p_BRGMC.detach().sum(3)


def block_scores(p_BRGC: Tensor, entries: Pools, blocks: Pools) -> Tensor:
    """score (B, R, G, N) from P (B, R, G, C), of the first N blocks and C entries."""
    ratio, pieces = blocks.stride // entries.stride, entries.size // entries.stride
    n_batch, n_entries, length = len(p_BRGC), p_BRGC.shape[-1], blocks.before_BT.shape[1]
    begin_BN = blocks.begin_BC.clamp(max=length - 1)
    first_BN = entries.before_BT.gather(1, begin_BN)  # the first entry of the block's document
    place_BN = (blocks.begin_BC - blocks.start_BT.gather(1, begin_BN)) // entries.stride
    total: Tensor = p_BRGC.new_zeros(*p_BRGC.shape[:-1], first_BN.shape[1])
    for back in range(1 - pieces, ratio):
        shared = min(back + pieces, ratio - back, ratio, pieces)
        # An entry of a later document is seen by no query of this one: its P is 0.
        entry_BN = first_BN + place_BN + back
        inside_BN = (place_BN + back >= 0) & (entry_BN < n_entries)
        at_BRGN = entry_BN.clamp(0, n_entries - 1)[:, None, None].expand(n_batch, *p_BRGC.shape[1:-1], -1)
        total = total + shared * p_BRGC.gather(-1, at_BRGN) * inside_BN[:, None, None]
    return total


def select_blocks(score_BRGN: Tensor, blocks: Pools, queries: slice, count: int, initial: int, local: int) -> Tensor:
    """(B, R, G, N) True at the complete blocks of B[t]; its own, where that is not complete, comes besides. Ties go to
    the first block."""
    n_blocks = score_BRGN.shape[-1]
    token_R = torch.arange(queries.start, queries.stop, device=score_BRGN.device)
    unfinished_BR1 = (blocks.tail_BT[:, queries] <= token_R)[..., None]
    seen_BRN = blocks.seen_by(queries, n_blocks)
    block_N = torch.arange(n_blocks, device=score_BRGN.device)
    first_BR1 = blocks.before_BT[:, queries, None]
    last_BR1 = first_BR1 + blocks.visible_BT[:, queries, None]
    near_BRN = block_N >= last_BR1 - local + unfinished_BR1.long()
    forced_BRN = near_BRN | (block_N < first_BR1 + initial)
    score_BRGN = score_BRGN.masked_fill(forced_BRN[:, :, None], torch.inf)
    seen_BRGN = seen_BRN[:, :, None].expand_as(score_BRGN)
    whole_BRGN = _best(score_BRGN, seen_BRGN, count)
    return torch.where(unfinished_BR1[..., None], _best(score_BRGN, seen_BRGN, count - 1), whole_BRGN)


def _best(score_BRGN: Tensor, seen_BRGN: Tensor, count: int) -> Tensor:
    if count == 0:
        return torch.zeros_like(seen_BRGN)
    chosen = masked.selection_mask(score_BRGN.flatten(1, 2), seen_BRGN.flatten(1, 2), count)
    chosen_BRGN: Tensor = chosen.unflatten(1, score_BRGN.shape[1:3])
    return chosen_BRGN


def selected_tokens(chosen_BTGN: Tensor, blocks: Pools, block_BT: Tensor) -> Tensor:
    """(B, G, T, S) True at the tokens of B[t] up to t. block: as Pools.pool_BT says."""
    n_batch, length, groups, _ = chosen_BTGN.shape
    at_BGTS = block_BT.clamp(min=0)[:, None, None].expand(n_batch, groups, length, -1)
    inside_BGTS = chosen_BTGN.transpose(1, 2).gather(-1, at_BGTS) & (block_BT >= 0)[:, None, None]
    token_S = torch.arange(length, device=block_BT.device)
    own_BTS = (token_S >= blocks.tail_BT[..., None]) & (token_S <= token_S[:, None])
    return inside_BGTS | own_BTS[:, None]


def attention(q_BTHD: Tensor, k_BSGD: Tensor, v_BSGD: Tensor, keep_BGTS: Tensor) -> Tensor:
    """(B, T, H, D): each KV head's query heads over its own kept keys, at least one a query."""
    groups = k_BSGD.shape[2]
    scores_BGMTS = (
        torch.einsum("btgmd,bsgd->bgmts", q_BTHD.unflatten(2, (groups, -1)), k_BSGD) * q_BTHD.shape[-1] ** -0.5
    )
    wide = torch.promote_types(q_BTHD.dtype, torch.float32)
    p_BGMTS = scores_BGMTS.masked_fill(~keep_BGTS[:, :, None], -torch.inf).softmax(dim=-1, dtype=wide)
    out_BTGMD: Tensor = torch.einsum("bgmts,bsgd->btgmd", p_BGMTS.to(v_BSGD.dtype), v_BSGD)
    return out_BTGMD.flatten(2, 3)


def gated(gates_BTH3: Tensor, *branches: Tensor) -> Tensor:
    """The sum of the branches (B, T, H, D), each times its gate."""
    out_BTHD = sum(gates_BTH3[..., i, None] * branch_BTHD for i, branch_BTHD in enumerate(branches))
    assert isinstance(out_BTHD, Tensor)
    return out_BTHD
