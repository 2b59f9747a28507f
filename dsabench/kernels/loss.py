"""Linear and cross-entropy in one: the gradient of the logits takes their place in memory, in the products' dtype.

    z = x E^T        loss = mean_n (logsumexp(z_n) - z_n[target_n])        dz_n = (softmax(z_n) - onehot(target_n)) / N

Where only some tokens are scored, the mean and N are of those, and dz is 0 elsewhere.

No fp32 logits are ever made, and of large batches only a slab of logits at a time. Known from Liger-Kernel
(arXiv 2410.10989, section 3.2).

Legend: N tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

SLAB = 2**29
"""Logits of one slab."""

_WIDE = 4096


@triton.jit
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


class LinearCrossEntropy(torch.autograd.Function):
    """(x (N, D), E (V, D), targets (N,) int64, scored (N,) bool or None) -> mean loss in nats, fp32; x and E in one
    dtype."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, embedding_VD: Tensor, targets_N: Tensor, scored_N: Tensor | None = None
    ) -> Tensor:
        """The gradients are computed here, slab by slab, while the logits are there."""
        count, vocabulary = len(x_ND), len(embedding_VD)
        x_ND, targets_N = x_ND.contiguous(), targets_N.contiguous()
        scored_N = None if scored_N is None else scored_N.contiguous().view(torch.uint8)
        scored_count = None if scored_N is None else scored_N.sum(dtype=torch.float32)
        losses_N = torch.empty(count, dtype=torch.float32, device=x_ND.device)
        learns = any(ctx.needs_input_grad[:2])
        slab = max(1, SLAB // vocabulary)
        dx_ND = torch.empty_like(x_ND) if learns else None
        dE_VD: Tensor | None = None
        for first in range(0, count, slab):
            part = x_ND[first : first + slab]
            z_NV = part @ embedding_VD.t()
            _rows[(len(part),)](
                z_NV, targets_N[first:], None if scored_N is None else scored_N[first:], scored_count,
                losses_N[first:], vocabulary, 1.0 / count, SCORED=scored_N is not None, GRAD=learns,
                WIDE=min(_WIDE, triton.next_power_of_2(vocabulary)), num_warps=8,
            )  # fmt: skip
            if dx_ND is not None:
                torch.matmul(z_NV, embedding_VD, out=dx_ND[first : first + slab])
                product = z_NV.t() @ part
                # Over several slabs the sum is kept in fp32.
                dE_VD = product if count <= slab else product.float() if dE_VD is None else dE_VD.add_(product)
        ctx.save_for_backward(dx_ND, None if dE_VD is None else dE_VD.to(embedding_VD.dtype))
        return losses_N.mean() if scored_count is None else losses_N.sum() / scored_count.clamp(min=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """What forward computed, times the gradient of the loss."""
        dx_ND, dE_VD = ctx.saved_tensors
        scale = grads[0]
        return dx_ND * scale.to(dx_ND.dtype), dE_VD * scale.to(dE_VD.dtype), None, None
