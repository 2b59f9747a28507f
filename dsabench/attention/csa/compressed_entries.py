"""The places of compressed entries: which tokens each is made of, and which entries a query may see.

Entry i of a document is made of its tokens m i to m i + m - 1 (`own`); overlapping entries also of the m tokens before
these (`previous`), where the document has them. A query sees the entries of its document that are complete at it:
query t of a document sees the first floor((t + 1) / m). Entries of all documents of a row lie side by side, in order.

Legend: B batch (1 where no documents are packed, for all rows), T token, E entry, M tokens of an entry, C channels,
R lanes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dsabench.attention.base import AttentionContext
from dsabench.attention.dsa.reference import EMPTY, document_starts


@dataclass(frozen=True)
class Entries:
    """The entries of a batch of windows. All are integers; a row with fewer than E has its last ones end at T."""

    ratio: int
    start_BT: Tensor
    """The first token of each token's document."""

    end_BE: Tensor
    """The last token of each entry."""

    first_BT: Tensor
    """The first entry of each token's document."""

    seen_BT: Tensor
    """Entries that are complete at each token; those of earlier documents among them."""

    packed: bool
    """Whether a window holds several documents; else entries lie at the same places in all rows."""

    @property
    def count(self) -> int:
        """E."""
        return self.end_BE.shape[1]

    @property
    def length(self) -> int:
        """T."""
        return self.start_BT.shape[1]

    def visible(self) -> Tensor:
        """(B, T, E) whether a query may see an entry."""
        entry_E = torch.arange(self.count, device=self.end_BE.device)
        return (entry_E >= self.first_BT[..., None]) & (entry_E < self.seen_BT[..., None])

    def tokens(self, overlap: bool) -> Tensor:
        """(B, E, M) the tokens of each entry, `previous` before `own`; EMPTY where there is none."""
        back = 2 * self.ratio if overlap else self.ratio
        offset_M = torch.arange(1 - back, 1, device=self.end_BE.device)
        token_BEM = self.end_BE[..., None] + offset_M
        start_BE = self.start_BT.gather(1, self.end_BE.clamp(max=self.length - 1))
        real_BEM = (token_BEM >= start_BE[..., None]) & (self.end_BE < self.length)[..., None]
        return token_BEM.masked_fill(~real_BEM, EMPTY)

    def positions(self) -> Tensor:
        """(B, E) the position of each entry: that of the first of its own tokens."""
        return (self.end_BE.clamp(max=self.length - 1) + 1 - self.ratio).clamp(min=0)


def entries_of(context: AttentionContext, ratio: int) -> Entries:
    """The entries of `ratio` tokens, the same for all layers."""
    return context.once(("entries", ratio), lambda: _entries(context, ratio))


def _entries(context: AttentionContext, ratio: int) -> Entries:
    token_T = torch.arange(len(context.positions_T), device=context.positions_T.device)
    ids_BT = context.document_ids_BT
    start_BT = torch.zeros_like(token_T)[None] if ids_BT is None else document_starts(ids_BT).long()
    place_BT = token_T - start_BT + 1
    seen_BT = (place_BT % ratio == 0).long().cumsum(1)
    number_E = torch.arange(1, len(token_T) // ratio + 1, device=token_T.device).expand(len(seen_BT), -1)
    end_BE = torch.searchsorted(seen_BT, number_E.contiguous())
    return Entries(ratio, start_BT, end_BE, seen_BT - place_BT // ratio, seen_BT, ids_BT is not None)


def windows(x_BTC: Tensor, entries: Entries, previous: bool = False) -> Tensor:
    """(B, E, M = m, C) what each entry's own tokens have, or with `previous` those before them; 0 where there are
    none."""
    m = entries.ratio
    if not entries.packed:
        blocks_BEMC = x_BTC[:, : entries.count * m].unflatten(1, (entries.count, m))
        return F.pad(blocks_BEMC, (0, 0, 0, 0, 1, 0))[:, :-1] if previous else blocks_BEMC
    token_BEM = entries.tokens(True)[..., :m] if previous else entries.tokens(False)
    # Beyond the last token lies one of zeros.
    return pick(F.pad(x_BTC, (0, 0, 0, 1)), torch.where(token_BEM == EMPTY, entries.length, token_BEM))


def pick(x_BTC: Tensor, token_BX: Tensor) -> Tensor:
    """x[b, token[b, ...]] for tokens of any further dimensions."""
    row_B = torch.arange(len(x_BTC), device=x_BTC.device).view(-1, *(1,) * (token_BX.dim() - 1))
    return x_BTC[row_B, token_BX]


def to_lanes(x_BTC: Tensor, entries: Entries, empty: float = 0.0) -> Tensor:
    """(B R, E, C...) queries in R = m lanes, in which an attention to entries is an ordinary causal one: in lane r the
    query of row e is the token end[e] + r, which sees the entries up to e and no other. `empty` where there is none."""
    m, count = entries.ratio, entries.count
    if not entries.packed:
        later = x_BTC[:, m - 1 : m - 1 + count * m]
        rest = [0, 0] * (x_BTC.dim() - 2)
        full = F.pad(later, (*rest, 0, count * m - later.shape[1]), value=empty)
        lanes_NEC: Tensor = full.unflatten(1, (count, m)).transpose(1, 2).flatten(0, 1).contiguous()
        return lanes_NEC
    token_BRE, real_BRE = lane_tokens(entries)
    lanes = pick(x_BTC, token_BRE)
    return lanes.masked_fill(~real_BRE.view(*real_BRE.shape, *(1,) * (x_BTC.dim() - 2)), empty).flatten(0, 1)


def from_lanes(x_NEC: Tensor, entries: Entries, empty: float = 0.0) -> Tensor:
    """The inverse of to_lanes, (B, T, C...): `empty` at queries that see no entry."""
    m, length = entries.ratio, entries.length
    if not entries.count:
        return x_NEC.new_full((len(x_NEC) // m, length, *x_NEC.shape[2:]), empty)
    lanes = x_NEC.unflatten(0, (-1, m))
    if not entries.packed:
        rest = [0, 0] * (x_NEC.dim() - 2)
        return F.pad(lanes.transpose(1, 2).flatten(1, 2)[:, : length - m + 1], (*rest, m - 1, 0), value=empty)
    row_BT = (entries.seen_BT - 1).clamp(min=0)
    lane_BT = torch.arange(length, device=row_BT.device) - entries.end_BE.gather(1, row_BT)
    sees_BT = entries.seen_BT > entries.first_BT
    found = pick(lanes.flatten(1, 2), torch.where(sees_BT, lane_BT * entries.count + row_BT, 0))
    return found.masked_fill(~sees_BT.view(*sees_BT.shape, *(1,) * (x_NEC.dim() - 2)), empty)


def lane_tokens(entries: Entries) -> tuple[Tensor, Tensor]:
    """(B, R, E) the token of each place in the lanes, and whether it is one that sees its row's entry."""
    lane_R = torch.arange(entries.ratio, device=entries.end_BE.device)
    token_BRE = entries.end_BE[:, None, :] + lane_R[:, None]
    inside_BRE = token_BRE < entries.length
    token_BRE = token_BRE.clamp(max=entries.length - 1)
    row_E = torch.arange(entries.count, device=lane_R.device)
    flat_BX = token_BRE.flatten(1)
    seen_BRE, first_BRE = (x.gather(1, flat_BX).view_as(token_BRE) for x in (entries.seen_BT, entries.first_BT))
    return token_BRE, inside_BRE & (seen_BRE == row_E + 1) & (first_BRE <= row_E)
