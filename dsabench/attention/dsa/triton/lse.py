"""Logsumexp of scores, streamed: the numbers that turn a score into a probability without its row being there.

    attention  lse[t,h] = log sum_s exp(q[t,h] . k[s] / sqrt(D))      indexer  lse[t] = log sum_s exp(I[t,s])

over all keys that a query may see, or, for the indexer, over a selection. In nats; without gradients.

Time on the H100 over all keys at L = 65,536 (predicted, in ms). Attention, H = 16, D = 64: 3.4e10 exponentials at 16 a
clock and SM, 10, which is more than the products (4.4 TFLOP, 9 at 500 TFLOP/s) and 6 instructions a score (7) that run
beside them where four programs share an SM: 13; 13.4 measured (D = 128: 18.9). Indexer, J = 4, I = 64: 1.1 TFLOP and 25
instructions a pair, 3; 2.6 measured.

Legend: B batch, T query (a block of them in kernels), S key (a block), H query heads, G key/value heads, D head width,
J indexer heads, I (DI in code) indexer width, K selected slots, N slots of a block.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from dsabench.attention.dsa.triton.attend_kernels import LOG2E, gather, load_slots
from dsabench.attention.dsa.triton.tiles import (
    fitting,
    held,
    load_heads,
    load_keys,
    power_of_two,
    precision,
    score_tile,
)
from dsabench.ops.availability import on_gpu
from dsabench.ops.triton.jit import jit
from dsabench.ops.triton.least import LEAST

UNSEEN = tl.constexpr(-1.0e37)
"""A row's maximum before its first key. Keys that are not allowed score 10 times that: their powers are 0, not NaN."""


@jit
def exp2(x, FAST: tl.constexpr):
    """2^x. FAST: denormals become 0.

    Exponentials are what the streaming kernels wait for: 16 a clock and SM. Triton's own keeps denormals, which takes
    three more instructions each, as many as are needed besides.
    """
    if FAST:
        y = tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    else:
        y = tl.exp2(x)
    return y


@jit
def _online(top, mass, score):
    """A block of scores [T, S] goes into each row's maximum and sum of exp(score - maximum)."""
    above = tl.maximum(top, tl.max(score, axis=1))
    finite = tl.where(above == -float("inf"), 0.0, above)
    mass = mass * tl.exp(top - finite) + tl.sum(tl.exp(score - finite[:, None]), axis=1)
    return above, mass


@jit
def log2(x, FAST: tl.constexpr):
    """The logarithm to base 2 of what is no denormal. Triton's own is a polynomial of 20 instructions."""
    if FAST:
        y = tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    else:
        y = tl.log2(x)
    return y


@jit
def last_keys(last, t, LIMIT: tl.constexpr):
    """The last key that each query may see: itself, unless there is a limit. One before its first key: it sees none."""
    if LIMIT:
        end = tl.load(last + t)
    else:
        end = t
    return end


@jit
def _add_tile(top, mass, score, s0, s, end, first, inner, outer, scale, S: tl.constexpr, FAST: tl.constexpr):
    """A tile of scores goes into each row's maximum and sum of 2^(scale (score - maximum))."""
    if (s0 < inner) | (s0 + S > outer):  # few tiles; the others need no mask
        allowed = (s[None, :] <= end[:, None]) & (s[None, :] >= first[:, None])
        score = tl.where(allowed, score, 10 * UNSEEN)
    above = tl.maximum(top, tl.max(score, axis=1))
    mass *= tl.exp2((top - above) * scale)
    return above, mass + tl.sum(exp2(score * scale - (above * scale)[:, None], FAST), axis=1)


