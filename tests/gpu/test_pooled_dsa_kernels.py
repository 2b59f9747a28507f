"""Pooled DSA's loss of the dense stage on a GPU: against the reference in fp64, and its bits.

Run on a machine with one: pytest -m gpu tests/gpu/test_pooled_dsa_kernels.py
"""

from __future__ import annotations

import pytest
import torch
from pooled_layers import ids_of
from torch import Tensor

from dsabench.attention.base import AttentionContext
from dsabench.attention.dsa import masked
from dsabench.attention.dsa.reference import allowed_at
from dsabench.attention.pooled_dsa import reference, streamed
from dsabench.attention.pooled_dsa.pools import pools_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def learnt(dtype: torch.dtype, packed: bool, kernel: bool, length: int = 700, n: int = 4) -> list[Tensor]:
    """The loss and its gradients; inputs are bf16's numbers in every precision."""
    generator = torch.Generator("cuda").manual_seed(3)
    ids = ids_of(length, 3, chance=0.01).cuda() if packed else None
    context = AttentionContext(torch.arange(length, device="cuda"), "dense", ids)
    pools = pools_of(context, n)
    shapes = ((length, 8, 64), (length, 1, 64), (length, 4, 32), (pools.begin_BC.shape[1], 32), (length, 4))
    q, k, *heads = (
        torch.randn(2, *shape, generator=generator, device="cuda").mul(0.5).bfloat16().to(dtype) for shape in shapes
    )
    qi, ki, wi = (x.requires_grad_() for x in heads)
    if kernel:
        loss = streamed.dense_loss(q, k, (qi, ki, wi), pools, context)
    else:
        p = masked.attention(q, k, k, allowed_at(torch.arange(length, device="cuda"), length, ids), 64**-0.5)[1]
        scores = reference.token_scores(masked.index_scores(qi, ki, wi), pools.pool_BT())
        seen = reference.pool_tokens(pools.seen().expand(2, -1, -1), pools.pool_BT())
        loss = reference.pooled_kl(scores, p, seen)
    return [loss.detach(), *torch.autograd.grad(loss, [qi, ki, wi])]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("packed", [False, True])
def test_the_dense_loss_is_the_references(packed: bool, dtype: torch.dtype, tolerance: float) -> None:
    for mine, theirs in zip(learnt(dtype, packed, True), learnt(torch.float64, packed, False), strict=True):
        assert float((mine.double() - theirs).norm() / theirs.norm()) < tolerance


def test_deterministic_gradients_repeat_their_bits() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        first, *others = (learnt(torch.bfloat16, True, True) for _ in range(5))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for run in others for a, b in zip(first, run, strict=True))
