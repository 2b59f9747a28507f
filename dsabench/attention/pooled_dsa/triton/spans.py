"""Index lists of the tokens of selected pools: a program writes one query's list.

    S[t] = the tokens begin[c], ..., begin[c] + n - 1 of each selected pool c, then those from tail[t] to t

Ascending where the pools are, -1 in the slots after the last key. No sort, no scores: a few integer instructions a
slot, bound by the 4 bytes that are written (predicted: 0.07 ms for 268 MB at L = 32,768, k = 2048, one row, H200).

Legend: B batch, T query, C pools of a row, P selected pools, K slots, N slots that are written together, M selected
pools that are counted together.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsabench.ops.triton.jit import jit

_SLOTS, _WARPS = 1024, 4


@jit
def _spans(selected, begins, tails, out, T, C, P, K, SIZE, N: tl.constexpr, M: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    t = (row % T).to(tl.int32)
    begins += row // T * C
    selected += row * P
    out += row * K
    tail = tl.load(tails + row).to(tl.int32)
    filled = tl.zeros((M,), dtype=tl.int32)
    for m0 in range(0, P, M):
        m = m0 + tl.arange(0, M)
        filled += (tl.load(selected + m, mask=m < P, other=-1) >= 0).to(tl.int32)
    count = tl.sum(filled, axis=0)
    for n0 in range(0, K, N):
        n = n0 + tl.arange(0, N)
        inside = n < count * SIZE
        pool = tl.load(selected + n // SIZE, mask=inside, other=0)
        begin = tl.load(begins + pool, mask=inside, other=0).to(tl.int32)
        s = tl.where(inside, begin + n % SIZE, tail + n - count * SIZE)
        tl.store(out + n, tl.where(s <= t, s, -1), mask=n < K)


def tokens(selected_BTP: Tensor, begin_BC: Tensor, tail_BT: Tensor, size: int) -> Tensor:
    """(B, T, K = P n + n - 1) int32. selected: int32, -1 in a query's last slots. Where selected pools ascend, so does
    the list. begin, tail: int64, of all rows."""
    out_BTK: Tensor = _tokens(selected_BTP, begin_BC, tail_BT, size)
    return out_BTK


@torch.library.custom_op("dsabench::pool_tokens", mutates_args=())
def _tokens(selected_BTP: Tensor, begin_BC: Tensor, tail_BT: Tensor, size: int) -> Tensor:
    n_batch, length, pools = selected_BTP.shape
    slots = pools * size + size - 1
    out_BTK = torch.empty(n_batch, length, slots, dtype=torch.int32, device=selected_BTP.device)
    _spans[(n_batch * length,)](
        selected_BTP.contiguous(), begin_BC.contiguous(), tail_BT.contiguous(), out_BTK, length, begin_BC.shape[1],
        pools, slots, size, N=min(_SLOTS, int(triton.next_power_of_2(slots))),
        M=min(_SLOTS, int(triton.next_power_of_2(pools))), num_warps=_WARPS,
    )  # fmt: skip
    return out_BTK


@_tokens.register_fake
def _(selected_BTP: Tensor, begin_BC: Tensor, tail_BT: Tensor, size: int) -> Tensor:
    slots = selected_BTP.shape[2] * size + size - 1
    return selected_BTP.new_empty(*selected_BTP.shape[:2], slots, dtype=torch.int32)
