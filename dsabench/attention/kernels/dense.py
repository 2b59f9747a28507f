"""Dense causal attention whose memory does not grow with L x L, within documents too.

    out[t] = softmax(Q[t] K[s0..t]^T / sqrt(D)) V[s0..t]        s0 the first key of t's document

By torch.nn.functional.scaled_dot_product_attention, whose flash, cuDNN and efficient backends stream the scores.
Documents need a mask; it exists for one slab of queries at a time, forward and backward.

Legend: B batch, T query (a slab's, in `_slab`), S key, H query heads, G key/value heads, D head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dsabench.attention.kernels.reference import allowed_at

SLAB_PAIRS = 2**26
"""Most (query, key) pairs of a slab's mask over all rows of a batch: 128 MiB of bf16 bias."""


def attention(q_BTHD: Tensor, k_BSGD: Tensor, v_BSGD: Tensor, document_ids_BT: Tensor | None = None) -> Tensor:
    """(B, T, H, D) by every key that a query may see; document ids as AttentionContext has them."""
    q_BHTD, k_BGSD, v_BGSD = (x.transpose(1, 2) for x in (q_BTHD, k_BSGD, v_BSGD))
    groups = k_BGSD.shape[1]
    grouped = groups != q_BHTD.shape[1]
    if grouped and not (q_BHTD.is_cuda and q_BHTD.dtype != torch.float32 and document_ids_BT is None):
        # Only flash and cuDNN attention know KV heads; for others PyTorch falls back to an L x L product.
        k_BGSD, v_BGSD = (x.repeat_interleave(q_BHTD.shape[1] // groups, dim=1) for x in (k_BGSD, v_BGSD))
        grouped = False
    if document_ids_BT is None:
        out_BHTD = F.scaled_dot_product_attention(q_BHTD, k_BGSD, v_BGSD, is_causal=True, enable_gqa=grouped)
        return out_BHTD.transpose(1, 2)
    n_batch, _, length, _ = q_BHTD.shape
    rows = max(1, SLAB_PAIRS // (n_batch * length))
    if rows >= length:
        return _slab(q_BHTD, k_BGSD, v_BGSD, document_ids_BT, 0).transpose(1, 2)
    slabs = [
        # Recomputed in the backward pass: kept, the slabs' masks would be L x L again.
        checkpoint(
            _slab, q_BHTD[:, :, t : t + rows], k_BGSD[:, :, : t + rows], v_BGSD[:, :, : t + rows],
            document_ids_BT[:, : t + rows], t, use_reentrant=False, preserve_rng_state=False,
        )
        for t in range(0, length, rows)
    ]  # fmt: skip
    return torch.cat(slabs, dim=2).transpose(1, 2)


def _slab(q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, document_ids_BS: Tensor, first: int) -> Tensor:
    """Queries first..first + T - 1 of the window over its keys 0..S - 1."""
    query_T = torch.arange(first, first + q_BHTD.shape[2], device=q_BHTD.device)
    mask_BTS = allowed_at(query_T, k_BHSD.shape[2], document_ids_BS)
    return F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, attn_mask=mask_BTS[:, None])
