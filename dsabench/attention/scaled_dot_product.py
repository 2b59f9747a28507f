"""Dense causal attention whose memory does not grow with L x L, within documents too.

    out[t] = softmax(Q[t] K[s0..t]^T / sqrt(D)) V[s0..t]        s0 the first key of t's document

By torch.nn.functional.scaled_dot_product_attention, whose flash, cuDNN and efficient backends stream the scores.
Packed documents are given to torch.nn.attention.varlen as sequences, where flash attention runs and their number has a
bound. Elsewhere they need a mask, which is made for one slab of queries at a time, forward and backward.

Legend: B batch, T query (a slab's, in `_slab`), S key, H query heads, G key/value heads, D head width, N all tokens of
a batch, E ends of documents.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dsabench.attention.dsa.reference import allowed_at

SLAB_PAIRS = 2**26
"""Most (query, key) pairs of a slab's mask over all rows of a batch: 128 MiB of bf16 bias."""


def attention(
    q_BTHD: Tensor,
    k_BSGD: Tensor,
    v_BSGD: Tensor,
    document_ids_BT: Tensor | None = None,
    most_documents: int | None = None,
) -> Tensor:
    """(B, T, H, V), over every key that a query may see; V is the values' width, at most D. document_ids_BT rise from 0
    in each row; both they and most_documents are as AttentionContext has them."""
    narrower = q_BTHD.shape[-1] - v_BSGD.shape[-1]
    if narrower and q_BTHD.is_cuda:  # flash and cuDNN attention, and documents as sequences, take one width
        padded_BSGD = F.pad(v_BSGD, (0, narrower))
        return attention(q_BTHD, k_BSGD, padded_BSGD, document_ids_BT, most_documents)[..., :-narrower]
    if document_ids_BT is not None and most_documents is not None and _is_for_flash(q_BTHD):
        return _by_sequences(q_BTHD, k_BSGD, v_BSGD, document_ids_BT, most_documents)
    q_BHTD, k_BGSD, v_BGSD = (x.transpose(1, 2) for x in (q_BTHD, k_BSGD, v_BSGD))
    groups = k_BGSD.shape[1]
    grouped = groups != q_BHTD.shape[1]
    if grouped and not (q_BHTD.is_cuda and q_BHTD.dtype != torch.float32 and document_ids_BT is None):
        # Only flash and cuDNN attention take fewer KV heads; otherwise PyTorch falls back to an L x L product.
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
        # Recomputed in the backward pass, because the masks of all slabs together are L x L.
        checkpoint(
            _slab, q_BHTD[:, :, t : t + rows], k_BGSD[:, :, : t + rows], v_BGSD[:, :, : t + rows],
            document_ids_BT[:, : t + rows], t, use_reentrant=False, preserve_rng_state=False,
        )
        for t in range(0, length, rows)
    ]  # fmt: skip
    return torch.cat(slabs, dim=2).transpose(1, 2)


def _is_for_flash(q_BTHD: Tensor) -> bool:
    if not q_BTHD.is_cuda or q_BTHD.dtype not in (torch.bfloat16, torch.float16):
        return False
    width = q_BTHD.shape[-1]
    return width % 8 == 0 and width <= 256 and torch.cuda.get_device_capability(q_BTHD.device) >= (8, 0)


def _by_sequences(q_BTHD: Tensor, k_BSGD: Tensor, v_BSGD: Tensor, ids_BT: Tensor, most: int) -> Tensor:
    """Each document as a sequence; a row with fewer than `most` documents has empty sequences for the rest."""
    from torch.nn.attention import varlen  # here, because it loads PyTorch's compiler, which takes seconds

    heads, groups = q_BTHD.shape[2], k_BSGD.shape[2]
    if groups != heads:  # PyTorch 2.10 takes no fewer KV heads here
        k_BSGD, v_BSGD = (x.repeat_interleave(heads // groups, dim=2) for x in (k_BSGD, v_BSGD))
    end_E, length = sequence_ends(ids_BT, most), q_BTHD.shape[1]
    q_NHD, k_NHD, v_NHD = (x.flatten(0, 1) for x in (q_BTHD, k_BSGD, v_BSGD))
    causal: dict[str, Any] = {"window_size": (-1, 0)}
    if "window_size" not in inspect.signature(varlen.varlen_attn).parameters:  # PyTorch 2.10
        causal = {"is_causal": True}
    out_NHD = varlen.varlen_attn(q_NHD, k_NHD, v_NHD, end_E, end_E, length, length, **causal)
    assert isinstance(out_NHD, Tensor)
    return out_NHD.view_as(q_BTHD)


def sequence_ends(ids_BT: Tensor, most: int) -> Tensor:
    """(B * most + 1,) int32: where the sequences of all rows, laid end to end, begin, and the end of the last one. An
    empty sequence begins where the next one does. The host does not wait for the device."""
    n_tokens = ids_BT.numel()
    row_B1 = torch.arange(len(ids_BT), device=ids_BT.device)[:, None]
    sequence_N = (row_B1 * most + ids_BT).flatten()
    begin_E = torch.full((len(ids_BT) * most + 1,), n_tokens, dtype=torch.int64, device=ids_BT.device)
    begin_E.scatter_reduce_(0, sequence_N, torch.arange(n_tokens, device=ids_BT.device), "amin")
    # A row's empty sequences begin where the next row's first one does: the least of all that follow.
    return begin_E.flip(0).cummin(0).values.flip(0).int()


def _slab(q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, document_ids_BS: Tensor, first: int) -> Tensor:
    """Queries first..first + T - 1 of the window over its keys 0..S - 1."""
    query_T = torch.arange(first, first + q_BHTD.shape[2], device=q_BHTD.device)
    mask_BTS = allowed_at(query_T, k_BHSD.shape[2], document_ids_BS)
    return F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, attn_mask=mask_BTS[:, None])
