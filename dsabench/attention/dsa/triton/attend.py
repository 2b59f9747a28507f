"""Attention over selected keys, forward and backward, at a cost of n keys a query.

    out[t] = softmax(Q[t] K[S[t]]^T / sqrt(D)) V[S[t]]         a slot that is -1 or beyond t takes part in nothing

A program is one query with up to 64 of the heads that share a KV head: it gathers blocks of the query's keys and values
once for all of them, with an online softmax forward and P recomputed from the logsumexp backward. dK and dV are summed
by atomics into fp32 buffers, or in fixed point where bits must repeat (see `accumulate`).

Time on the H100 at L = 65,536, k = 2048, H = 16, G = 1 (n = 2016 keys a query; ms), one query a program. Gathers of
256 bytes a slot at D = 64, 34 GB: 4.4 at the 7.7 TB/s that a kernel of gathers alone reaches. fp32 atomics of 512 bytes
a slot, 68 GB: 20.7 at the 3.3 TB/s that a kernel of atomics alone reaches (four floats an instruction; the L2 is the
limit, not the SMs). Products: 0.54 TFLOP forward, on mma tiles of 16 rows, beside them. Measured: forward 4.3
(D = 128: 9.4), backward 22.3 (45). Of random selections these bytes are the floor; neighbours that select the same keys
share them (`unions`, `attend_groups`).
Where K, V, dK and dV outgrow the L2, atomics alone fall to 1.8 TB/s (78 at D = 128): rows of ascending indices let the
backward pass take the keys range by range (60 without, 45 with ranges).
The H200 wants other tilings of the backward pass than the H100. At L = 65,536 and 131,072, random selections, D = 64:
24.8 and 49.5 by 32 slots, 2 warps and 2 stages in ranges of keys; 19.6 and 39.0 by one warp with 3 stages, atomics at
3.5 TB/s (without ranges 19.5, but 50.5). D = 128: 43.0 and 87.6 before, 39.3 and 80.4 by 16 slots, one warp
and 3 stages (without ranges 44.7 and 128). By 2 warps and 3 stages 21.5, 43.7; D = 128 39.5, 82.5.
What did not help the backward pass: slots instead of heads as rows of the products, as `kl` has them (23.1; D = 128:
48); blocks of 64 or 128 slots, 4 or 8 warps (23 to 37).

Latents (v = None), whose first part is the value: a key is gathered once and both its gradients are one sum. It is
held in two parts, so that 64 + 16 and 128 + 64 numbers need no padding, where one tile of 80 would be 128 wide.
Predicted at L = 65,536, k = 2048, H = 16, 64 + 16 (in brackets keys of 80 and values as wide, as these kernels take
them apart): gathers 160 bytes a slot, 21 GB (42), 2.7 ms (5.5); atomics 320 bytes, 42 GB (85), 12.8 ms (25.6);
products 0.6 TFLOP forward and 1.6 backward, the same but for the padding. Forward 3 to 3.5 (5.5), backward 15 (28);
groups of 4 with unions of 2.2 k: atomics 7.1 (14), products 3.4 TFLOP, 10 at 350 TFLOP/s: backward 11 to 12 (17 to 20).
128 + 64, without groups: atomics 101 GB (203), backward 32 to 40 (65 to 85). Not measured yet. The deployed 512 + 64
would need tiles that do not fit the registers of these programs.

Legend: B batch, T query, S key, H query heads, G key/value heads, D head width, K selected slots, M heads of a program,
N slots of a block.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from dsabench.attention.dsa.backends import WIDEST_HEAD, WIDEST_ROTATED
from dsabench.attention.dsa.triton import accumulate
from dsabench.attention.dsa.triton.attend_groups import backward_group, forward_group
from dsabench.attention.dsa.triton.attend_kernels import attend_backward, attend_forward
from dsabench.attention.dsa.triton.attend_sizes import (
    GROUP,
    Tiling,
    group_backward,
    group_shape,
    key_parts,
    query_backward,
    query_shape,
    ranges,
)
from dsabench.attention.dsa.triton.tiles import check
from dsabench.attention.dsa.triton.unions import Unions, joined, parts

RANGE_BYTES = 32 << 20
"""Of 50 MB of L2: a range's K, V, dK and dV."""


