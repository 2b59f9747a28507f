"""CSA and HCA without a tensor of L x L elements, forward and backward, by DSA's sparse kernels.

    out = sum over parts i of exp(lse_i - lse) out_i        lse = log(exp(sink) + sum over parts i of exp(lse_i))

The parts are the window, whose lists are those of a sliding window, and the entries. Queries of entries are laid out in
m lanes (`to_lanes`): in a lane, query row e sees the entries up to e, so that top-k, attention and KL over
entries are those of DSA over E tokens, m times as many rows. A place in the lanes without a query has zeros for a query
and an infinite lse, so that it has no part in gradients or loss. The backward kernel takes P = exp(s - lse) and dO . O
as it is told: with the joint lse and the joint out it gives each part's share of the gradients, and the sink has
d sink = -sum over t of exp(sink - lse) dO . O.

Reading every entry (HCA, and CSA's warm-up) takes a list of E indices for each of E rows, the same for all rows, lanes
and layers: E^2 = L^2 / m^2 indices, 256 MiB at L = 32,768 and m = 4, 256 KiB at m = 128. The KL over them, and packed
documents, take it once for each lane.

Legend: B batch, T query, S key, E entry, H query heads, G key/value heads, D head width, J indexer heads, I indexer
width, K slots, N = B m rows of lanes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dsabench.attention.ablations.selecting import ascending_keys, first_keys
from dsabench.attention.base import AttentionContext
from dsabench.attention.csa.compressed_entries import Entries, from_lanes, to_lanes
from dsabench.attention.dsa.reference import EMPTY
from dsabench.attention.dsa.triton import accumulate
from dsabench.attention.dsa.triton import attend as kernels
from dsabench.attention.dsa.triton.kl import sparse_kl
from dsabench.attention.dsa.triton.top_k import top_k
from dsabench.attention.dsa.triton.unions import Unions, neighbours, parts, queries_of, share, unions_of
from dsabench.ops.profile_labels import part
from dsabench.spec.model_settings import ModelSpec

Index = tuple[Tensor, Tensor, Tensor]
"""The indexer's q (B, T, J, I), k (B, E, I) and w (B, T, J)."""

Heads = tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Queries, and keys and values of tokens and of entries."""


@dataclass(frozen=True)
class Lists:
    """Which keys each row of queries reads, ascending, EMPTY in the last slots; of all rows, or the same for all."""

    selected: Tensor
    unions: Unions | None
    lse_NE: Tensor | None = None
    """Of a selection: logsumexp of its index scores."""

    def of_queries(self, entries: Entries) -> Tensor:
        """(B, T, K) the entries of each query."""
        return from_lanes(self.selected, entries, empty=EMPTY)


class Attended(NamedTuple):
    """The joint output; without gradients its logsumexp, and that of the entries alone, -inf where there are none."""

    out_BTHD: Tensor
    lse_BTH: Tensor
    entries_lse_BTH: Tensor


def window_lists(context: AttentionContext, width: int, model: ModelSpec) -> Lists:
    """The nearest `width` tokens of each query's document, once for all layers."""

    def make() -> Lists:
        with torch.no_grad(), part("top-k"):
            slot_K, t_T1, count_BT1 = ascending_keys(first_keys(context), min(width, len(context.positions_T)))
            selected = torch.where(slot_K < count_BT1, t_T1 + 1 - count_BT1 + slot_K, EMPTY)
            queries = queries_of(selected.shape[1], model.n_heads, model.kv_heads, model.head_dim)
            return Lists(selected, unions_of(selected, queries) if queries else None)

    return context.once(("window lists", width), make)


def every_entry(context: AttentionContext, entries: Entries, model: ModelSpec) -> Lists:
    """All complete entries of each query, once for all layers."""

    def make() -> Lists:
        with torch.no_grad(), part("top-k"):
            entry_E = torch.arange(entries.count, device=entries.end_BE.device, dtype=torch.int32)
            if not entries.packed:
                every = torch.where(entry_E <= entry_E[:, None], entry_E, EMPTY)[None]
                queries = queries_of(entries.count, model.n_heads, model.kv_heads, model.head_dim)
                return Lists(every, unions_of(every, queries) if queries and entries.count else None)
            slot_K, row_E1, count_BE1 = ascending_keys(_first_entries(entries), max(1, entries.count))
            rows = torch.where(slot_K < count_BE1, row_E1 + 1 - count_BE1 + slot_K, EMPTY)
            return Lists(rows.repeat_interleave(entries.ratio, 0), None)

    return context.once(("every entry", entries.ratio), make)


