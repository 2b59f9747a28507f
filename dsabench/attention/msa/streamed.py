"""MSA without a tensor of L x L elements, forward and backward: slabs of scores, index lists, DSA's sparse kernels.

Each KV head is a row of its own, so that a list is one KV head's. The kernels of DSA's loss score by a sum of
w relu(q . k); a plain dot product is that of two heads, q . k = relu(q . k) - relu(-q . k).

Legend: N rows (a batch's KV heads), R queries of a slab, T query, S key, C blocks, I index width, K slots, J = 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dsabench.attention.base import AttentionContext
from dsabench.attention.dsa.reference import EMPTY, allowed_at
from dsabench.attention.dsa.triton.attend import attend as sparse_attend
from dsabench.attention.dsa.triton.kl import sparse_kl
from dsabench.attention.dsa.triton.kl_dense import dense_kl
from dsabench.attention.dsa.triton.unions import share
from dsabench.attention.msa import reference
from dsabench.attention.msa.groups import Heads, from_groups
from dsabench.ops.profile_labels import part
from dsabench.spec.attention import MSASpec

SLAB_PAIRS = 2**26
"""Most (query, key) pairs of a slab over all rows: 256 MiB of scores."""


def lists(q_NTI: Tensor, k_NSI: Tensor, config: MSASpec, context: AttentionContext) -> Tensor:
    """(N, T, K) int32: the keys of each query's kept blocks, EMPTY in the other slots; without gradients. Ascending, and
    with the empty slots last, where no documents are packed."""
    rows, length = q_NTI.shape[:2]
    step = max(1, SLAB_PAIRS // (rows * length))
    slabs = [_slab(q_NTI, k_NSI, config, context, first, min(first + step, length)) for first in range(0, length, step)]
    most = max(slab.shape[2] for slab in slabs)
    return torch.cat([F.pad(slab, (0, most - slab.shape[2]), value=EMPTY) for slab in slabs], dim=1)


def _slab(q_NTI: Tensor, k_NSI: Tensor, config: MSASpec, context: AttentionContext, first: int, last: int) -> Tensor:
    """The lists of queries first to last - 1, which see no key from `last` on."""
    query_R, size = torch.arange(first, last, device=q_NTI.device), config.block_size
    allowed = allowed_at(query_R, len(context.positions_T), context.document_ids_BT)[..., :last]
    if allowed.dim() == 3:
        allowed = allowed.repeat_interleave(len(q_NTI) // len(allowed), 0)
    scores_NRS = reference.token_scores(q_NTI[:, first:last], k_NSI[:, :last])
    best_NRC, seen_NRC = reference.block_scores(scores_NRS, allowed, size)
    kept = min(config.top_k_blocks, best_NRC.shape[2])
    blocks_NRC = reference.kept_blocks(best_NRC, seen_NRC, first, size, kept, config.local_blocks)
    chosen_NRK = blocks_NRC.int().sort(dim=-1, descending=True, stable=True).indices[..., :kept]
    chosen_NRK = chosen_NRK.masked_fill(~blocks_NRC.gather(-1, chosen_NRK), blocks_NRC.shape[2])
    key_NRK = (chosen_NRK[..., None] * size + torch.arange(size, device=query_R.device)).flatten(2)
    begin = allowed.int().argmax(-1)[..., None]  # the first key of the query's document
    return key_NRK.masked_fill((key_NRK > query_R[:, None]) | (key_NRK < begin), EMPTY).int()


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
    loss: Tensor = dense_kl(q, k, *as_relu_heads(*index), None if ids_BT is None else ids_BT.repeat_interleave(groups, 0))
    return loss


def as_relu_heads(q_NTI: Tensor, k_NSI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q (N, T, 2, I), k and w (N, T, 2) whose sum of w relu(q . k) is q . k / sqrt(I)."""
    w_NT = torch.full_like(q_NTI[..., 0], q_NTI.shape[-1] ** -0.5)
    return torch.stack([q_NTI, -q_NTI], dim=2), k_NSI, torch.stack([w_NT, -w_NT], dim=2)
