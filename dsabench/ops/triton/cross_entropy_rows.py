"""The rows of `cross_entropy` as a Triton kernel.

Legend: N tokens, V vocabulary.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, uint8

from dsabench.ops.triton.jit import jit

_WIDE = 4096


@jit
def _rows(z, targets, scored, count, loss, V, scale, SCORED: tl.constexpr, GRAD: tl.constexpr, WIDE: tl.constexpr):
    """A program is a row: log-sum-exp in one pass with a running maximum; then dz over z."""
    n = tl.program_id(0).to(tl.int64)
    row = z + n * V
    if SCORED:
        counts = tl.load(scored + n).to(tl.float32)
        scale = counts / tl.maximum(tl.load(count), 1.0)
    target = tl.load(targets + n)
    i = tl.arange(0, WIDE)
    # A lane that has seen nothing keeps a maximum so low that its sum counts for nothing, and no inf makes a NaN.
    largest = tl.full((WIDE,), -1e38, dtype=tl.float32)
    total = tl.zeros((WIDE,), dtype=tl.float32)
    for start in range(0, V, WIDE):
        value = tl.load(row + start + i, mask=start + i < V, other=-1e38).to(tl.float32)
        above = tl.maximum(largest, value)
        total = total * tl.exp(largest - above) + tl.exp(value - above)
        largest = above
    top = tl.max(largest, axis=0)
    lse = top + tl.log(tl.sum(total * tl.exp(largest - top), axis=0))
    nll = lse - tl.load(row + target).to(tl.float32)
    tl.store(loss + n, nll * counts if SCORED else nll)
    if GRAD:
        tl.debug_barrier()  # the target's logit is read above and overwritten below
        for start in range(0, V, WIDE):
            keep = start + i < V
            value = tl.load(row + start + i, mask=keep, other=0.0).to(tl.float32)
            grad = (tl.exp(value - lse) - tl.where(start + i == target, 1.0, 0.0)) * scale
            tl.store(row + start + i, grad.to(z.dtype.element_ty), mask=keep)


def rows(
    z_NV: Tensor,
    targets_N: Tensor,
    losses_N: Tensor,
    scale: float,
    scored_N: Tensor | None,
    scored_count: Tensor | None,
    learns: bool,
) -> Tensor:
    """As `cross_entropy.plain_rows`, in one pass over z and one that writes dz."""
    vocabulary = z_NV.shape[1]
    _rows[(len(z_NV),)](
        z_NV, targets_N, None if scored_N is None else scored_N.contiguous().view(uint8), scored_count, losses_N,
        vocabulary, scale, SCORED=scored_N is not None, GRAD=learns,
        WIDE=min(_WIDE, triton.next_power_of_2(vocabulary)), num_warps=8,
    )  # fmt: skip
    return z_NV