def attend(
    q_BTHD: Tensor, k_BSGD: Tensor, v_BSGD: Tensor | None, selected_BTK: Tensor, deterministic: bool | None = None,
    ascending: bool = False, unions: Unions | None = None, scale: float | None = None, value_width: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out (B, T, H, D) in the inputs' dtype; logsumexp of the scaled scores over the kept slots, (B, T, H), fp32, nats.

    v = None: the first value_width numbers of a key are its value (latents), and out is so wide; keys are then at most
    WIDEST_HEAD + WIDEST_ROTATED wide. scale: what Q K^T is multiplied by; None is D^-1/2.

    selected: int32 or int64, -1 where a slot is empty; indices must differ within a row. One batch row of it serves all
    rows of the batch. A query without any key gives 0, and -inf. `ascending` promises that each row's indices ascend
    and its empty slots come last, as top_k gives them: the backward pass may then go through the keys in ranges that
    fit the cache. `unions` of this selection, as `unions.share` gives them, let neighbouring queries share their work.
    `deterministic` asks for gradients whose bits repeat; None asks PyTorch's setting. The logsumexp has no gradient. D
    from 1 to 256, H a multiple of G; fp32 (multiplied exactly) or bf16 with fp32 sums.
    """
    check(q_BTHD, k_BSGD, k_BSGD if v_BSGD is None else v_BSGD)
    shapes = f"q {tuple(q_BTHD.shape)}, k {tuple(k_BSGD.shape)}"
    value, *rest = key_parts(k_BSGD, value_width or 0)
    if (v_BSGD is None) != bool(rest) or min(value, *rest, 1) < 1 or rest > [WIDEST_ROTATED]:
        takes = f"v, or a value_width that is less than D by 1 to {WIDEST_ROTATED}"
        raise ValueError(f"attend takes {takes}, not value_width = {value_width} for {shapes}")
    if q_BTHD.shape[2] % k_BSGD.shape[2] or value > WIDEST_HEAD or q_BTHD.shape[1] != k_BSGD.shape[1]:
        takes = f"as many keys as queries, H a multiple of G, D (or value_width) up to {WIDEST_HEAD}"
        raise ValueError(f"attend takes {takes}, not {shapes}")
    fixed = accumulate.deterministic(deterministic)
    scale = q_BTHD.shape[-1] ** -0.5 if scale is None else scale
    out_BTHD, lse_BTH = _attend(
        q_BTHD, k_BSGD, v_BSGD, selected_BTK.int(), *parts(unions), fixed, ascending, scale, value_width or 0
    )  # fmt: skip
    return out_BTHD, lse_BTH


@torch.library.custom_op("dsabench::sparse_attend", mutates_args=())
def _attend(
    q_BTHD: Tensor, k_BSGD: Tensor, v_BSGD: Tensor | None, selected_BTK: Tensor, words_UC: Tensor | None,
    sizes_U: Tensor | None, neighbours: int, deterministic: bool, ascending: bool, scale: float, value_width: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    tiling = Tiling().within(1 << 14, k_BSGD, *key_parts(k_BSGD, value_width))
    if k_BSGD.dtype == torch.bfloat16 and k_BSGD.shape[-1] <= 64 and q_BTHD.shape[2] <= 16 * k_BSGD.shape[2]:
        tiling = tiling._replace(warps=1)  # its sums fit one warp's registers, and nothing waits for another warp
    unions = joined(words_UC, sizes_U, neighbours)
    return forward(q_BTHD, k_BSGD, v_BSGD, selected_BTK, tiling, unions, GROUP, scale, value_width)


@_attend.register_fake
def _(
    q_BTHD: Tensor, k_BSGD: Tensor, v_BSGD: Tensor | None, selected_BTK: Tensor, words_UC: Tensor | None,
    sizes_U: Tensor | None, neighbours: int, deterministic: bool, ascending: bool, scale: float, value_width: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    out_BTHD = q_BTHD.new_empty(*q_BTHD.shape[:3], value_width or q_BTHD.shape[3])
    return out_BTHD, q_BTHD.new_empty(q_BTHD.shape[:3], dtype=torch.float32)


@torch.library.custom_op("dsabench::sparse_attend_backward", mutates_args=())
def _attend_backward(
    q_BTHD: Tensor, k_BSGD: Tensor, v_BSGD: Tensor | None, selected_BTK: Tensor, words_UC: Tensor | None,
    sizes_U: Tensor | None, out_BTHD: Tensor, lse_BTH: Tensor, d_out_BTHD: Tensor, neighbours: int,
    deterministic: bool, ascending: bool, scale: float, value_width: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    tiling = query_backward(q_BTHD, k_BSGD, value_width, deterministic)
    if ascending:
        tiling = tiling._replace(range_bytes=RANGE_BYTES)
    unions = joined(words_UC, sizes_U, neighbours)
    return backward(
        q_BTHD, k_BSGD, v_BSGD, selected_BTK, out_BTHD, lse_BTH, d_out_BTHD, deterministic, tiling, unions, None, scale,
        value_width,
    )  # fmt: skip


@_attend_backward.register_fake
def _(
    q_BTHD: Tensor, k_BSGD: Tensor, v_BSGD: Tensor | None, selected_BTK: Tensor, words_UC: Tensor | None,
    sizes_U: Tensor | None, out_BTHD: Tensor, lse_BTH: Tensor, d_out_BTHD: Tensor, neighbours: int,
    deterministic: bool, ascending: bool, scale: float, value_width: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    d_v = k_BSGD.new_empty(0 if v_BSGD is None else v_BSGD.shape)
    return q_BTHD.new_empty(q_BTHD.shape), k_BSGD.new_empty(k_BSGD.shape), d_v


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.neighbours, ctx.deterministic, ctx.ascending, ctx.scale, ctx.value_width = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, d_out_BTHD: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if d_out_BTHD is None:
        return (None,) * 11
    modes = (ctx.neighbours, ctx.deterministic, ctx.ascending, ctx.scale, ctx.value_width)
    d_q, d_k, d_v = _attend_backward(*ctx.saved_tensors, d_out_BTHD, *modes)
    return d_q, d_k, None if ctx.value_width else d_v, *(None,) * 8


_attend.register_autograd(_gradients, setup_context=_setup)


def forward(
    q_BTHD: Tensor, k_BSGD: Tensor, v_BSGD: Tensor | None, selected_BTK: Tensor, tiling: Tiling,
    unions: Unions | None = None, group_tiling: Tiling = GROUP, scale: float | None = None, value_width: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`attend` without gradients, by a tiling of choice, and groups of queries by another."""
    q_BTHD, k_BSGD = q_BTHD.contiguous(), k_BSGD.contiguous()
    v_BSGD = None if v_BSGD is None else v_BSGD.contiguous()
    n_batch, length, n_heads, width = q_BTHD.shape
    groups, slots = k_BSGD.shape[2], selected_BTK.shape[2]
    scale = width**-0.5 if scale is None else scale
    out_BTHD = torch.empty(*q_BTHD.shape[:3], value_width or width, dtype=q_BTHD.dtype, device=q_BTHD.device)
    lse_BTH = torch.empty(n_batch, length, n_heads, dtype=torch.float32, device=q_BTHD.device)
    blocks, shape = query_shape(q_BTHD, k_BSGD, value_width)
    queries, sizes = (unions.queries, unions.sizes_U) if unions else (0, None)
    attend_forward[(n_batch * length * groups * blocks,)](
        q_BTHD, k_BSGD, v_BSGD, selected_BTK.contiguous(), sizes, out_BTHD, lse_BTH, length, n_heads, groups, slots,
        len(selected_BTK) * length, blocks, scale, N=tiling.slots, Q=queries, num_warps=tiling.warps,
        num_stages=tiling.stages, **shape,
    )  # fmt: skip
    if unions:
        units, words = unions.words_UC.shape
        units_a_row = triton.cdiv(length, queries)
        forward_group[(n_batch * units_a_row * groups,)](
            q_BTHD, k_BSGD, v_BSGD, unions.words_UC, sizes, out_BTHD, lse_BTH, length, n_heads, groups, words, units,
            units_a_row, scale, **group_tiling.options(), **group_shape(q_BTHD, k_BSGD, unions, value_width),
        )  # fmt: skip
    return out_BTHD, lse_BTH


def backward(
    q_BTHD: Tensor, k_BSGD: Tensor, v_BSGD: Tensor | None, selected_BTK: Tensor, out_BTHD: Tensor, lse_BTH: Tensor,
    d_out_BTHD: Tensor, deterministic: bool, tiling: Tiling, unions: Unions | None = None,
    group_tiling: Tiling | None = None, scale: float | None = None, value_width: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v in their dtypes, by a tiling of choice, and of groups of queries by another; nothing for
    v where it is a part of k."""
    q_BTHD, k_BSGD, d_out_BTHD = (x.contiguous() for x in (q_BTHD, k_BSGD, d_out_BTHD))
    v_BSGD = None if v_BSGD is None else v_BSGD.contiguous()
    n_batch, length, n_heads, width = q_BTHD.shape
    groups, slots = k_BSGD.shape[2], selected_BTK.shape[2]
    group_tiling = group_tiling or group_backward(width, deterministic)
    scale = width**-0.5 if scale is None else scale
    tensors = 1 if v_BSGD is None else 2
    cuts, group_cuts = (ranges(k_BSGD, tensors, cut.range_bytes) for cut in (tiling, group_tiling))
    # Of several ranges each adds to dQ, in fp32; one writes it once.
    summed = len(cuts) > 1 or (unions is not None and len(group_cuts) > 1)
    d_q_BTHD = torch.zeros_like(q_BTHD, dtype=torch.float32) if summed else torch.empty_like(q_BTHD)
    d_k = accumulate.zeros(tuple(k_BSGD.shape), k_BSGD, deterministic)
    d_v = None if v_BSGD is None else accumulate.zeros(tuple(k_BSGD.shape), k_BSGD, deterministic)
    scale_k = scale_v = None
    if deterministic:
        # |P| <= 1 and |dP| <= D max|dO| max|V|: what no contribution of a head can exceed, nor their sum. dO . O has O,
        # which exceeds V where this attention is a part of a larger one.
        most, together = d_out_BTHD.abs().amax().double(), length * n_heads // groups
        value_BSGD = k_BSGD if v_BSGD is None else v_BSGD
        d_score = 2 * most * torch.maximum(value_BSGD.abs().amax(), out_BTHD.abs().amax()) * width
        most_k = d_score * q_BTHD.abs().amax()
        scale_v = None if v_BSGD is None else accumulate.scale_for(most, together)
        scale_k = accumulate.scale_for(most_k * scale + most if v_BSGD is None else most_k, together)
    blocks, shape = query_shape(q_BTHD, k_BSGD, value_width)
    queries, sizes = (unions.queries, unions.sizes_U) if unions else (0, None)
    rest = (out_BTHD.contiguous(), lse_BTH, d_out_BTHD, d_q_BTHD, d_k, d_v, scale_k, scale_v, length, n_heads, groups)
    for first, last in cuts:
        attend_backward[(n_batch * length * groups * blocks,)](
            q_BTHD, k_BSGD, v_BSGD, selected_BTK.contiguous(), sizes, *rest, slots, len(selected_BTK) * length, blocks,
            scale, first, last, N=tiling.slots, Q=queries, FIXED=deterministic, RANGED=len(cuts) > 1,
            num_warps=tiling.warps, num_stages=tiling.stages, **shape,
        )  # fmt: skip
    if unions:
        units, words = unions.words_UC.shape
        units_a_row = triton.cdiv(length, queries)
        for first, last in group_cuts:
            backward_group[(n_batch * units_a_row * groups,)](
                q_BTHD, k_BSGD, v_BSGD, unions.words_UC, sizes, *rest, words, units, units_a_row, scale, first, last,
                FIXED=deterministic, RANGED=len(group_cuts) > 1, **group_tiling.options(),
                **group_shape(q_BTHD, k_BSGD, unions, value_width),
            )  # fmt: skip
    d_q_BTHD = d_q_BTHD.to(q_BTHD.dtype)
    if d_v is None:
        return d_q_BTHD, accumulate.finish(d_k, scale_k, k_BSGD.dtype), k_BSGD.new_empty(0)
    d_k = accumulate.finish(d_k, scale_k, k_BSGD.dtype, scale)
    return d_q_BTHD, d_k, accumulate.finish(d_v, scale_v, k_BSGD.dtype)
