"""The messages between a process that trains and the one that compiles for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dsabench.ops import Gpu


class Launches(Protocol):
    """Something that launches kernels."""

    def key(self) -> str:
        """The same for what launches the same kernels."""

    def launch(self, order: Order) -> None:
        """Launch them, on tensors without data."""


@dataclass(frozen=True)
class Order:
    """The kernels that these launch are wanted."""

    wanted: tuple[Launches, ...]
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
