"""Index lists of the keys of kept blocks, by slabs of queries: no tensor of L x L elements.

Legend: N rows (a batch's KV heads), R queries of a slab, T query, S key, C blocks, I index width, K slots.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dsabench.attention.base import AttentionContext
from dsabench.attention.dsa.reference import EMPTY, allowed_at
from dsabench.attention.msa import reference
from dsabench.spec.attention import MSASpec

SLAB_PAIRS = 2**26
"""Most (query, key) pairs of a slab over all rows: 256 MiB of scores."""


def lists(q_NTI: Tensor, k_NSI: Tensor, config: MSASpec, context: AttentionContext) -> Tensor:
    """(N, T, K) int32: the keys of each query's kept blocks, EMPTY in the other slots; without gradients. Ascending,
    and with the empty slots last, where no documents are packed."""
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
