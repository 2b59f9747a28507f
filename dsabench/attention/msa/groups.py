"""KV heads as rows of their own, each with the query heads that share it.

Legend: B batch, T token, H query heads, G KV heads, D head width, N = B G rows.
"""

from __future__ import annotations

from torch import Tensor

Heads = tuple[Tensor, Tensor, Tensor]
"""q (B, T, H, D), k and v (B, T, G, D)."""


def by_group(q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> Heads:
    """(N, T, H / G, D) and (N, T, 1, D)."""
    groups = k_BTGD.shape[2]
    q, k, v = (x.unflatten(2, (groups, -1)).transpose(1, 2).flatten(0, 1) for x in (q_BTHD, k_BTGD, v_BTGD))
    return q, k, v


def from_groups(out_NTHD: Tensor, groups: int) -> Tensor:
    """(B, T, H, D)."""
    out_BTHD: Tensor = out_NTHD.unflatten(0, (-1, groups)).transpose(1, 2).flatten(2, 3)
    return out_BTHD
