"""The messages between a process that trains and the one that compiles for it."""

from __future__ import annotations

from dataclasses import dataclass

from dsabench.ops import Gpu
from dsabench.spec.run import RunSpec


@dataclass(frozen=True)
class Shape:
    """A run's shape: what decides its kernels."""

    spec: RunSpec

    vocab_size: int
    micro_batch: int
    recompute: bool


@dataclass(frozen=True)
class Order:
    """The kernels of these shapes are wanted."""

    shapes: tuple[Shape, ...]
    gpu: Gpu
    precision: str
    deterministic: bool
    processes: int = 1
    scratch: str = ""
    """A folder for the compilers' temporary files, which they leave behind when they are killed."""


@dataclass(frozen=True)
class Count:
    """How many kernels are compiled, of how many that are known to be wanted."""

    done: int
    wanted: int


@dataclass(frozen=True)
class Finished:
    """All that could be compiled is. `failed`: the first lines of what went wrong, each of them no error of a run."""

    folders: tuple[str, ...]
    """The folders of Triton's cache that hold the kernels."""

    failed: tuple[str, ...]


Report = Count | Finished
