"""NSA without any tensor of L x L elements: the compressed branch by slabs of queries, the other two by DSA's kernel.

A slab's scores are L/d for each query and head; they are computed again in the backward pass. The blocks that a slab
selects are written as an index list for each KV head, of n l' tokens a query. Each KV head is then a row of the batch
with one KV head, because DSA's kernel has one list for all heads.

Legend: B batch, T query, R queries of a slab, S key, H query heads, G key/value heads, M query heads of a KV head, D
head width, C compressed entries, N selection blocks, K slots of tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dsabench.attention.nsa import reference
from dsabench.attention.pooled_dsa.pools import Pools
from dsabench.spec.attention import NSASpec

SLAB_NUMBERS = 2**26
"""Most scores of compressed entries of a slab of queries, over rows and heads: 256 MiB of fp32."""


def compressed(
    q_BTHD: Tensor, k_BCGD: Tensor, v_BCGD: Tensor, entries: Pools, blocks: Pools, settings: NSASpec
) -> tuple[Tensor, Tensor]:
    """The compressed branch, (B, T, H, D), and B[t] as a list of tokens for each KV head, (B, G, T, K) int32,
    ascending, -1 in the last slots."""
    from dsabench.attention.ablations.triton import index_lists
    from dsabench.attention.pooled_dsa.triton.spans import tokens

    n_batch, length, n_heads, _ = q_BTHD.shape
    groups, n_blocks = k_BCGD.shape[2], blocks.begin_BC.shape[1]
    slots = min(settings.selected_blocks, n_blocks)
    selected_PTK = torch.empty(n_batch * groups, length, slots, dtype=torch.int32, device=q_BTHD.device)
    rows = max(1, SLAB_NUMBERS // (n_batch * n_heads * k_BCGD.shape[1]))
    parts = []
    for first in range(0, length, rows):
        queries = slice(first, min(first + rows, length))
        some = slice(0, max(1, queries.stop // entries.stride))
        seen_BRC = entries.seen_by(queries, len(range(k_BCGD.shape[1])[some]))
        out_BRHD, p_BRGC = checkpoint(
            reference.compressed, q_BTHD[:, queries], k_BCGD[:, some], v_BCGD[:, some], seen_BRC,
            use_reentrant=False, preserve_rng_state=False,
        )  # fmt: skip
        parts.append(out_BRHD)
        with torch.no_grad():
            score_BRGN = reference.block_scores(p_BRGC, entries, blocks)
            chosen_BRGN = reference.select_blocks(
                score_BRGN, blocks, queries, settings.selected_blocks, settings.initial_blocks, settings.local_blocks
            )
            index_lists.masked(chosen_BRGN.transpose(1, 2).flatten(0, 1).contiguous(), selected_PTK, first)
    begin_PN, tail_PT = (
        x.expand(n_batch, -1).repeat_interleave(groups, dim=0) for x in (blocks.begin_BC, blocks.tail_BT)
    )
    tokens_PTK = tokens(selected_PTK, begin_PN, tail_PT, blocks.size)
    return torch.cat(parts, dim=1), tokens_PTK.unflatten(0, (n_batch, groups))


def selected(q_BTHD: Tensor, k_BSGD: Tensor, v_BSGD: Tensor, tokens_BGTK: Tensor) -> Tensor:
    """The selected branch, (B, T, H, D)."""
    from dsabench.attention.dsa.triton.attend import attend
    from dsabench.attention.dsa.triton.unions import share

    groups = k_BSGD.shape[2]
    q_PTMD = q_BTHD.unflatten(2, (groups, -1)).transpose(1, 2).flatten(0, 1)
    k_PS1D, v_PS1D = (x.transpose(1, 2).flatten(0, 1)[:, :, None] for x in (k_BSGD, v_BSGD))
    tokens_PTK = tokens_BGTK.flatten(0, 1)
    unions = share(q_PTMD, k_PS1D, tokens_PTK)
    out_PTMD: Tensor = attend(q_PTMD, k_PS1D, v_PS1D, tokens_PTK, ascending=True, unions=unions)[0]
    out_BGTMD: Tensor = out_PTMD.unflatten(0, (len(q_BTHD), groups))
    return out_BGTMD.transpose(1, 2).flatten(2, 3)
