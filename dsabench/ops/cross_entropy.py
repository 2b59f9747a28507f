"""Linear and cross-entropy in one: the gradient of the logits takes their place in memory, in the products' dtype.

    z = x E^T        loss = mean_n (logsumexp(z_n) - z_n[target_n])        dz_n = (softmax(z_n) - onehot(target_n)) / N

Where only some tokens are scored, the mean and N are of those, and dz is 0 elsewhere.

Of large batches there is only a slab of logits at a time; the fused version makes no fp32 logits either. Known from
Liger-Kernel (arXiv 2410.10989, section 3.2).

Legend: N tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsabench.ops.availability import fused, on_gpu

SLAB = 2**29
"""Logits of one slab."""

CPU_SLAB = 2**22
"""The same on a CPU: 16 MB, which malloc keeps for the next slab; of more, each page would be asked for again."""


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
        scored_count = None if scored_N is None else scored_N.sum(dtype=torch.float32)
        losses_N = torch.empty(count, dtype=torch.float32, device=x_ND.device)
        learns = any(ctx.needs_input_grad[:2])
        slab = max(1, (CPU_SLAB if x_ND.device.type == "cpu" and not on_gpu(x_ND.device) else SLAB) // vocabulary)
        dx_ND = torch.empty_like(x_ND) if learns else None
        dE_VD: Tensor | None = None
        if fused(x_ND, embedding_VD):
            from dsabench.ops.triton.cross_entropy_rows import rows
        else:
            rows = plain_rows
        for first in range(0, count, slab):
            at = slice(first, first + slab)
            part = x_ND[at]
            z_NV = part @ embedding_VD.t()
            scored = None if scored_N is None else scored_N[at]
            dz_NV = rows(z_NV, targets_N[at], losses_N[at], 1 / count, scored, scored_count, learns)
            if dx_ND is not None:
                torch.matmul(dz_NV, embedding_VD, out=dx_ND[at])
                product = dz_NV.t() @ part
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


def plain_rows(
    z_NV: Tensor,
    targets_N: Tensor,
    losses_N: Tensor,
    scale: float,
    scored_N: Tensor | None,
    scored_count: Tensor | None,
    learns: bool,
) -> Tensor:
    """Write each row's loss into `losses`, and return dz of z, which it overwrites: with `scale` in place of 1 / N, or
    of `scored_count` tokens in the whole batch those in `scored`. Without `learns`, dz is of no use."""
    target_N1 = targets_N[:, None]
    wide_NV = z_NV.float()
    picked_N = wide_NV.gather(1, target_N1)[:, 0]
    top_N1 = wide_NV.amax(1, keepdim=True)
    sum_N1 = wide_NV.sub_(top_N1).exp_().sum(1, keepdim=True)
    torch.sub((sum_N1.log() + top_N1)[:, 0], picked_N, out=losses_N)
    scale_N1 = torch.full_like(sum_N1, scale)
    if scored_N is not None and scored_count is not None:
        losses_N *= scored_N
        scale_N1 = (scored_N / scored_count.clamp(min=1))[:, None]
    if learns:
        wide_NV.mul_(scale_N1 / sum_N1).scatter_add_(1, target_N1, -scale_N1)
    return wide_NV.to(z_NV.dtype)
