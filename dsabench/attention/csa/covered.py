"""The tokens behind a query's window and selected entries, each once: what a selection's capture holds.

Legend: B batch, T query, E entry, K selected entries, M tokens of an entry, W tokens of a window, X slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsabench.attention.csa.compressed_entries import Entries, pick
from dsabench.attention.dsa.reference import EMPTY


def covered_tokens(selected_BTK: Tensor, entries: Entries, window: int) -> Tensor:
    """(B, T, X) int64: of each selected entry its own tokens and those before them that it is made of, and the nearest
    `window` tokens; each token once, EMPTY in the other slots. selected: EMPTY where a slot is empty."""
    n_batch, length, kept = selected_BTK.shape
    token_T = torch.arange(length, device=selected_BTK.device)
    near_TW = token_T[:, None] - torch.arange(window - 1, -1, -1, device=token_T.device)
    near_BTW = torch.where(near_TW >= entries.start_BT[..., None], near_TW, EMPTY).expand(n_batch, -1, -1)
    if not entries.count or not kept:
        return near_BTW
    # By blocks of own tokens: entry e is made of block e and, in the same document, of block e - 1.
    covers_BTE = torch.zeros(n_batch, length, entries.count + 1, dtype=torch.bool, device=token_T.device)
    selected_BTK = torch.where(selected_BTK < 0, entries.count, selected_BTK).long()
    covers_BTE.scatter_(2, selected_BTK, True)
    before_BTK = torch.where(selected_BTK > entries.first_BT[..., None], selected_BTK - 1, entries.count)
    before_BTK = before_BTK.masked_fill(selected_BTK == entries.count, entries.count)
    covers_BTE.scatter_(2, before_BTK, True)
    covers_BTE = covers_BTE[..., :-1]
    most = min(2 * kept, entries.count)
    block_BTX = covers_BTE.int().sort(dim=-1, descending=True, stable=True).indices[..., :most]
    own_BEM = entries.tokens(overlap=False).expand(n_batch, -1, -1)
    of_blocks_BTXM = pick(own_BEM, block_BTX).masked_fill(~covers_BTE.gather(2, block_BTX)[..., None], EMPTY)
    # A window's token is left out where its block is covered.
    place_BT = token_T - entries.start_BT
    block_BT = entries.first_BT + place_BT // entries.ratio
    whole_BT = block_BT < entries.count
    last_BT = entries.end_BE.gather(1, block_BT.clamp(max=entries.count - 1))
    whole_BT = whole_BT & (last_BT >= token_T) & (last_BT - token_T < entries.ratio)
    block_BT = torch.where(whole_BT, block_BT, -1).expand(n_batch, -1)
    block_BTW = pick(block_BT, near_BTW.clamp(min=0))
    already_BTW = covers_BTE.gather(2, block_BTW.clamp(min=0)) & (block_BTW >= 0)
    return torch.cat([of_blocks_BTXM.flatten(2), near_BTW.masked_fill(already_BTW, EMPTY)], dim=-1)
