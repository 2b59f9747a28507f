"""Shared pieces of the kernels over the indexer's scores: loading a block's heads, a tile of scores, shapes.

    I[t,s] = sum_j w[t,j] relu(q[t,j] . k[s])

Legend: T block of queries, S block of keys, J indexer heads, I (DI in code) indexer width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsabench.ops.triton.jit import jit

LOWEST = tl.constexpr(-3.0e38)
"""Scores are clamped to it from below (NaN too): every key that is allowed scores above -inf, which means absent."""

HELD_BYTES = 1 << 16
"""Up to so many bytes of a block's indexer queries stay on chip through the loop over keys; more are loaded anew."""


@jit
def load_heads(q, w, t, L, J: tl.constexpr, DI: tl.constexpr, WIDE: tl.constexpr, N: tl.constexpr):
    """The first N heads' queries, [T, WIDE] each, and weights, [T] each, of one batch row's queries t."""
    i = tl.arange(0, WIDE)
    rows = t < L
    qs = ()
    ws = ()
    for j in tl.static_range(N):
        at = (t.to(tl.int64) * J + j) * DI
        query = tl.load(q + at[:, None] + i[None, :], mask=rows[:, None] & (i < DI)[None, :], other=0.0)
        weight = tl.load(w + t.to(tl.int64) * J + j, mask=rows, other=0.0).to(tl.float32)
        qs = qs + (query,)  # type: ignore[assignment]  # noqa: RUF005, Triton adds tuples but does not unpack them
        ws = ws + (weight,)  # type: ignore[assignment]  # noqa: RUF005
    return qs, ws


@jit
def load_keys(k, s, L, DI: tl.constexpr, WIDE: tl.constexpr):
    """Keys s of one batch row as columns: [WIDE, S]."""
    i = tl.arange(0, WIDE)
    at = s.to(tl.int64)[None, :] * DI + i[:, None]
    return tl.load(k + at, mask=(s < L)[None, :] & (i < DI)[:, None], other=0.0)


@jit
def score_tile(
    qs, ws, q, w, t, k_IS, L, J: tl.constexpr, DI: tl.constexpr, WIDE: tl.constexpr, N: tl.constexpr, T: tl.constexpr,
    S: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """[T, S] scores in fp32, never NaN, never -0.0, never below LOWEST. N = J heads are held, or none is (N = 0)."""
    total = tl.zeros((T, S), dtype=tl.float32)
    if N > 0:
        for j in tl.static_range(J):
            dots = tl.dot(qs[j], k_IS, input_precision=PRECISION)
            total += tl.maximum(dots, 0.0) * ws[j][:, None]
    else:
        i = tl.arange(0, WIDE)
        mask = (t < L)[:, None] & (i < DI)[None, :]
        for j in range(0, J):
            at = t.to(tl.int64) * J + j
            dots = tl.dot(
                tl.load(q + (at * DI)[:, None] + i[None, :], mask=mask, other=0.0), k_IS, input_precision=PRECISION
            )
            total += tl.maximum(dots, 0.0) * tl.load(w + at, mask=t < L, other=0.0).to(tl.float32)[:, None]
    return tl.maximum(total, LOWEST)  # a sum that starts at +0.0 is never -0.0; the maximum with NaN is the number


def power_of_two(n: int, least: int = 16) -> int:
    """The power of two that holds n, at least the `least` that a matrix product takes."""
    return max(least, int(triton.next_power_of_2(n)))


def precision(x: Tensor) -> str:
    """How Triton multiplies: fp32 inputs exactly, not as TF32; bf16 has one way."""
    return "ieee" if x.dtype == torch.float32 else "tf32"


def held(queries: int, q_BTJI: Tensor) -> int:
    """How many heads' queries a program of so many queries holds: all or none."""
    n_heads, width = q_BTJI.shape[2:]
    taken = queries * n_heads * power_of_two(width) * q_BTJI.element_size()
    return n_heads if n_heads <= 8 and taken <= HELD_BYTES else 0


def fitting(rows: int, limit: int, *widths: int, size: int) -> int:
    """As many rows of a tile, a power of two from 16 up to `rows`, as fit the limit in bytes at these widths."""
    while rows > 16 and rows * sum(map(power_of_two, widths)) * size > limit:
        rows //= 2
    return rows


def check(*tensors: Tensor) -> None:
    """Raise TypeError unless all tensors have one dtype that the kernels take."""
    kinds = {tensor.dtype for tensor in tensors}
    if len(kinds) != 1 or not kinds <= {torch.float32, torch.bfloat16}:
        raise TypeError(f"the sparse kernels take float32 or bfloat16, all inputs alike; got {sorted(map(str, kinds))}")
