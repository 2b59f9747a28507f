"""Specialisations of Triton kernels: recorded from launches that do not take place, and compiled without a GPU.

A specialisation is what Triton compiles once: a kernel with the dtypes of its pointers, whether each is a multiple of
16 bytes, whether each whole number is 1 or a multiple of 16, its constants, and its options. Triton itself works it out
here as in a launch, and hands it to its own hook (`knobs.runtime.jit_cache_hook`); `JITFunction.preload` compiles it
into the disk cache under the very key that a launch looks for. Both are what Triton offers for that use since 3.0.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from dsabench.ops import Gpu


class Specialisation(NamedTuple):
    """A kernel as it is compiled."""

    module: str
    name: str
    data: str
    """Triton's description of it (JSON)."""


@contextmanager
def recorded(gpu: Gpu) -> Iterator[dict[Specialisation, None]]:
    """The specialisations that launches inside ask for on that GPU, in order; nothing is compiled or launched.

    Tensors need no data, only dtype and place: storages are taken to begin at a multiple of 16 bytes, as all allocators
    of PyTorch have it.
    """
    found: dict[Specialisation, None] = {}

    def hook(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        found[Specialisation(fn.module, fn.name, compile["specialization_data"])] = None
        return True  # do not compile it

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        named = {name: _placed(value) for name, value in options.items()}
        return launch(self, *map(_placed, args), grid=grid, warmup=True, **named)

    launch, hooked = JITFunction.run, knobs.runtime.jit_cache_hook
    with described(gpu):
        JITFunction.run, knobs.runtime.jit_cache_hook = run, hook
        try:
            yield found
        finally:
            JITFunction.run, knobs.runtime.jit_cache_hook = launch, hooked


def compile_one(wanted: Specialisation) -> Path:
    """Compile it into Triton's cache, where it is not there already; returns its folder. Inside `described`."""
    found: Any = importlib.import_module(wanted.module)
    for name in wanted.name.split("."):
        found = getattr(found, name)
    kernel = found.preload(wanted.data)
    with suppress(Exception):  # of many kinds: what is missing is made at the first launch
        _compile_launcher(kernel)
    return Path(next(iter(kernel.metadata_group.values()))).parent


def _compile_launcher(kernel: Any) -> None:
    """The C code that Triton (until 3.6 at least) compiles for each signature, into its cache, too."""
    from triton.backends.nvidia import driver as nvidia

    if hasattr(nvidia, "make_launcher"):
        nvidia.CudaLauncher(kernel.src, kernel.metadata)


@contextmanager
def described(gpu: Gpu) -> Iterator[None]:
    """Inside, Triton compiles for that GPU, whatever is in this machine. Of a process that launches nothing."""
    before = driver._active
    driver.set_active(_Described(gpu))
    try:
        yield
    finally:
        driver._active = before


class _Placed:
    """A tensor as Triton sees it: a dtype and an address."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.dtype, self.place = tensor.dtype, int(tensor.storage_offset()) * tensor.element_size()

    def data_ptr(self) -> int:
        return self.place


def _placed(value: Any) -> Any:
    return _Placed(value) if isinstance(value, torch.Tensor) else value


class _Described(DriverBase):  # type: ignore[misc]
    """A GPU that is described, and need not be there."""

    def __init__(self, gpu: Gpu) -> None:
        major, minor = gpu.capability
        self.target = GPUTarget("cuda", 10 * major + minor, 32)

    @classmethod
    def is_active(cls) -> bool:
        return False

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> str:
        return f"described {self.target}"  # no number, so that a real device's kernels are kept apart

    def get_current_stream(self, device: object) -> int:
        return 0

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError

    def get_active_torch_device(self) -> torch.device:
        raise NotImplementedError

    def get_benchmarker(self) -> Callable[..., Any]:
        raise NotImplementedError
