"""Different keys that neighbouring queries select: what kernels over groups of them have to gather.

    U(Q) = mean over groups of |S[t] + ... + S[t + Q - 1]|  over the mean of |S[t]|      1 to Q

Legend: B batch, T query, K selected slots, U groups, Q queries of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsabench import ops
from dsabench.attention.dsa import reference
from dsabench.bench.document import Settings, UnionSize
from dsabench.bench.inputs import Inputs

QUERIES = (2, 4, 8, 16)
"""Sizes of groups."""

_PAIRS = 1 << 22
"""Scores, or slots, of a slab."""


def union_sizes(x: Inputs, settings: Settings, layer: int | None) -> list[UnionSize]:
    """U of the selection that these inputs make, for every size of groups that the length has."""
    length = x.q_BTHD.shape[1]
    selected_BTK = selection(x, settings.top_k)
    about = {"layer": layer, "length": length}
    return [
        UnionSize.model_validate({**about, "queries": queries, "keys_over_k": keys_over_k(selected_BTK, queries)})
        for queries in QUERIES
        if queries <= length
    ]


def selection(x: Inputs, k: int) -> Tensor:
    """S[t], (B, T, K), -1 where a slot is empty: by the kernel where it runs, else slab by slab."""
    if ops.runs_on(x.q_BTJI.device):
        from dsabench.attention.dsa.triton.top_k import top_k

        return top_k(x.q_BTJI, x.k_BSI, x.w_BTJ, k)[0]
    n_batch, length, n_heads, _ = x.q_BTJI.shape
    rows = max(1, _PAIRS // (n_batch * length * n_heads))
    allowed_TS = reference.allowed_keys(length, None, x.q_BTJI.device).reshape(-1, length)
    found = []
    for first in range(0, length, rows):
        part = slice(first, first + rows)
        q_BTJI, w_BTJ = x.q_BTJI[:, part].float(), x.w_BTJ[:, part].float()
        scores_BTS = reference.index_scores(q_BTJI, x.k_BSI.float(), w_BTJ)
        found.append(reference.select_top_k(scores_BTS, allowed_TS[part], k))
    return torch.cat(found, dim=1)


def keys_over_k(selected_BTK: Tensor, queries: int) -> float:
    """U(Q) over the groups that are whole; a slot that is -1 counts nowhere."""
    length, slots = selected_BTK.shape[1:]
    whole_UK = selected_BTK[:, : length // queries * queries].reshape(-1, queries * slots)
    different = chosen = 0
    for part_UK in whole_UK.split(max(1, _PAIRS // (queries * slots))):
        sorted_UK = part_UK.sort(dim=1).values
        first_UK = torch.ones_like(sorted_UK, dtype=torch.bool)
        first_UK[:, 1:] = sorted_UK[:, 1:] != sorted_UK[:, :-1]
        different += int((first_UK & (sorted_UK >= 0)).sum())
        chosen += int((sorted_UK >= 0).sum())
    return different * queries / chosen
