"""Sizes that the kernels of `attend` and `kl` are compiled for, and the tilings by which their work is cut.

Legend: S key, H query heads, G key/value heads, D key width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from dsabench.attention.dsa.triton.tiles import fitting, power_of_two, precision
from dsabench.attention.dsa.triton.unions import Unions
from dsabench.ops.availability import on_gpu


class Tiling(NamedTuple):
    """How the work is cut: results do not depend on it, but for rounding."""

    slots: int = 64
    warps: int = 4
    stages: int = 2
    range_bytes: int = 0
    """Backward takes the keys in ranges whose K, V, dK and dV take so many bytes; 0: all at once."""
    registers: int | None = None
    """Most registers a thread, to fit more programs on a multiprocessor; None leaves it to the compiler."""

    def options(self) -> dict[str, int]:
        """As a kernel takes them."""
        most = {} if self.registers is None else {"maxnreg": self.registers}
        return {"N": self.slots, "num_warps": self.warps, "num_stages": self.stages, **most}

    def within(self, limit: int, x: Tensor, *widths: int) -> Tiling:
        """With fewer slots where these do not fit `limit` bytes at these widths and x's dtype."""
        return self._replace(slots=fitting(self.slots, limit, *widths, size=x.element_size()))


GROUP = Tiling(slots=64, warps=4, stages=2)
"""Groups of queries: 64 rows of queries by 64 keys, a tile of the tensor cores for every product."""


def group_backward(width: int, deterministic: bool) -> Tiling:
    """The backward pass of groups: of wide heads only one stage fits where two programs share a multiprocessor; of
    others, with so few registers, three programs do."""
    if width > 64:
        return GROUP._replace(stages=1)
    return GROUP if deterministic else GROUP._replace(registers=168)


def query_backward(q_BTHD: Tensor, k_BSGD: Tensor, value_width: int, deterministic: bool) -> Tiling:
    """The backward pass of one query a program. A warp by itself waits for no other one; it holds so much of up to 16
    heads, and then three blocks of keys are on their way."""
    width = k_BSGD.shape[3]
    few = together_at_most(q_BTHD, q_BTHD.shape[2] // k_BSGD.shape[2]) <= 16
    if few and width <= 128 and not (value_width or deterministic) and q_BTHD.dtype == torch.bfloat16:
        return Tiling(slots=32 if width <= 64 else 16, warps=1, stages=3)
    limit = 1 << (12 if deterministic else 13)
    return Tiling(slots=32, warps=2).within(limit, k_BSGD, *key_parts(k_BSGD, value_width))


def key_parts(k_BSGD: Tensor, value_width: int) -> list[int]:
    """Widths of the parts that a key is held in: the one that is its value and the rest, or, where value_width is 0,
    the whole. A power of two holds each."""
    width = k_BSGD.shape[3]
    return [value_width, width - value_width] if value_width else [width]


def widths(k_BSGD: Tensor, value_width: int) -> dict[str, int]:
    """The kernels' compile-time arguments for these parts."""
    first, rest = (*key_parts(k_BSGD, value_width), 0)[:2]
    return {"D": first, "WIDE": power_of_two(first), "P": rest, "WIDE_P": power_of_two(rest)}


def together_at_most(q_BTHD: Tensor, heads: int) -> int:
    """Heads of one program, of so many that share a KV head: bounded by what fits on chip."""
    return min(power_of_two(heads), 64 if q_BTHD.dtype == torch.bfloat16 else 16)


def query_shape(q_BTHD: Tensor, k_BSGD: Tensor, value_width: int) -> tuple[int, dict[str, Any]]:
    """Programs a query and KV head, and the kernels' compile-time arguments."""
    together = q_BTHD.shape[2] // k_BSGD.shape[2]
    heads = together_at_most(q_BTHD, together)
    return triton.cdiv(together, heads), {**widths(k_BSGD, value_width), "M": heads, "PRECISION": precision(q_BTHD)}


def group_shape(q_BTHD: Tensor, k_BSGD: Tensor, unions: Unions, value_width: int = 0) -> dict[str, Any]:
    """The compile-time arguments of kernels over groups."""
    heads = power_of_two(q_BTHD.shape[2] // k_BSGD.shape[2], max(1, 16 // unions.queries))
    return {
        **widths(k_BSGD, value_width), "HEADS": heads, "Q": unions.queries, "PRECISION": precision(q_BTHD),
        "FAST": on_gpu(q_BTHD.device),
    }  # fmt: skip


def ranges(k_BSGD: Tensor, tensors: int, range_bytes: int) -> list[tuple[int, int]]:
    """(first key, end) of ranges whose K, V, dK and dV take so many bytes; one where range_bytes is 0. tensors: 2, or 1
    where values are parts of keys."""
    length, groups, width = k_BSGD.shape[1:]
    bytes_a_key = groups * width * tensors * (4 + k_BSGD.element_size())
    keys = triton.cdiv(length, triton.cdiv(length * bytes_a_key, range_bytes) if range_bytes else 1)
    return [(first, first + keys) for first in range(0, length, keys)]