def best_entries(q_BTJI: Tensor, k_BEI: Tensor, w_BTJ: Tensor, k: int, heads: Heads, entries: Entries) -> Lists:
    """The k entries that score highest of those that each query sees, of equal ones the first."""
    with torch.no_grad():
        q_NEJI, w_NEJ = to_lanes(q_BTJI, entries), to_lanes(w_BTJ, entries)
        documents_NE = _first_entries(entries).repeat_interleave(entries.ratio, 0) if entries.packed else None
        if not entries.count:
            empty = q_NEJI.new_zeros(q_NEJI.shape[:2], dtype=torch.float32)
            return Lists(empty.int()[..., None], None, empty)
        selected, lse_NE = top_k(q_NEJI, _rows(k_BEI, entries), w_NEJ, min(k, entries.count), documents_NE)
        q_BTHD, (_, k_BEGD), _ = heads
        q_NEHD = q_BTHD.new_empty(len(selected), entries.count, *q_BTHD.shape[2:])
        return Lists(selected, share(q_NEHD, k_BEGD, selected), lse_NE)


def attend(
    q_BTHD: Tensor, keys: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor], window: Lists, lists: Lists,
    entries: Entries, sink_H: Tensor,
) -> Attended:  # fmt: skip
    """`reference.attention` over the window and the listed entries, in the dtype of q."""
    (k_BTGD, k_BEGD), (v_BTGD, v_BEGD) = keys, values
    q_NEHD = to_lanes(q_BTHD, entries)
    # Rows of a batch that share keys have no kernel of their own: each lane has a copy.
    lanes = q_NEHD, _rows(k_BEGD, entries), _rows(v_BEGD, entries)
    out: tuple[Tensor, Tensor, Tensor] = _Joint.apply(  # type: ignore[no-untyped-call]
        q_BTHD,
        k_BTGD,
        v_BTGD,
        *lanes,
        sink_H,
        _usable(window, q_BTHD, k_BTGD),
        _usable(lists, q_NEHD, lanes[1]),
        entries,
    )
    return Attended(*out)


def indexer_kl(heads: Heads, index: Index, attended: Attended, lists: Lists, entries: Entries) -> Tensor:
    """Mean over queries of KL(p[t] || softmax(I[t])) over the listed entries, in nats; see `layer`."""
    q_BTHD, (_, k_BEGD), _ = heads
    if not entries.count:
        return torch.stack([0.0 * x.float().sum() for x in index]).sum()
    with torch.no_grad():
        # exp(s - lse) / p's sum over entries, mean over heads, is exp(s - lse - log of that sum).
        share_BT = (attended.entries_lse_BTH - attended.lse_BTH).exp().mean(-1)
        lse_BTH = attended.lse_BTH + share_BT.log()[..., None]
        lse_NEH = to_lanes(lse_BTH, entries, empty=torch.inf)
        q_NEHD, k_NEGD = to_lanes(q_BTHD.detach(), entries), _rows(k_BEGD.detach(), entries)
        selected = lists.selected.expand(len(q_NEHD), -1, -1).contiguous()
    q_BTJI, k_BEI, w_BTJ = index
    index_lanes = to_lanes(q_BTJI, entries), _rows(k_BEI, entries), to_lanes(w_BTJ, entries)
    unions = None if lists.lse_NE is None else lists.unions  # those of every entry are of one row
    loss = sparse_kl(q_NEHD, k_NEGD, lse_NEH, *index_lanes, selected, lists.lse_NE, unions=unions)
    return loss * (entries.count * entries.ratio / entries.length)  # its mean is over all places of the lanes


