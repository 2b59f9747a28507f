"""Fused Triton kernels for what lies between the matrix products, beside the plain PyTorch that they must agree with.

At these model sizes a step is hundreds of small kernels, each bound by its launch and by the memory that it passes
over; fusing a chain of them costs one. Every function here has both versions and takes the fused one where it can:
on a CUDA GPU, with Triton, in dtypes it knows, unless `unfused()` says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsabench.ops.availability import HAS_TRITON as HAS_TRITON
from dsabench.ops.availability import WIDEST_ROW as WIDEST_ROW
from dsabench.ops.availability import Gpu as Gpu
from dsabench.ops.availability import fused as fused
from dsabench.ops.availability import gpu_of as gpu_of
from dsabench.ops.availability import interpreted as interpreted
from dsabench.ops.availability import on_gpu as on_gpu
from dsabench.ops.availability import planned as planned
from dsabench.ops.availability import processors as processors
from dsabench.ops.availability import runs_on as runs_on
from dsabench.ops.availability import unfused as unfused
from dsabench.ops.availability import why_not as why_not


def autocast(x: Tensor) -> Tensor:
    """x in the dtype of matrix products: cast once here, rather than by autocast in each product that uses it."""
    return x.to(_products(x))


def rotate(x_BTHD: Tensor, cos_TW: Tensor, sin_TW: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[W + i]), i < W, of every head by the position's angle i; what is beyond 2 W stays.

    out[i] = x[i] cos - x[W + i] sin,  out[W + i] = x[W + i] cos + x[i] sin; same shape and dtype as x.
    """
    half = cos_TW.shape[-1]
    first, second, rest = x_BTHD.split([half, half, x_BTHD.shape[-1] - 2 * half], dim=-1)
    first, second = first.float(), second.float()
    cos, sin = cos_TW[:, None], sin_TW[:, None]
    pair = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x_BTHD.dtype)
    return torch.cat([pair, rest], dim=-1) if rest.shape[-1] else pair


