"""Random inputs of a layer, drawn anew for every length.

Legend: B batch, T query, S key, H query heads, G key/value heads, D head width, J indexer heads, I indexer width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dsabench.bench.document import Settings

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Inputs(NamedTuple):
    """The attention's q, k, v, the indexer's q, k, w, and the gradient of the output."""

    q_BTHD: Tensor
    k_BSGD: Tensor
    v_BSGD: Tensor
    q_BTJI: Tensor
    k_BSI: Tensor
    w_BTJ: Tensor
    d_out_BTHD: Tensor


Source = Callable[[int, int], Inputs]
"""Gives the inputs of a length and a layer."""


def shapes(settings: Settings, length: int) -> list[tuple[int, ...]]:
    """Shapes of the fields of Inputs, in order."""
    s, rows = settings, (settings.batch, length)
    kv = (*rows, s.kv_heads, s.head_dim)
    q = (*rows, s.heads, s.head_dim)
    return [q, kv, kv, (*rows, s.indexer_heads, s.indexer_dim), (*rows, s.indexer_dim), (*rows, s.indexer_heads), q]


def random_inputs(settings: Settings, length: int, device: torch.device) -> Inputs:
    """Standard normal; w scaled by J^-1/2 I^-1/2. The top k of such scores are a uniformly random causal set, of which
    neighbouring queries share no more than chance: the hard case for a gather."""
    generator = torch.Generator(device).manual_seed(length)
    dtype = DTYPES[settings.dtype]
    drawn = [torch.randn(shape, generator=generator, device=device).to(dtype) for shape in shapes(settings, length)]
    x = Inputs(*drawn)
    return x._replace(w_BTJ=x.w_BTJ * (settings.indexer_heads * settings.indexer_dim) ** -0.5)


def check_inputs(settings: Settings, length: int, device: torch.device, ties: bool = True) -> Inputs:
    """Inputs for checks, over which all dtypes and implementations agree on the selection.

    The indexer's numbers are a few small multiples of a power of two, so that scores are exact in every dtype. Equal
    scores are everywhere, exact zeros among them. Without `ties` they are positive normal numbers.
    """
    generator = torch.Generator().manual_seed(length)
    dtype = DTYPES[settings.dtype]
    coarse = (3, 4, 5)
    drawn = [
        (torch.randint(-2, 3, shape, generator=generator) / (8 if i == 5 else 2))
        if i in coarse and ties
        else torch.randn(shape, generator=generator).abs()
        if i in coarse
        else torch.randn(shape, generator=generator)
        for i, shape in enumerate(shapes(settings, length))
    ]
    return Inputs(*(x.to(dtype).to(device) for x in drawn))
