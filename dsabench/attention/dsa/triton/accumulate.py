"""Sums into a key from many queries: fp32 atomics, or integers in fixed point where the bits must repeat.

fp32 additions give other bits in another order, and atomics come in any order. Integer additions do not: a
contribution x is added as round(x scale) to an int64, scale the power of two by which not even the largest possible sum
overflows. With 2^20 contributions of at most X each the grid is X 2^-42: finer than what fp32 resolves of most
contributions. It needs no sort and no scratch beyond 8 bytes an element, and costs twice the atomics' bytes.

Ways not taken: sorting the (key, query) pairs and one program a key in fixed order gathers 4 KB of queries and output
gradients a pair (H = 16, D = 64), eight times the bytes that the atomics move.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from dsabench.ops.triton.jit import jit


@jit
def add(total, at, x, mask, scale, FIXED: tl.constexpr):
    """total[at] += x, in fixed point where FIXED (total is int64, scale a pointer), in fp32 otherwise."""
    if FIXED:
        x = x * tl.load(scale)
        x += tl.where(x >= 0, 0.5, -0.5)  # conversion cuts off
        tl.atomic_add(total + at, x.to(tl.int64), mask=mask, sem="relaxed")
    else:
        tl.atomic_add(total + at, x, mask=mask, sem="relaxed")


def deterministic(wanted: bool | None) -> bool:
    """`wanted`, or when None what PyTorch has been told (engine.deterministic tells it)."""
    return torch.are_deterministic_algorithms_enabled() if wanted is None else wanted


def scale_for(largest: Tensor, contributions: int) -> Tensor:
    """The scale for so many contributions of at most `largest` (a scalar on the device) in magnitude. No host sync."""
    bound = (largest.double() * contributions).clamp(min=2.0**-60)
    return torch.exp2(torch.floor(61 - torch.log2(bound))).float()


def zeros(shape: tuple[int, ...], like: Tensor, fixed: bool) -> Tensor:
    """Where the sums start."""
    return torch.zeros(shape, dtype=torch.int64 if fixed else torch.float32, device=like.device)


def finish(total: Tensor, scale: Tensor | None, dtype: torch.dtype, factor: float = 1.0) -> Tensor:
    """The sums times a factor in `dtype`. Where the scale is no number, because an input was not, neither are they."""
    if scale is None:
        return total.to(dtype) if factor == 1.0 else total.mul_(factor).to(dtype)
    return (total.double() * (factor / scale)).to(dtype)