def split_heads(
    x_BTC: Tensor, n_heads: int, n_groups: int, cos_TW: Tensor, sin_TW: Tensor, head_major: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """q (B, T, H, D), k and v (B, T, G, D), side by side in x (B, T, (H + 2 G) D), q and k turned by `rotate`.

    `head_major` asks for memory in the order (B, H, T, D), which batched products take without a copy.
    """
    if fused(x_BTC):
        from dsabench.ops.triton.qkv_rotary import SplitHeads

        q_BTHD, k_BTGD, v_BTGD = SplitHeads.apply(x_BTC, n_heads, n_groups, cos_TW, sin_TW, head_major)
        return q_BTHD, k_BTGD, v_BTGD
    x_BTHD = x_BTC.unflatten(-1, (n_heads + 2 * n_groups, -1))
    q_BTHD, k_BTGD, v_BTGD = x_BTHD.split([n_heads, n_groups, n_groups], dim=2)
    return rotate(q_BTHD, cos_TW, sin_TW), rotate(k_BTGD, cos_TW, sin_TW), v_BTGD


def embed(tokens: Tensor, weight_VD: Tensor, scale: float) -> Tensor:
    """E[tokens] * scale; tokens of any shape, and D last.

    The fused gradient adds in no fixed order, so where algorithms must be deterministic the plain one stands.
    """
    if fused(weight_VD) and not torch.are_deterministic_algorithms_enabled():
        from dsabench.ops.triton.embedding import Embed

        out: Tensor = Embed.apply(tokens, weight_VD, scale)
        return out
    return F.embedding(tokens, weight_VD) * scale


def add_norm(x_BTD: Tensor, d_BTD: Tensor | None, norm: nn.RMSNorm) -> tuple[Tensor, Tensor]:
    """x' = x + d (x itself without d), and RMSNorm(x') in the dtype of matrix products."""
    width = x_BTD.shape[-1]
    if fused(x_BTD, x_BTD if d_BTD is None else d_BTD):
        from dsabench.ops.triton.norm import WIDEST, AddNorm

        if width <= WIDEST:
            total, y = AddNorm.apply(x_BTD, d_BTD, norm.weight, norm.eps, _products(x_BTD))
            return total, y
    if d_BTD is not None:
        x_BTD = x_BTD + d_BTD
    return x_BTD, autocast(norm(x_BTD))


def head_norm(x_BTHD: Tensor, norm: nn.RMSNorm) -> Tensor:
    """RMSNorm over each head in fp32 (fp64 for fp64 inputs); same shape and dtype as x."""
    if fused(x_BTHD):
        from dsabench.ops.triton.norm import WIDEST, AddNorm

        if x_BTHD.shape[-1] <= WIDEST:
            y_BTHD: Tensor = AddNorm.apply(x_BTHD, None, norm.weight, norm.eps, x_BTHD.dtype)[1]
            return y_BTHD
    wide = torch.promote_types(x_BTHD.dtype, torch.float32)
    return F.rms_norm(x_BTHD.to(wide), norm.normalized_shape, norm.weight.to(wide), norm.eps).to(x_BTHD.dtype)


def short_convolution(x_BTD: Tensor, weight_DN: Tensor, begin_BT: Tensor | None) -> Tensor:
    """y[t] = x[t] + sum_i w[:, i] x[t - i] over the N taps i with t - i >= begin[t], or >= 0 where begin is None; sums
    in fp32 (fp64 for fp64 inputs), same shape and dtype as x. begin (B, T) int32: where each token's document begins.
    """
    if fused(x_BTD, weight_DN):
        from dsabench.ops.triton.convolution import ShortConvolution

        y_BTD: Tensor = ShortConvolution.apply(x_BTD, weight_DN, begin_BT)
        return y_BTD
    wide = torch.promote_types(x_BTD.dtype, torch.float32)
    length, n_taps = x_BTD.shape[1], weight_DN.shape[1]
    x, weight = x_BTD.to(wide), weight_DN.to(wide)
    padded, position_T = F.pad(x, (0, 0, n_taps - 1, 0)), torch.arange(length, device=x.device)
    total = x
    for i in range(n_taps):
        earlier = padded[:, n_taps - 1 - i : n_taps - 1 - i + length]
        if begin_BT is not None and i:
            earlier = earlier * (position_T - i >= begin_BT)[..., None]
        total = total + weight[:, i] * earlier
    return total.to(x_BTD.dtype)


def swiglu(gate_NEF: Tensor, up_NEF: Tensor, weight_NE: Tensor) -> Tensor:
    """silu(gate) * up * weight, a weight for each token and expert; (N, E, F) in gate's dtype.

    The fused version takes a weight of 0 for an expert that was not chosen, and computes no gradient for it.
    """
    if fused(gate_NEF, up_NEF, weight_NE):
        from dsabench.ops.triton.swiglu import SwiGLU

        hidden: Tensor = SwiGLU.apply(gate_NEF, up_NEF, weight_NE)
        return hidden
    return F.silu(gate_NEF) * up_NEF * weight_NE[:, :, None].to(gate_NEF.dtype)


class Routes(NamedTuple):
    """Which experts each token goes to, and how the router spread them; but for the weight and the balance loss
    without gradient."""

    weight: Tensor
    """(N, E), 0 where not chosen, or (N, K)."""

    expert_NK: Tensor
    """The chosen experts, highest logit first, ties to the lowest index."""

    balance_loss: Tensor
    """E sum_e load_e P_e, P the mean probability."""

    load_E: Tensor
    """Share of routes of each expert."""

    entropy: Tensor
    """Mean over tokens of the softmax's entropy in nats."""


def route(
    x_ND: Tensor,
    router_ED: Tensor,
    k: int,
    side_by_side: bool,
    mean_load: Callable[[Tensor], Tensor] | None = None,
) -> Routes:
    """Top k of the logits x W^T, weighted by the softmax over the chosen ones, for k = 1 by the chosen one's p.

    Logits are computed in fp32 (fp64 for fp64 inputs), whatever autocast says: a rounding would send tokens elsewhere.
    `side_by_side` asks for the weight as (N, E). mean_load(load_E) replaces the load of these tokens by that of a batch
    which they are a part of, before the balance loss is formed; the mean over equal parts is then the batch's.
    """
    if fused(x_ND, router_ED):
        from dsabench.ops.triton.router import MOST_EXPERTS, Route

        if len(router_ED) <= MOST_EXPERTS:
            return Routes(*Route.apply(x_ND, router_ED, k, side_by_side, mean_load))
    wide = torch.promote_types(x_ND.dtype, torch.float32)
    with torch.autocast(x_ND.device.type, enabled=False):
        logits_NE = F.linear(x_ND.to(wide), router_ED.to(wide))
    p_NE = logits_NE.softmax(dim=-1)
    top_NK, expert_NK = logits_NE.topk(k, dim=-1)
    # A softmax over one logit is 1 and teaches the router nothing: then Switch's gate, p of the chosen expert.
    weight = top_NK.softmax(dim=-1) if k > 1 else p_NE.gather(-1, expert_NK)
    if side_by_side:
        weight = torch.zeros_like(logits_NE).scatter(1, expert_NK, weight)
    load_E = count_routes(expert_NK, len(router_ED)).to(wide) / expert_NK.numel()
    if mean_load is not None:
        load_E = mean_load(load_E)
    balance_loss = len(router_ED) * (load_E * p_NE.mean(0)).sum()
    entropy = -torch.xlogy(p_NE.detach(), p_NE.detach()).sum(-1).mean()
    return Routes(weight, expert_NK, balance_loss, load_E, entropy)


def count_routes(expert_NK: Tensor, n_experts: int) -> Tensor:
    """Routes of each expert, (E,) int64; a comparison instead of bincount, whose output size needs the host."""
    return (expert_NK.flatten()[:, None] == torch.arange(n_experts, device=expert_NK.device)).sum(0)


def to_routes(x_ND: Tensor, token_R: Tensor, inverse_NK: Tensor) -> Tensor:
    """x[token], (R, D): a token's row for each of its routes; inverse[n, k] is the route of token n's k-th expert."""
    if fused(x_ND):
        from dsabench.ops.triton.routes import ToRoutes

        x_RD: Tensor = ToRoutes.apply(x_ND, token_R, inverse_NK)
        return x_RD
    return x_ND.index_select(0, token_R)


def from_routes(y_RD: Tensor, token_R: Tensor, inverse_NK: Tensor) -> Tensor:
    """y[n] = sum_k y_R[inverse[n, k]], (N, D)."""
    if fused(y_RD):
        from dsabench.ops.triton.routes import FromRoutes

        y_ND: Tensor = FromRoutes.apply(y_RD, token_R, inverse_NK)
        return y_ND
    return y_RD.new_zeros(len(inverse_NK), y_RD.shape[1]).index_add(0, token_R, y_RD)


def linear_cross_entropy(
    x_ND: Tensor, embedding_VD: Tensor, targets_N: Tensor, scored_N: Tensor | None = None
) -> Tensor:
    """Mean of -log softmax(x E^T)[n, target_n] in nats, fp32 (fp64 for fp64 inputs), over the n where scored_N is True,
    or over all; 0 where it is True nowhere."""
    x_ND, embedding_VD = autocast(x_ND), autocast(embedding_VD)
    # On a CPU the plain rows of the same function; on a GPU plain PyTorch, and fp64 anywhere, is what it is held to.
    on_cpu = x_ND.device.type == "cpu" and x_ND.dtype in (torch.float32, torch.bfloat16)
    if on_cpu or fused(x_ND, embedding_VD):
        from dsabench.ops.cross_entropy import LinearCrossEntropy

        loss: Tensor = LinearCrossEntropy.apply(x_ND, embedding_VD, targets_N, scored_N)
        return loss
    logits_NV = F.linear(x_ND, embedding_VD)
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    if scored_N is None:
        return F.cross_entropy(logits_NV, targets_N)
    nll_N = F.cross_entropy(logits_NV, targets_N, reduction="none")
    return (nll_N * scored_N).sum() / scored_N.sum().clamp(min=1)


def _products(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
