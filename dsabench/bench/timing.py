"""Times of a forward and a backward pass on the device: medians of repetitions that begin with a cold cache.

On a CUDA GPU by events around each pass. Before each repetition a buffer larger than the L2 is written, and a kernel
that only waits gives the host a lead: launches are queued by the time the device gets to them, so that what is timed is
the device's work, as in a replayed CUDA graph, and not Python's. On a CPU by the wall clock, caches as they are.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

LEAST, BUDGET_S = 5, 3.0
"""Repetitions that are always made (unless fewer are asked for), and seconds after which no more are begun."""

_MOST_LEAD_MS = 50.0
_CYCLES_A_MS = 2_000_000
"""Of a GPU's clock: more than it has, so that the lead is rather too long."""


class Times(NamedTuple):
    """Times of the repetitions of one measurement, ms."""

    total: list[float]
    forward: list[float]

    def quantile(self, share: float) -> float:
        """A quantile of the times of forward and backward together."""
        return float(np.quantile(self.total, share))


class Stopwatch:
    """Times what runs on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cold: torch.Tensor | None = None
        if device.type == "cuda":
            size = 4 * torch.cuda.get_device_properties(device).L2_cache_size
            self.cold = torch.empty(max(size, 1 << 28), dtype=torch.uint8, device=device)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def time(self, forward: Callable[[], Any], backward: Callable[[Any], Any] | None, repeats: int) -> Times:
        """Repetitions of backward(forward()). Warm it up first: everything is compiled and allocated then."""
        times = Times([], [])
        lead_ms = self._lead(forward, backward)
        began = time.perf_counter()
        while len(times.total) < repeats:
            if len(times.total) >= LEAST and time.perf_counter() - began > BUDGET_S:
                break
            one = self._once_cuda if self.device.type == "cuda" else self._once_cpu
            total, first = one(forward, backward, lead_ms)
            times.total.append(total)
            times.forward.append(first)
        return times

    def _lead(self, forward: Callable[[], Any], backward: Callable[[Any], Any] | None) -> float:
        """Half more than the host needs to queue one repetition, ms."""
        if self.device.type != "cuda":
            return 0.0
        self.synchronize()
        began = time.perf_counter()
        outputs = forward()
        if backward is not None:
            backward(outputs)
        host_ms = 1e3 * (time.perf_counter() - began)
        self.synchronize()
        return min(1.5 * host_ms + 0.1, _MOST_LEAD_MS)

    def _once_cuda(
        self, forward: Callable[[], Any], backward: Callable[[Any], Any] | None, lead_ms: float
    ) -> tuple[float, float]:
        assert self.cold is not None
        begin, middle, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
        torch.cuda._sleep(int(lead_ms * _CYCLES_A_MS))
        self.cold.zero_()
        begin.record()
        outputs = forward()
        middle.record()
        if backward is not None:
            backward(outputs)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end), begin.elapsed_time(middle)

    def _once_cpu(
        self, forward: Callable[[], Any], backward: Callable[[Any], Any] | None, lead_ms: float
    ) -> tuple[float, float]:
        begin = time.perf_counter()
        outputs = forward()
        middle = time.perf_counter()
        if backward is not None:
            backward(outputs)
        return 1e3 * (time.perf_counter() - begin), 1e3 * (middle - begin)


def copy_rate(device: torch.device) -> float:
    """Measured bytes/s, read plus written, of a large copy on the device. Best of five."""
    size = 1 << 30 if device.type == "cuda" else 1 << 26
    a, b = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
    watch, best = Stopwatch(device), float("inf")
    for _ in range(6):
        watch.synchronize()
        began = time.perf_counter()
        b.copy_(a)
        watch.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2.0 * size / best


def free_bytes(device: torch.device) -> float:
    """Memory that can still be had on a CPU before the system ends the process; inf on a GPU, which raises an error."""
    if device.type != "cpu":
        return float("inf")
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * int(line.split()[1])
    return float("inf")
