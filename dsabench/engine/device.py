"""The device of a run and its use: precision, determinism, graphs, its measured rate, and its record."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dsabench import ops
from dsabench.engine.data_parallel.ranks import Ranks
from dsabench.engine.machine import machine
from dsabench.errors import DeviceError
from dsabench.spec.run import EngineSpec

_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
"""Linux: writing 5 to the first resets the peak resident size that the second shows as VmHWM."""


@dataclass(frozen=True)
class Execution:
    """An EngineSpec with every `auto` resolved for this machine."""

    device: torch.device
    precision: str
    """`bf16` or `fp32`."""

    graph: bool
    """Whether training steps are captured in CUDA graphs."""

    deterministic: bool

    fused: bool = False
    """Whether chains of small operations run as Triton kernels of our own."""

    compiled: bool = False
    """Whether the model's blocks are compiled by torch.compile."""

    ranks: Ranks = Ranks()  # noqa: RUF009 - frozen
    """The processes that train one run together, this one among them."""

    @property
    def compile(self) -> str:
        """engine.compile with `auto` resolved."""
        return "full" if self.compiled else "graph" if self.graph else "off"

    def autocast(self) -> torch.autocast:
        """bf16 autocast, or a no-op in fp32. No cast cache: a CUDA graph must not keep a cast of an older weight."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=False)

    def synchronize(self) -> None:
        """Wait until the device has finished all work, so that a host clock tells the truth."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def describe(self) -> str:
        """Device, precision and way of computing, in one line. Step times under two descriptions are never pooled."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.processor()
        graph = "eager" if self.compile == "off" else self.compile
        fused = " fused" if self.fused else ""
        threads = torch.get_num_threads()
        ranks = f" x{self.ranks.size}" if self.ranks.size > 1 else ""
        return f"{self.device.type} {name} {self.precision} {graph} {self.deterministic} {threads}{fused}{ranks}"

    def reset_peak_memory(self) -> None:
        """Begin a new measurement of peak memory. Called before training steps, so that evaluation does not count."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.device.type == "cpu" and _CLEAR_REFS.exists():
            with contextlib.suppress(OSError):  # not permitted in some containers: the peak is then the process's
                _CLEAR_REFS.write_text("5", encoding="ascii")

    def peak_memory_mb(self) -> float | None:
        """Largest memory in use since the last reset, in MB (10^6): allocated on a CUDA device, resident in the whole
        process on a Linux CPU; None elsewhere, where nothing can be reset."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        if self.device.type == "cpu" and _STATUS.exists():
            for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024 / 1e6
        return None


def resolve(engine: EngineSpec) -> Execution:
    """The Execution of an EngineSpec on this machine. A command or process calls it once, and hands on what it gives.

    Its GPU becomes the current one, on which Triton launches.

    Raises DeviceError naming what is missing and what there is.
    """
    device = _device(engine.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if engine.compile in ("graph", "full") and device.type != "cuda":
        raise DeviceError(
            f"engine.compile = {engine.compile} needs a CUDA GPU, and the device is {device}; use auto or off"
        )
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        native = False
    precision = ("bf16" if native else "fp32") if engine.precision == "auto" else engine.precision
    deterministic = device.type == "cpu" if engine.deterministic == "auto" else engine.deterministic
    graph = device.type == "cuda" and engine.compile != "off"
    compiled = engine.compile == "full"
    return Execution(device, precision, graph, deterministic, _fused(device, engine.kernels), compiled)


def _fused(device: torch.device, wanted: str) -> bool:
    if device.type != "cuda" or wanted == "off":
        return False
    reason = ops.why_not(device)
    if reason:  # slower, and the same results: worth a warning, not an end
        warnings.warn(
            f"our Triton kernels do not run here, so training is slower: {reason} (engine.kernels = off silences this)",
            stacklevel=3,
        )
    return reason is None


def default_device() -> torch.device:
    """The device that engine.device = auto is here."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _device(name: str) -> torch.device:
    if name == "auto":
        return default_device()
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if not torch.cuda.is_available() or count == 0:
            built = "" if torch.backends.cuda.is_built() else " (this PyTorch is built without CUDA)"
            raise DeviceError(f"engine.device = {name}: there is no CUDA GPU here{built}; use auto or cpu")
        index = torch.cuda.current_device() if device.index is None else device.index
        if index >= count:
            known = ", ".join(f"cuda:{i}" for i in range(count))
            raise DeviceError(f"engine.device = {name}: there is no such GPU; there are {known}")
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("engine.device = mps: there is no MPS device here; use auto or cpu")
    return device


@contextlib.contextmanager
def determinism(execution: Execution) -> Iterator[None]:
    """Deterministic algorithms while inside, when the execution asks for them on a GPU; the old setting afterwards."""
    if not execution.deterministic or execution.device.type == "cpu":
        yield  # CPU kernels used here are deterministic for a fixed number of threads
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@functools.cache
def matmul_rate(device: torch.device, precision: str) -> float:
    """Measured FLOP/s of a large square matrix product in the run's precision: the 100 % of MFU. Best of five."""
    size = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    execution = Execution(device, precision, graph=False, deterministic=False)
    best = float("inf")
    for _ in range(6):
        execution.synchronize()
        start = time.perf_counter()
        torch.matmul(a, b)
        execution.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def first_line(error: BaseException) -> str:
    """An exception on one line: its kind and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def environment(execution: Execution) -> dict[str, Any]:
    """The machine, the versions and how the run used them, for its record."""
    device = execution.device
    return {
        **machine(device),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "precision": execution.precision,
        "compile": execution.compile,
        "cuda_graph": execution.graph,
        "fused_kernels": execution.fused,
        "deterministic": execution.deterministic,
        **({"data_parallel": execution.ranks.size} if execution.ranks.size > 1 else {}),
    }