class _Joint(torch.autograd.Function):
    """Both parts' attention as one softmax with a sink. Not differentiable twice."""

    @staticmethod
    def forward(
        ctx: Any, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor, q_NEHD: Tensor, k_NEGD: Tensor, v_NEGD: Tensor,
        sink_H: Tensor, window: Lists, lists: Lists, entries: Entries,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        fixed = accumulate.deterministic(None)
        near_BTHD, near_BTH = _forward(q_BTHD, k_BTGD, v_BTGD, window, fixed)
        far_BTHD, far_BTH = torch.zeros_like(near_BTHD), torch.full_like(near_BTH, -torch.inf)
        if entries.count:
            far_NEHD, far_NEH = _forward(q_NEHD, k_NEGD, v_NEGD, lists, fixed)
            far_BTHD, far_BTH = from_lanes(far_NEHD, entries), from_lanes(far_NEH, entries, empty=-torch.inf)
        lse_BTH = torch.logaddexp(torch.logaddexp(near_BTH, far_BTH), sink_H.float())
        mixed = (near_BTH - lse_BTH).exp()[..., None] * near_BTHD + (far_BTH - lse_BTH).exp()[..., None] * far_BTHD
        out_BTHD = mixed.to(q_BTHD.dtype)
        ctx.save_for_backward(q_BTHD, k_BTGD, v_BTGD, q_NEHD, k_NEGD, v_NEGD, sink_H, out_BTHD, lse_BTH)
        ctx.lists, ctx.entries, ctx.fixed = (window, lists), entries, fixed
        ctx.mark_non_differentiable(lse_BTH, far_BTH)
        ctx.set_materialize_grads(False)
        return out_BTHD, lse_BTH, far_BTH

    @staticmethod
    def backward(ctx: Any, d_out_BTHD: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if d_out_BTHD is None:
            return (None,) * 10
        q, k, v, q_lanes, k_lanes, v_lanes, sink_H, out_BTHD, lse_BTH = ctx.saved_tensors
        entries, (window, lists) = ctx.entries, ctx.lists
        d_near = _backward(q, k, v, window, out_BTHD, lse_BTH, d_out_BTHD, ctx.fixed)
        d_far: tuple[Tensor | None, ...] = (None, None, None)
        if entries.count:
            out_NEHD, d_out_NEHD = to_lanes(out_BTHD, entries), to_lanes(d_out_BTHD, entries)
            lse_NEH = to_lanes(lse_BTH, entries, empty=torch.inf)
            d_far = _backward(q_lanes, k_lanes, v_lanes, lists, out_NEHD, lse_NEH, d_out_NEHD, ctx.fixed)
        inner_BTH = (d_out_BTHD.float() * out_BTHD.float()).sum(-1)
        d_sink_H = -((sink_H.float() - lse_BTH).exp() * inner_BTH).sum((0, 1))
        return (*d_near, *d_far, d_sink_H.to(sink_H.dtype), None, None, None)


def _forward(q: Tensor, k: Tensor, v: Tensor, lists: Lists, fixed: bool) -> tuple[Tensor, Tensor]:
    out: tuple[Tensor, Tensor] = kernels._attend(
        q, k, v, lists.selected, *parts(lists.unions), fixed, True, q.shape[-1] ** -0.5, 0
    )
    return out


def _backward(
    q: Tensor, k: Tensor, v: Tensor, lists: Lists, out: Tensor, lse: Tensor, d_out: Tensor, fixed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    words, sizes, count = parts(lists.unions)
    gradients: tuple[Tensor, Tensor, Tensor] = kernels._attend_backward(
        q, k, v, lists.selected, words, sizes, out, lse, d_out, count, fixed, True, q.shape[-1] ** -0.5, 0
    )
    return gradients


def _usable(lists: Lists, q: Tensor, k: Tensor) -> Lists:
    """Without unions where groups do not pay in this dtype."""
    return lists if neighbours(q, k) else Lists(lists.selected, None, lists.lse_NE)


def _rows(x_BEC: Tensor, entries: Entries) -> Tensor:
    """(N, E, C...): the same in all lanes."""
    return x_BEC.repeat_interleave(entries.ratio, 0)


def _first_entries(entries: Entries) -> Tensor:
    """(B, E) int32: the first entry of each entry's document."""
    return entries.first_BT.gather(1, entries.end_BE.clamp(max=entries.length - 1)).int()