@jit
def _attention(
    q, k, start, last, lse, L, H, G, scale, D: tl.constexpr, T: tl.constexpr, S: tl.constexpr,
    PRECISION: tl.constexpr, FAST: tl.constexpr, LIMIT: tl.constexpr,
):  # fmt: skip
    batch, h = (tl.program_id(1) // H).to(tl.int64) * L, tl.program_id(1) % H
    t0 = (tl.num_programs(0) - 1 - tl.program_id(0)) * T  # the longest first
    t = tl.minimum(t0 + tl.arange(0, T), L - 1)  # beyond the last row the last row again: no masks
    d = tl.arange(0, D)
    first = tl.load(start + batch + t)
    end = last_keys(last + batch, t, LIMIT)
    q_TD = tl.load(q + ((batch + t) * H + h)[:, None] * D + d[None, :])
    k += (batch * G + h // (H // G)) * D
    top = tl.full((T,), UNSEEN, dtype=tl.float32)
    mass = tl.zeros((T,), dtype=tl.float32)
    inner, outer = tl.max(first, axis=0), tl.min(end, axis=0) + 1  # every row may see these keys
    for s0 in range(tl.min(first, axis=0) // S * S, tl.max(end, axis=0) + 1, S):
        s = s0 + tl.arange(0, S)
        k_DS = tl.load(k + tl.minimum(s, L - 1).to(tl.int64)[None, :] * (G * D) + d[:, None])
        score = tl.dot(q_TD, k_DS, input_precision=PRECISION)
        top, mass = _add_tile(top, mass, score, s0, s, end, first, inner, outer, scale * LOG2E, S, FAST)
    tl.store(lse + (batch + t) * H + h, top * scale + tl.log2(tl.maximum(mass, LEAST)) / LOG2E)


@jit
def _index(
    q, k, w, start, last, lse, L, J: tl.constexpr, DI: tl.constexpr, WIDE: tl.constexpr, N: tl.constexpr,
    T: tl.constexpr, S: tl.constexpr, PRECISION: tl.constexpr, FAST: tl.constexpr, LIMIT: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64) * L
    t0 = (tl.num_programs(0) - 1 - tl.program_id(0)) * T
    t = tl.minimum(t0 + tl.arange(0, T), L - 1)
    first = tl.load(start + batch + t)
    end = last_keys(last + batch, t, LIMIT)
    q_, k_, w_ = q + batch * J * DI, k + batch * DI, w + batch * J
    qs, ws = load_heads(q_, w_, t, L, J, DI, WIDE, N)
    top = tl.full((T,), UNSEEN, dtype=tl.float32)
    mass = tl.zeros((T,), dtype=tl.float32)
    inner, outer = tl.max(first, axis=0), tl.min(end, axis=0) + 1
    for s0 in range(tl.min(first, axis=0) // S * S, tl.max(end, axis=0) + 1, S):
        s = s0 + tl.arange(0, S)
        k_IS = load_keys(k_, s, L, DI, WIDE)
        score = score_tile(qs, ws, q_, w_, t, k_IS, L, J, DI, WIDE, N, T, S, PRECISION)
        top, mass = _add_tile(top, mass, score, s0, s, end, first, inner, outer, LOG2E, S, FAST)
    tl.store(lse + batch + t, top + tl.log2(tl.maximum(mass, LEAST)) / LOG2E)


@jit
def _selected(
    q, k, w, selected, lse, T, K, J: tl.constexpr, DI: tl.constexpr, WIDE: tl.constexpr, M: tl.constexpr,
    N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    q_MI, w_M = load_indexer(q, w, row, J, DI, WIDE, M)
    k += row // T * T * DI
    top = tl.full((1,), -float("inf"), dtype=tl.float32)
    mass = tl.zeros((1,), dtype=tl.float32)
    for n0 in range(0, K, N):
        s, keep = load_slots(selected + row * K, n0 + tl.arange(0, N), tl.program_id(0) % T, K)
        dots = tl.dot(q_MI, tl.trans(gather(k, s, keep, DI, DI, WIDE)), input_precision=PRECISION)
        score = tl.sum(tl.maximum(dots, 0.0) * w_M[:, None], axis=0)
        top, mass = _online(top, mass, tl.where(keep, score, -float("inf"))[None, :])
    tl.store(lse + row + tl.arange(0, 1), top + tl.log(mass))


@jit
def load_indexer(q, w, row, J: tl.constexpr, DI: tl.constexpr, WIDE: tl.constexpr, M: tl.constexpr):
    """One query's indexer heads, [M, WIDE], and their weights in fp32, [M]; zeros beyond J."""
    m, i = tl.arange(0, M), tl.arange(0, WIDE)
    at = (row * J + m)[:, None] * DI + i[None, :]
    q_MI = tl.load(q + at, mask=(m < J)[:, None] & (i < DI)[None, :], other=0.0)
    return q_MI, tl.load(w + row * J + m, mask=m < J, other=0.0).to(tl.float32)


class Tiling(NamedTuple):
    """How a pass over all keys is cut: results do not depend on it, but for rounding."""

    queries: int = 128
    keys: int = 64
    warps: int = 8
    stages: int = 3
    registers: int | None = None
    """Most registers of a thread: fewer let more programs share an SM."""

    @classmethod
    def of(cls, *tensors: Tensor) -> Tiling:
        """One that fits the widths of these tensors."""
        if tensors[0].dtype == torch.bfloat16 and max(x.shape[-1] for x in tensors) <= 128:
            return cls(registers=128)
        rows = rows_of(*tensors)
        return cls(rows, rows, warps=4, stages=2)


def rows_of(*tensors: Tensor) -> int:
    """Queries, and keys, of a small tile of the streaming kernels."""
    # Products in fp32 are unrolled multiplications: a larger tile takes minutes to compile and does not fit registers.
    most = 64 if tensors[0].dtype == torch.bfloat16 else 32
    return fitting(most, 1 << 15, *(x.shape[-1] for x in tensors), size=tensors[0].element_size())


def fast(x: Tensor) -> bool:
    """Whether exponentials are the approximate ones: not beside exact products, nor in Triton's interpreter."""
    return x.dtype == torch.bfloat16 and on_gpu(x.device)


def padded(x: Tensor) -> Tensor:
    """Contiguous, with zeros up to a width that is a power of two: x itself for the usual widths."""
    return functional.pad(x, (0, power_of_two(x.shape[-1]) - x.shape[-1])).contiguous()


def attention_lse(
    q_BTHD: Tensor, k_BSGD: Tensor, start_BT: Tensor, tiling: Tiling | None = None, last_BT: Tensor | None = None
) -> Tensor:
    """(B, T, H) over the keys from start[t] to t, or to last[t] <= t, int32; below -1e35 where that is
    start[t] - 1."""
    tiling = tiling or Tiling.of(q_BTHD)
    n_batch, length, n_heads, width = q_BTHD.shape
    q_BTHD, k_BSGD = padded(q_BTHD), padded(k_BSGD)
    lse_BTH = torch.empty(n_batch, length, n_heads, dtype=torch.float32, device=q_BTHD.device)
    _attention[(triton.cdiv(length, tiling.queries), n_batch * n_heads)](
        q_BTHD, k_BSGD, start_BT, start_BT if last_BT is None else last_BT, lse_BTH, length, n_heads, k_BSGD.shape[2],
        width**-0.5, D=q_BTHD.shape[3], T=tiling.queries, S=tiling.keys, PRECISION=precision(q_BTHD),
        FAST=fast(q_BTHD), LIMIT=last_BT is not None,
        num_warps=tiling.warps, num_stages=tiling.stages, maxnreg=tiling.registers,
    )  # fmt: skip
    return lse_BTH


def index_lse(
    q_BTJI: Tensor, k_BSI: Tensor, w_BTJ: Tensor, start_BT: Tensor, tiling: Tiling | None = None,
    last_BT: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """(B, T) over the keys of `attention_lse`."""
    tiling = tiling or Tiling.of(k_BSI)
    q_BTJI, k_BSI, w_BTJ = q_BTJI.contiguous(), k_BSI.contiguous(), w_BTJ.contiguous()
    n_batch, length, n_heads, width = q_BTJI.shape
    lse_BT = torch.empty(n_batch, length, dtype=torch.float32, device=q_BTJI.device)
    _index[(triton.cdiv(length, tiling.queries), n_batch)](
        q_BTJI, k_BSI, w_BTJ, start_BT, start_BT if last_BT is None else last_BT, lse_BT, length, J=n_heads, DI=width,
        WIDE=power_of_two(width), LIMIT=last_BT is not None,
        N=held(tiling.queries, q_BTJI) if q_BTJI.dtype == torch.bfloat16 else 0, T=tiling.queries, S=tiling.keys,
        PRECISION=precision(q_BTJI), FAST=fast(q_BTJI), num_warps=tiling.warps,
        num_stages=tiling.stages, maxnreg=tiling.registers,
    )  # fmt: skip
    return lse_BT


def selected_lse(q_BTJI: Tensor, k_BSI: Tensor, w_BTJ: Tensor, selected_BTK: Tensor) -> Tensor:
    """(B, T) over a selection, int32, -1 where empty; top_k returns the same for its own."""
    q_BTJI, k_BSI, w_BTJ = q_BTJI.contiguous(), k_BSI.contiguous(), w_BTJ.contiguous()
    n_batch, length, n_heads, width = q_BTJI.shape
    lse_BT = torch.empty(n_batch, length, dtype=torch.float32, device=q_BTJI.device)
    block = fitting(64, 1 << 14, width, size=k_BSI.element_size())
    _selected[(n_batch * length,)](
        q_BTJI, k_BSI, w_BTJ, selected_BTK.contiguous(), lse_BT, length, selected_BTK.shape[2], J=n_heads, DI=width,
        WIDE=power_of_two(width), M=power_of_two(n_heads), N=block, PRECISION=precision(q_BTJI),
    )  # fmt: skip
    return lse_BT
