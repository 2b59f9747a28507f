"""Logsumexp of scores, streamed: the numbers that turn a score into a probability without its row being there.

    attention  lse[t,h] = log sum_s exp(q[t,h] . k[s] / sqrt(D))      indexer  lse[t] = log sum_s exp(I[t,s])

over all keys that a query may see, or, for the indexer, over a selection. In nats; without gradients.

Legend: B batch, T query (a block of them in kernels), S key (a block), H query heads, G key/value heads, D head width,
J indexer heads, I (DI in code) indexer width, K selected slots, N slots of a block.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsabench.attention.kernels.sparse.attend_kernels import gather, load_slots
from dsabench.attention.kernels.sparse.tiles import fitting, load_keys, power_of_two, precision, score_tile


@triton.jit
def _online(top, mass, score):
    """A block of scores [T, S] goes into each row's maximum and sum of exp(score - maximum)."""
    above = tl.maximum(top, tl.max(score, axis=1))
    finite = tl.where(above == -float("inf"), 0.0, above)
    mass = mass * tl.exp(top - finite) + tl.sum(tl.exp(score - finite[:, None]), axis=1)
    return above, mass


@triton.jit
def _attention(
    q, k, start, lse, L, H, G, scale, D: tl.constexpr, WIDE: tl.constexpr, T: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    batch, h = (tl.program_id(1) // H).to(tl.int64) * L, tl.program_id(1) % H
    t = (tl.num_programs(0) - 1 - tl.program_id(0)) * T + tl.arange(0, T)  # the longest first
    first = tl.load(start + batch + t, mask=t < L, other=L)
    d = tl.arange(0, WIDE)
    at = ((batch + t) * H + h)[:, None] * D + d[None, :]
    q_TD = tl.load(q + at, mask=(t < L)[:, None] & (d < D)[None, :], other=0.0)
    top = tl.full((T,), -float("inf"), dtype=tl.float32)
    mass = tl.zeros((T,), dtype=tl.float32)
    for s0 in range(tl.min(first, axis=0) // T * T, tl.minimum(tl.max(t, axis=0) + 1, L), T):
        s = s0 + tl.arange(0, T)
        key = ((batch + s) * G + h // (H // G))[None, :] * D + d[:, None]
        k_DS = tl.load(k + key, mask=(s < L)[None, :] & (d < D)[:, None], other=0.0)
        score = tl.dot(q_TD, k_DS, input_precision=PRECISION) * scale
        allowed = (s[None, :] <= t[:, None]) & (s[None, :] >= first[:, None])
        top, mass = _online(top, mass, tl.where(allowed, score, -float("inf")))
    tl.store(lse + (batch + t) * H + h, top + tl.log(mass), mask=t < L)


@triton.jit
def _index(
    q, k, w, start, lse, L, J: tl.constexpr, DI: tl.constexpr, WIDE: tl.constexpr, T: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64) * L
    t = (tl.num_programs(0) - 1 - tl.program_id(0)) * T + tl.arange(0, T)
    first = tl.load(start + batch + t, mask=t < L, other=L)
    q_, k_, w_ = q + batch * J * DI, k + batch * DI, w + batch * J
    top = tl.full((T,), -float("inf"), dtype=tl.float32)
    mass = tl.zeros((T,), dtype=tl.float32)
    for s0 in range(tl.min(first, axis=0) // T * T, tl.minimum(tl.max(t, axis=0) + 1, L), T):
        s = s0 + tl.arange(0, T)
        score = score_tile((), (), q_, w_, t, load_keys(k_, s, L, DI, WIDE), L, J, DI, WIDE, 0, T, T, PRECISION)
        allowed = (s[None, :] <= t[:, None]) & (s[None, :] >= first[:, None])
        top, mass = _online(top, mass, tl.where(allowed, score, -float("inf")))
    tl.store(lse + batch + t, top + tl.log(mass), mask=t < L)


@triton.jit
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


@triton.jit
def load_indexer(q, w, row, J: tl.constexpr, DI: tl.constexpr, WIDE: tl.constexpr, M: tl.constexpr):
    """One query's indexer heads, [M, WIDE], and their weights in fp32, [M]; zeros beyond J."""
    m, i = tl.arange(0, M), tl.arange(0, WIDE)
    at = (row * J + m)[:, None] * DI + i[None, :]
    q_MI = tl.load(q + at, mask=(m < J)[:, None] & (i < DI)[None, :], other=0.0)
    return q_MI, tl.load(w + row * J + m, mask=m < J, other=0.0).to(tl.float32)


def rows_of(*tensors: Tensor) -> int:
    """Queries, and keys, of a tile of the streaming kernels."""
    # Products in fp32 are unrolled multiplications: a larger tile takes minutes to compile and does not fit registers.
    most = 64 if tensors[0].dtype == torch.bfloat16 else 32
    return fitting(most, 1 << 15, *(x.shape[-1] for x in tensors), size=tensors[0].element_size())


def attention_lse(q_BTHD: Tensor, k_BSGD: Tensor, start_BT: Tensor) -> Tensor:
    """(B, T, H) over the keys from start[t] to t."""
    q_BTHD, k_BSGD = q_BTHD.contiguous(), k_BSGD.contiguous()
    n_batch, length, n_heads, width = q_BTHD.shape
    lse_BTH = torch.empty(n_batch, length, n_heads, dtype=torch.float32, device=q_BTHD.device)
    block = rows_of(q_BTHD)
    _attention[(triton.cdiv(length, block), n_batch * n_heads)](
        q_BTHD, k_BSGD, start_BT, lse_BTH, length, n_heads, k_BSGD.shape[2], width**-0.5, D=width,
        WIDE=power_of_two(width), T=block, PRECISION=precision(q_BTHD),
    )  # fmt: skip
    return lse_BTH


def index_lse(q_BTJI: Tensor, k_BSI: Tensor, w_BTJ: Tensor, start_BT: Tensor) -> Tensor:
    """(B, T) over the keys from start[t] to t."""
    q_BTJI, k_BSI, w_BTJ = q_BTJI.contiguous(), k_BSI.contiguous(), w_BTJ.contiguous()
    n_batch, length, n_heads, width = q_BTJI.shape
    lse_BT = torch.empty(n_batch, length, dtype=torch.float32, device=q_BTJI.device)
    block = rows_of(k_BSI)
    _index[(triton.cdiv(length, block), n_batch)](
        q_BTJI, k_BSI, w_BTJ, start_BT, lse_BT, length, J=n_heads, DI=width, WIDE=power_of_two(width), T=block,
        PRECISION=precision(q_BTJI),
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
