"""Loss and correctness of each row of logits in one pass, for evaluation: no fp32 copy of the logits is made.

    nll_n = logsumexp(z_n) - z_n[target_n]        correct_n = (argmax z_n = target_n), the lowest index of equals

Legend: N tokens, V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsabench.ops.triton.jit import jit

_WIDE = 4096


@jit
def _score(z, targets, loss, correct, V, WIDE: tl.constexpr):
    """A program is a row; each lane keeps a running maximum, the sum relative to it, and where it stood first."""
    n = tl.program_id(0).to(tl.int64)
    row = z + n * V
    i = tl.arange(0, WIDE)
    largest = tl.full((WIDE,), -1e38, dtype=tl.float32)
    total = tl.zeros((WIDE,), dtype=tl.float32)
    place = tl.full((WIDE,), 2147483647, dtype=tl.int32)
    for start in range(0, V, WIDE):
        value = tl.load(row + start + i, mask=start + i < V, other=-1e38).to(tl.float32)
        place = tl.where(value > largest, start + i, place)
        above = tl.maximum(largest, value)
        total = total * tl.exp(largest - above) + tl.exp(value - above)
        largest = above
    top = tl.max(largest, axis=0)
    lse = top + tl.log(tl.sum(total * tl.exp(largest - top), axis=0))
    target = tl.load(targets + n)
    tl.store(loss + n, lse - tl.load(row + target).to(tl.float32))
    tl.store(correct + n, tl.min(tl.where(largest == top, place, 2147483647), axis=0) == target)


def score_rows(z_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """(N, V) logits and (N,) int64 targets -> nll (N,) in nats, fp32, and correct (N,), bool."""
    count, vocabulary = z_NV.shape
    loss_N = torch.empty(count, dtype=torch.float32, device=z_NV.device)
    correct_N = torch.empty(count, dtype=torch.bool, device=z_NV.device)
    wide = min(_WIDE, triton.next_power_of_2(vocabulary))
    _score[(count,)](
        z_NV.contiguous(), targets_N.contiguous(), loss_N, correct_N, vocabulary, WIDE=wide, num_warps=8
    )  # fmt: skip
    return loss_N, correct_N
