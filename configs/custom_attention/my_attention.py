"""Retention (RetNet, arXiv 2307.08621): attention without a softmax, in which every head forgets at a rate of its own.

    out[t] = norm(sum over s <= t of 2^(-(t - s) / half_life_h) * (Q[t] . K[s]) / sqrt(D) * V[s])

A worked example of an attention of your own. `dsabench guide attention` says what each part is for.

Legend: B batch, T query, S key, D model or head width, H heads, G key/value heads.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dsabench.attention import (
    Attention,
    AttentionContext,
    AttentionOutput,
    AttentionSpec,
    RunSpec,
    Stage,
    register,
)


class MyAttentionSpec(AttentionSpec):
    """Settings: what `--set attention.half_life=8` or an axis of a sweep may change."""

    kind: Literal["my_attention"] = "my_attention"
    """The variant's name."""

    half_life: Annotated[float, Field(gt=0)] = 8.0
    """Tokens after which the first head has forgotten half; each further head remembers twice as long."""


@register
class MyAttention(Attention):
    """Retention in its parallel form; the projections are those that all variants share."""

    spec_class = MyAttentionSpec

    def __init__(self, spec: RunSpec, layer: int) -> None:
        super().__init__(spec, layer)
        assert isinstance(spec.attention, MyAttentionSpec)
        half_life_H = spec.attention.half_life * 2.0 ** torch.arange(spec.model.n_heads)
        self.register_buffer("half_life_H", half_life_H, persistent=False)
        self.half_life_H: Tensor

    def forward(self, x_BTD: Tensor, context: AttentionContext) -> AttentionOutput:
        """(B, T, D) -> (B, T, D); no loss of its own, and the same in both stages."""
        q_BTHD, k_BSGD, v_BSGD = self.projections.heads(x_BTD, context)
        k_BSHD, v_BSHD = (z.repeat_interleave(q_BTHD.shape[2] // z.shape[2], dim=2) for z in (k_BSGD, v_BSGD))
        age_TS = (context.positions_T[:, None] - context.positions_T).clamp(min=0)
        decay_HTS = torch.exp2(-age_TS / self.half_life_H[:, None, None])
        # Never a later key, nor one of another document: (T, S), or (B, T, S) where documents are packed.
        kept = decay_HTS * context.allowed.unsqueeze(-3)
        weights_BHTS = torch.einsum("bthd,bshd->bhts", q_BTHD, k_BSHD) * q_BTHD.shape[-1] ** -0.5 * kept
        out_BTHD = torch.einsum("bhts,bshd->bthd", weights_BHTS.to(v_BSHD.dtype), v_BSHD)
        return AttentionOutput(self.projections.merge(F.rms_norm(out_BTHD, out_BTHD.shape[-1:], eps=1e-6)))

    def flops(self, stage: Stage) -> dict[str, float]:
        """Projections, and 12 D_model head_dim a token: a recurrent form, which the method allows, updates and reads a
        state of head_dim x head_dim a head. The forward pass above spends more; FLOPs count what the method needs."""
        model = self.spec.model
        return {
            "attention projections": self.projections.flops(self.spec),
            "attention": 12.0 * self.spec.length * model.d_model * model.head_dim,
        }

    def kept_per_pair(self, width: int) -> float:
        """Products and weights of every head, for the memory estimate on a GPU."""
        return 2.0 * width * self.spec.model.n_heads
