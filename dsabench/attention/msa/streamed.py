"""MSA without a tensor of L x L elements, forward and backward: lists of blocks' keys for DSA's sparse kernels.

Each KV head is a row of its own, so that a list is one KV head's. The kernels of DSA's loss score by a sum of
w relu(q . k); a plain dot product is that of two heads, q . k = relu(q . k) - relu(-q . k).

Legend: N rows (a batch's KV heads), T query, S key, I index width, K slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsabench.attention.dsa.triton.attend import attend as sparse_attend
from dsabench.attention.dsa.triton.kl import sparse_kl
from dsabench.attention.dsa.triton.kl_dense import dense_kl
from dsabench.attention.dsa.triton.unions import share
from dsabench.attention.msa.groups import Heads, from_groups
from dsabench.ops.profile_labels import part


def attend(
    heads: Heads, index: tuple[Tensor, Tensor] | None, selected_NTK: Tensor, groups: int
) -> tuple[Tensor, Tensor | None]:
    """out (B, T, H, D), and the KL loss where there is an index."""
    q, k, v = (x.contiguous() for x in heads)
    unions = share(q, k, selected_NTK)
    out, lse = sparse_attend(q, k, v, selected_NTK, unions=unions)
    if index is None:
        return from_groups(out, groups), None
    with part("indexer loss"):
        loss = sparse_kl(q, k, lse, *as_relu_heads(*index), selected_NTK, unions=unions)
    return from_groups(out, groups), loss


def dense_loss(heads: Heads, index: tuple[Tensor, Tensor], ids_BT: Tensor | None, groups: int) -> Tensor:
    """The KL loss over all causal keys."""
    q, k, _ = (x.contiguous() for x in heads)
    loss: Tensor = dense_kl(
        q, k, *as_relu_heads(*index), None if ids_BT is None else ids_BT.repeat_interleave(groups, 0)
    )
    return loss


def as_relu_heads(q_NTI: Tensor, k_NSI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q (N, T, 2, I), k and w (N, T, 2) whose sum of w relu(q . k) is q . k / sqrt(I)."""
    w_NT = torch.full_like(q_NTI[..., 0], q_NTI.shape[-1] ** -0.5)
    return torch.stack([q_NTI, -q_NTI], dim=2), k_NSI, torch.stack([w_NT, -w_NT], dim=2)
