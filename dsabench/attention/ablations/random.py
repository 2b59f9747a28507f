"""Random selection of k tokens, new in every training step, fixed in evaluation: the baseline of all selections.

    score[t, s] = hash(t, s, layer, step)

Selections are hashed, not drawn from a random stream: they depend on no other token, row or call, so they cannot leak,
and runs of all seeds and a resumed run see the same ones. The hash is lowbias32 (Chris Wellons, public domain).

Legend: T query, S key.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsabench.attention.ablations.selecting import SelectingAttention, first_keys
from dsabench.attention.base import AttentionContext
from dsabench.attention.registry import register
from dsabench.spec.attention import RandomSpec

_LOW = 0xFFFFFFFF


@register
class Random(SelectingAttention):
    """Attention over k tokens that a hash picks."""

    spec_class = RandomSpec

    def scores(self, q_BTHD: Tensor, k_BSGD: Tensor, context: AttentionContext) -> Tensor:
        """24 hashed bits in [0, 1)."""
        hashed_TS = _mix(self._queries(context)[:, None] + context.positions_T[None, :] * 0x27D4EB2F)
        return (hashed_TS >> 8).float() * 2.0**-24

    def select(self, q_BTHD: Tensor, k_BSGD: Tensor, k: int, context: AttentionContext) -> Tensor:
        """The same keys, by a kernel; one row where no documents are packed."""
        from dsabench.attention.ablations.triton.index_lists import hashed

        return hashed(self._queries(context).to(torch.int32), first_keys(context), k)

    def _queries(self, context: AttentionContext) -> Tensor:
        """(T,): what layer, step and query add to a hash, 32 bits in an int64."""
        place_T = context.positions_T
        # Made on the device, because a copy from the host cannot be captured in a CUDA graph.
        step = place_T.new_zeros(1) if context.step is None else context.step
        key = _mix(step * 0x9E3779B1 + self.layer * 0x85EBCA77)
        return _mix(place_T * 0xC2B2AE3D + key)


def _mix(x: Tensor) -> Tensor:
    """Spread the low 32 bits of an int64 over each other."""
    x = x & _LOW
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _LOW
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _LOW
    return x ^ (x >> 16)
