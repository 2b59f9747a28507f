"""The router of a mixture of experts, fused: logits, top-k, gates and statistics; two launches each way.

    l = x W^T        p = softmax(l)        S[n] = the K largest of l[n], ties to the lowest index
    gate = softmax of l over S; p itself for K = 1
    load_e = share of routes        balance = E sum_e load_e mean_n p[n, e]

Logits are fp32 products with fp32 sums: a rounding decides which expert a token goes to. Sums over tokens are partial
sums of blocks, added in a fixed order.

Legend: N tokens, D model width, E experts, K experts a token, P blocks or programs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsabench.ops.triton.jit import jit
from dsabench.ops.triton.least import LEAST

MOST_EXPERTS = 64
"""Largest E of the fused version: a program holds the logits of its tokens for all experts."""

_TOKENS = 32
"""Tokens of a block."""

_WIDE = 64
"""Columns of x at a time."""

_PROGRAMS = 64
"""Rows of programs of the backward pass, each with a partial sum of the weight's gradient."""


@jit
def _softmaxes(logits, chosen, real, K: tl.constexpr):
    """(p, gate): softmax over the real experts, and over the chosen ones (K = 1: p of the chosen one)."""
    top = tl.max(tl.where(real[None, :], tl.where(logits == logits, logits, float("inf")), -float("inf")), axis=1)
    e = tl.where(real[None, :], tl.exp(logits - top[:, None]), 0.0)
    p = e / tl.sum(e, axis=1)[:, None]
    gate = tl.where(chosen, p, 0.0)
    if K > 1:
        gate = tl.where(chosen, e, 0.0)
        gate = gate / tl.sum(gate, axis=1)[:, None]
    return p, gate


