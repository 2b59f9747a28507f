"""Fused Triton kernels for what lies between the matrix products, beside the plain PyTorch that they must agree with.

At these model sizes a step is hundreds of small kernels, each bound by its launch and by the memory that it passes
over; fusing a chain of them costs one. Every function here has both versions and takes the fused one where it can:
on a CUDA GPU, with Triton, in dtypes it knows, unless `unfused()` says otherwise.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDEST_ROW = 4096
"""Longest row that one program of a row-wise kernel holds."""

HAS_TRITON = importlib.util.find_spec("triton") is not None

_allowed = True
_interpreted = False


def fused(*tensors: Tensor) -> bool:
    """Whether the fused version may be used on these tensors."""
    if not (_allowed and HAS_TRITON) or torch.compiler.is_compiling():
        return False
    on = all(tensor.is_cuda or _interpreted for tensor in tensors)
    return on and all(tensor.dtype in (torch.float32, torch.bfloat16) for tensor in tensors)


@functools.cache
def why_not(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on this CUDA device; None when they can. Tries one."""
    if not HAS_TRITON:
        return "Triton is not installed"
    try:
        probe = torch.ones(1, 1, 1, 2, device=device)
        turned = rotate(probe, torch.zeros(1, 1, device=device), torch.ones(1, 1, device=device))
        expected = torch.tensor([-1.0, 1.0], device=device)
        return None if torch.equal(turned.flatten(), expected) else "a Triton kernel computes a wrong result"
    except Exception as error:  # no C compiler, no driver, a GPU that Triton does not know: it raises many things
        return f"{type(error).__name__}: {error}".splitlines()[0]


@contextlib.contextmanager
def unfused(wanted: bool = True) -> Iterator[None]:
    """Plain PyTorch while inside (when `wanted`): the reference."""
    global _allowed
    before, _allowed = _allowed, _allowed and not wanted
    try:
        yield
    finally:
        _allowed = before


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Fused kernels on CPU tensors too, for tests under TRITON_INTERPRET=1."""
    global _interpreted
    before, _interpreted = _interpreted, True
    try:
        yield
    finally:
        _interpreted = before


def autocast(x: Tensor) -> Tensor:
    """x in the dtype of matrix products: cast once here, rather than by autocast in each product that uses it."""
    return x.to(_products(x))


def rotate(x_BTHD: Tensor, cos_TW: Tensor, sin_TW: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[W + i]), i < W, of every head by the position's angle i; what is beyond 2 W stays.

    out[i] = x[i] cos - x[W + i] sin,  out[W + i] = x[W + i] cos + x[i] sin; same shape and dtype as x.
    """
    if fused(x_BTHD):
        from dsabench.kernels.rotary import Rotate

        turned: Tensor = Rotate.apply(x_BTHD, cos_TW, sin_TW)
        return turned
    half = cos_TW.shape[-1]
    first, second, rest = x_BTHD.split([half, half, x_BTHD.shape[-1] - 2 * half], dim=-1)
    first, second = first.float(), second.float()
    cos, sin = cos_TW[:, None], sin_TW[:, None]
    pair = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x_BTHD.dtype)
    return torch.cat([pair, rest], dim=-1) if rest.shape[-1] else pair


def add_norm(x_BTD: Tensor, d_BTD: Tensor | None, norm: nn.RMSNorm) -> tuple[Tensor, Tensor]:
    """x' = x + d (x itself without d), and RMSNorm(x') in the dtype of matrix products."""
    width = x_BTD.shape[-1]
    if d_BTD is not None and fused(x_BTD, d_BTD):
        from dsabench.kernels.norm import WIDEST, AddNorm

        if width <= WIDEST:
            total, y = AddNorm.apply(x_BTD, d_BTD, norm.weight, norm.eps, _products(x_BTD))
            return total, y
    if d_BTD is not None:
        x_BTD = x_BTD + d_BTD
    return x_BTD, autocast(norm(x_BTD))


def swiglu(gate_NEF: Tensor, up_NEF: Tensor, weight_NE: Tensor) -> Tensor:
    """silu(gate) * up * weight, a weight for each token and expert; (N, E, F) in gate's dtype."""
    if fused(gate_NEF, up_NEF, weight_NE):
        from dsabench.kernels.glu import SwiGLU

        hidden: Tensor = SwiGLU.apply(gate_NEF, up_NEF, weight_NE)
        return hidden
    return F.silu(gate_NEF) * up_NEF * weight_NE[:, :, None].to(gate_NEF.dtype)


def linear_cross_entropy(x_ND: Tensor, embedding_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Mean over n of -log softmax(x E^T)[n, target_n] in nats, fp32 (fp64 for fp64 inputs)."""
    x_ND, embedding_VD = autocast(x_ND), autocast(embedding_VD)
    if fused(x_ND, embedding_VD):
        from dsabench.kernels.loss import LinearCrossEntropy

        loss: Tensor = LinearCrossEntropy.apply(x_ND, embedding_VD, targets_N)
        return loss
    logits_NV = F.linear(x_ND, embedding_VD)
    return F.cross_entropy(logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)), targets_N)


def _products(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
