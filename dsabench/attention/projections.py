"""Projections between the residual stream and heads: their contract, and those of the layout `heads`.

Legend: B batch, T query, S key, D model width (head width in a BTHD tensor), H query heads, G key/value heads, C
columns of one product.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsabench.ops import fused, head_norm, rotate, split_heads

if TYPE_CHECKING:
    from dsabench.spec.model_settings import RopeScaling
    from dsabench.spec.run import RunSpec


class Rotations(Protocol):
    """What projections ask of an AttentionContext."""

    @property
    def stage(self) -> str:
        """`dense` or `sparse`."""

    def rotation(self, width: int, base: float, scaling: RopeScaling | None = None) -> tuple[Tensor, Tensor]:
        """cos and sin of the rotary embedding for heads of `width`."""


class Projections(nn.Module, abc.ABC):
    """All variants of one layout have the same projections by the same names."""

    head_dim: int
    """Width of a head's queries and keys."""

    rotated: int
    """Width of what is rotated."""

    rope_base: float
    rope_scaling: RopeScaling | None

    scale: float
    """What scores are multiplied by before the softmax, in whatever form."""

    value_width: int | None = None
    """Of `sparse_heads`: None where values are tensors of their own; else a key's first part, so wide, is its value."""

    pair_numbers: int
    """Multiply-adds of a query-key pair of `heads`, QK^T and PV, in all heads."""

    sparse_pair_numbers: int
    """The same of `sparse_heads`."""

    out: nn.Linear

    def rotation(self, context: Rotations) -> tuple[Tensor, Tensor]:
        """cos and sin that turn queries and keys."""
        return context.rotation(self.rotated, self.rope_base, self.rope_scaling)

    def query_source(self, x_BTD: Tensor) -> Tensor:
        """What queries are made of by one matrix: x, or its projection to a low rank. An indexer's queries are, too."""
        return x_BTD

    @abc.abstractmethod
    def heads(
        self, x_BTD: Tensor, context: Rotations, head_major: bool = False, source_BTD: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, T, H, D), k and v of as many heads or fewer; q and k rotated by position. `head_major` prefers memory
        in the order (B, H, T, D), for batched products. source: what query_source gives, where it is there already."""

    def merge(self, out_BTHD: Tensor) -> Tensor:
        """Concatenate the heads and project them back to the residual stream: (B, T, D)."""
        merged: Tensor = self.out(out_BTHD.flatten(-2))
        return merged

    def sparse_heads(
        self, x_BTD: Tensor, context: Rotations, head_major: bool = False, source_BTD: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same attention in the form in which a query's keys are gathered: `heads`, or fewer numbers a key."""
        return self.heads(x_BTD, context, head_major, source_BTD)

    def sparse_merge(self, out_BTHD: Tensor) -> Tensor:
        """`merge` of an output over `sparse_heads`."""
        return self.merge(out_BTHD)

    def stage_heads(
        self, x_BTD: Tensor, context: Rotations, head_major: bool = False, source_BTD: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`heads` in the dense stage, `sparse_heads` in the sparse one."""
        take = self.heads if context.stage == "dense" else self.sparse_heads
        return take(x_BTD, context, head_major, source_BTD)

    def stage_merge(self, out_BTHD: Tensor, context: Rotations) -> Tensor:
        """`merge` of an output over `stage_heads`."""
        return self.merge(out_BTHD) if context.stage == "dense" else self.sparse_merge(out_BTHD)

    def pair_flops(self, stage: str) -> float:
        """FLOPs of a query-key pair of `stage_heads`, forward and backward: 2 + 4 a multiply-add."""
        return 6.0 * (self.pair_numbers if stage == "dense" else self.sparse_pair_numbers)

    @staticmethod
    @abc.abstractmethod
    def flops(spec: RunSpec) -> float:
        """Forward and backward FLOPs of one window's projections, the same in either form."""


class HeadProjections(Projections):
    """Query, key, value and output projections with rotary embedding, the layout `heads`.

    MHA, GQA and MQA by spec.model.n_kv_heads; biases of query, key and value by qkv_bias, an RMSNorm over each head of
    queries and keys by qk_norm.
    """

    def __init__(self, spec: RunSpec) -> None:
        super().__init__()
        model = spec.model
        self.head_dim, self.rope_base, self.rope_scaling = model.head_dim, model.rope_base, model.rope_scaling
        self.rotated, self.scale = model.head_dim, model.head_dim**-0.5
        self.pair_numbers = self.sparse_pair_numbers = 2 * model.heads_width
        self.query = nn.Linear(model.d_model, model.heads_width, bias=model.qkv_bias)
        self.key = nn.Linear(model.d_model, model.kv_heads * model.head_dim, bias=model.qkv_bias)
        self.value = nn.Linear(model.d_model, model.kv_heads * model.head_dim, bias=model.qkv_bias)
        self.out = nn.Linear(model.heads_width, model.d_model, bias=False)
        norms = [nn.RMSNorm(model.head_dim, eps=model.norm_eps) if model.qk_norm else None for _ in range(2)]
        self.query_norm, self.key_norm = norms

    def heads(
        self, x_BTD: Tensor, context: Rotations, head_major: bool = False, source_BTD: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As Projections.heads; k and v (B, T, G, D)."""
        cos_TD, sin_TD = self.rotation(context)
        layers = self.query, self.key, self.value
        if fused(x_BTD, self.query.weight):
            # One product of three times the width, in place of three that are too small to fill a GPU. Joining the
            # matrices costs one short copy.
            biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
            y_BTC = F.linear(
                x_BTD, torch.cat([layer.weight for layer in layers]), torch.cat(biases) if biases else None
            )
            n_heads, n_groups = (len(layer.weight) // self.head_dim for layer in layers[:2])
            if self.query_norm is None:
                return split_heads(y_BTC, n_heads, n_groups, cos_TD, sin_TD, head_major)
            heads = y_BTC.unflatten(-1, (-1, self.head_dim)).split([n_heads, n_groups, n_groups], dim=2)
        else:
            heads = tuple(layer(x_BTD).unflatten(-1, (-1, self.head_dim)) for layer in layers)
        q_BTHD, k_BTGD, v_BTGD = heads
        if self.query_norm is not None and self.key_norm is not None:
            q_BTHD, k_BTGD = head_norm(q_BTHD, self.query_norm), head_norm(k_BTGD, self.key_norm)
        return rotate(q_BTHD, cos_TD, sin_TD), rotate(k_BTGD, cos_TD, sin_TD), v_BTGD

    @staticmethod
    def flops(spec: RunSpec) -> float:
        """Forward and backward FLOPs of one window: 6 L D (2 H head_dim + 2 G head_dim)."""
        model = spec.model
        columns = 2 * model.heads_width + 2 * model.kv_heads * model.head_dim
        return 6.0 * spec.length * model.d_model * columns