@jit
def _forward(
    x, w, logits_out, expert, weight, sums, entropies, N, D, E, K: tl.constexpr, DENSE: tl.constexpr, R: tl.constexpr,
    WIDE_E: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A program is R tokens. weight is (N, E) when DENSE, else (N, K)."""
    block = tl.program_id(0)
    n = block.to(tl.int64) * R + tl.arange(0, R)
    e = tl.arange(0, WIDE_E)
    real = e < E
    live = (n < N)[:, None] & real[None, :]
    logits = tl.zeros((R, WIDE_E), dtype=tl.float32)
    for start in range(0, D, WIDE):
        d = start + tl.arange(0, WIDE)
        keep = (n < N)[:, None] & (d < D)[None, :]
        x_tile = tl.load(x + n[:, None] * D + d[None, :], mask=keep, other=0.0).to(tl.float32)
        keep = (d < D)[:, None] & real[None, :]
        w_tile = tl.load(w + e[None, :] * D + d[:, None], mask=keep, other=0.0).to(tl.float32)
        logits = tl.dot(x_tile, w_tile, logits, input_precision="ieee")
    at = n[:, None] * E + e[None, :]
    tl.store(logits_out + at, logits, mask=live)
    # NaN counts as largest, as in torch.topk: a run that diverges shows it.
    order = tl.where(real[None, :], tl.where(logits == logits, logits, float("inf")), -float("inf"))
    rank = tl.full((R, WIDE_E), K, dtype=tl.int32)
    for k in range(0, K):
        free = (rank == K) & real[None, :]
        best = tl.max(tl.where(free, order, -float("inf")), axis=1)
        first = tl.min(tl.where(free & (order == best[:, None]), e[None, :], WIDE_E), axis=1)
        tl.store(expert + n * K + k, first.to(tl.int64), mask=n < N)
        rank = tl.where(e[None, :] == first[:, None], k, rank)
    p, gate = _softmaxes(logits, rank < K, real, K)
    if DENSE:
        tl.store(weight + at, gate, mask=live)
    else:
        for k in range(0, K):
            tl.store(weight + n * K + k, tl.sum(tl.where(rank == k, gate, 0.0), axis=1), mask=n < N)
    out = sums + block * 2 * WIDE_E + e
    tl.store(out, tl.sum(tl.where(live & (rank < K), 1.0, 0.0), axis=0))
    tl.store(out + WIDE_E, tl.sum(tl.where(live, p, 0.0), axis=0))
    entropy = tl.where(live, -p * tl.log(tl.maximum(p, LEAST)), 0.0)
    tl.store(entropies + block, tl.sum(tl.sum(entropy, axis=1), axis=0))


# Whatever batch: its sizes are a divisor and the end of a loop.
@jit(do_not_specialize=["N", "blocks"])
def _statistics(
    sums,
    entropies,
    load,
    p_mean,
    balance,
    entropy,
    N,
    E,
    blocks,
    K: tl.constexpr,
    WIDE_E: tl.constexpr,
    B: tl.constexpr,
):
    """One program: the blocks' sums together."""
    e = tl.arange(0, WIDE_E)
    count = tl.zeros((WIDE_E,), dtype=tl.float32)
    mass = tl.zeros((WIDE_E,), dtype=tl.float32)
    nats = tl.zeros((B,), dtype=tl.float32)
    for start in range(0, blocks, B):
        block = start + tl.arange(0, B)
        keep = block < blocks
        at = sums + block[:, None] * (2 * WIDE_E) + e[None, :]
        count += tl.sum(tl.load(at, mask=keep[:, None], other=0.0), axis=0)
        mass += tl.sum(tl.load(at + WIDE_E, mask=keep[:, None], other=0.0), axis=0)
        nats += tl.load(entropies + block, mask=keep, other=0.0)
    share = count / (N * K)
    tl.store(load + e, share, mask=e < E)
    tl.store(p_mean + e, mass / N, mask=e < E)
    tl.store(balance, E * tl.sum(share * mass, axis=0) / N)
    tl.store(entropy, tl.sum(nats, axis=0) / N)


# One number, which is any layer's of several that lie side by side.
@jit(do_not_specialize_on_alignment=["d_balance"])
def _backward(
    d_weight, d_balance, logits, expert, load, x, w, dx, dw, N, D, E, HAS_WEIGHT: tl.constexpr,
    HAS_BALANCE: tl.constexpr, K: tl.constexpr, DENSE: tl.constexpr, R: tl.constexpr, WIDE_E: tl.constexpr,
    WIDE: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """A program is WIDE columns of every PROGRAMS-th block of tokens: dx there, and a partial sum of dW."""
    e = tl.arange(0, WIDE_E)
    real = e < E
    d = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    matrix = real[:, None] & (d < D)[None, :]
    w_tile = tl.load(w + e[:, None] * D + d[None, :], mask=matrix, other=0.0).to(tl.float32)
    toward = tl.zeros((WIDE_E,), dtype=tl.float32)
    if HAS_BALANCE:
        toward += tl.load(load + e, mask=real, other=0.0) * (tl.load(d_balance).to(tl.float32) * E / N)
    total = tl.zeros((WIDE_E, WIDE), dtype=tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(N, R), PROGRAMS):
        n = block * R + tl.arange(0, R).to(tl.int64)
        live = (n < N)[:, None] & real[None, :]
        at = n[:, None] * E + e[None, :]
        logit = tl.load(logits + at, mask=live, other=0.0)
        rank = tl.full((R, WIDE_E), K, dtype=tl.int32)
        grad = tl.zeros((R, WIDE_E), dtype=tl.float32)
        for k in range(0, K):
            hit = e[None, :] == tl.load(expert + n * K + k, mask=n < N, other=0)[:, None]
            rank = tl.where(hit, k, rank)
            if HAS_WEIGHT and not DENSE:
                grad = tl.where(hit, tl.load(d_weight + n * K + k, mask=n < N, other=0.0)[:, None], grad)
        if HAS_WEIGHT and DENSE:
            grad = tl.load(d_weight + at, mask=live & (rank < K), other=0.0)
        p, gate = _softmaxes(logit, rank < K, real, K)
        d_p = tl.zeros((R, WIDE_E), dtype=tl.float32) + toward[None, :]
        if K == 1:
            d_p += grad
        d_logit = p * (d_p - tl.sum(p * d_p, axis=1)[:, None])
        if K > 1:
            d_logit += gate * (grad - tl.sum(gate * grad, axis=1)[:, None])
        tile = n[:, None] * D + d[None, :]
        keep = (n < N)[:, None] & (d < D)[None, :]
        x_tile = tl.load(x + tile, mask=keep, other=0.0).to(tl.float32)
        tl.store(dx + tile, tl.dot(d_logit, w_tile, input_precision="ieee").to(dx.dtype.element_ty), mask=keep)
        total = tl.dot(tl.trans(d_logit), x_tile, total, input_precision="ieee")
    tl.store(dw + tl.program_id(0) * E * D + e[:, None] * D + d[None, :], total, mask=matrix)


class Route(torch.autograd.Function):
    """(x (N, D), W (E, D)) -> weight (N, E), 0 where not chosen, or (N, K); experts (N, K) int64, highest logit first;
    balance loss; load (E,); mean entropy in nats. All fp32; weight and balance loss have gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        w_ED: Tensor,
        k: int,
        dense: bool,
        mean_load: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        """`dense` asks for the weight as (N, E); mean_load as in `ops.route`."""
        x_ND, w_ED = x_ND.contiguous(), w_ED.contiguous()
        (count, width), n_experts = x_ND.shape, len(w_ED)
        blocks, wide = triton.cdiv(count, _TOKENS), max(16, triton.next_power_of_2(n_experts))

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=x_ND.device)

        logits_NE, weight = empty(count, n_experts), empty(count, n_experts if dense else k)
        expert_NK = empty(count, k, dtype=torch.int64)
        sums, entropies_P = empty(blocks, 2, wide), empty(blocks)
        load_E, p_E, balance, entropy = empty(n_experts), empty(n_experts), empty(), empty()
        _forward[(blocks,)](
            x_ND, w_ED, logits_NE, expert_NK, weight, sums, entropies_P, count, width, n_experts, K=k, DENSE=dense,
            R=_TOKENS, WIDE_E=wide, WIDE=_WIDE,
        )  # fmt: skip
        _statistics[(1,)](
            sums, entropies_P, load_E, p_E, balance, entropy, count, n_experts, blocks, K=k, WIDE_E=wide, B=64
        )  # fmt: skip
        if mean_load is not None:
            load_E = mean_load(load_E)
            balance = n_experts * (load_E * p_E).sum()
        ctx.save_for_backward(x_ND, w_ED, logits_NE, expert_NK, load_E)
        ctx.dense = dense
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(expert_NK, load_E, entropy)
        return weight, expert_NK, balance, load_E, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        """Gradients of x and W, in their dtypes."""
        d_weight, d_balance = grads[0], grads[2]
        if d_weight is None and d_balance is None:
            return None, None, None, None, None
        x_ND, w_ED, logits_NE, expert_NK, load_E = ctx.saved_tensors
        (count, width), n_experts = x_ND.shape, len(w_ED)
        dx_ND = torch.empty_like(x_ND)
        dw_PED = torch.empty(_PROGRAMS, n_experts, width, dtype=torch.float32, device=x_ND.device)
        _backward[(_PROGRAMS, triton.cdiv(width, _WIDE))](
            logits_NE if d_weight is None else d_weight.contiguous(), load_E if d_balance is None else d_balance,
            logits_NE, expert_NK, load_E, x_ND, w_ED, dx_ND, dw_PED, count, width, n_experts,
            HAS_WEIGHT=d_weight is not None, HAS_BALANCE=d_balance is not None, K=expert_NK.shape[1], DENSE=ctx.dense,
            R=_TOKENS, WIDE_E=max(16, triton.next_power_of_2(n_experts)), WIDE=_WIDE, PROGRAMS=_PROGRAMS,
        )  # fmt: skip
        return dx_ND, dw_PED.sum(0).to(w_ED.dtype), None, None, None
