"""The choice between a fused Triton kernel and plain PyTorch: where kernels run, on which GPU, and how a caller turns
them off."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

WIDEST_ROW = 4096
"""Longest row that one program of a row-wise kernel holds."""

HAS_TRITON = importlib.util.find_spec("triton") is not None


class Gpu(NamedTuple):
    """What of a GPU decides which kernels run, and how they are cut."""

    capability: tuple[int, int]
    processors: int


_allowed = True
_interpreted = False
_planned: Gpu | None = None


def runs_on(device: torch.device) -> bool:
    """Whether our Triton kernels may run on tensors of this device."""
    return _allowed and HAS_TRITON and (on_gpu(device) or _interpreted)


def on_gpu(device: torch.device) -> bool:
    """Whether what lies on this device is computed on a CUDA GPU, or would be: see `planned`."""
    return device.type == "cuda" or _planned is not None


def gpu_of(device: torch.device) -> Gpu:
    """The CUDA GPU that the device is, or the planned one."""
    if _planned is not None:
        return _planned
    return Gpu(torch.cuda.get_device_capability(device), torch.cuda.get_device_properties(device).multi_processor_count)


def processors(device: torch.device) -> int:
    """Multiprocessors of the GPU; 2 elsewhere, for the interpreter."""
    return gpu_of(device).processors if on_gpu(device) else 2


def fused(*tensors: Tensor) -> bool:
    """Whether the fused version may be used on these tensors."""
    if torch.compiler.is_compiling() or not all(runs_on(tensor.device) for tensor in tensors):
        return False
    return all(tensor.dtype in (torch.float32, torch.bfloat16) for tensor in tensors)


@functools.cache
def why_not(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on this CUDA device; None when they can. Tries one."""
    if not HAS_TRITON:
        return "Triton is not installed"
    try:
        from dsabench.ops.triton.qkv_rotary import SplitHeads

        zero, one = torch.zeros(1, 1, device=device), torch.ones(1, 1, device=device)
        turned = SplitHeads.apply(torch.ones(1, 1, 6, device=device), 1, 1, zero, one, False)[0]
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


@contextlib.contextmanager
def planned(gpu: Gpu) -> Iterator[None]:
    """Inside, code that chooses kernels does so as on that GPU, whatever device its tensors have. For tensors without
    data: nothing can be launched."""
    global _planned
    before, _planned = _planned, gpu
    try:
        yield
    finally:
        _planned = before
