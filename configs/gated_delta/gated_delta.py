"""Gated DeltaNet (arXiv 2412.06464): a linear attention whose state forgets by a gate and corrects itself by the delta
rule.

    S[t] = alpha[t] S[t-1] (I - beta[t] k[t] k[t]^T) + beta[t] v[t] k[t]^T        out[t] = S[t] q[t] / sqrt(D)

q and k are convolved over 4 tokens, pass SiLU and have length 1; v is convolved and passes SiLU; alpha, beta and a gate
of the output come from the token. There is no rotary embedding. A chunk of tokens is computed at once, by the WY form
of the paper's section 3: memory and time grow with the length, not with its square.

From the paper and its authors' code (NVlabs/GatedDeltaNet; the layer in flash-linear-attention). Otherwise here: as
many heads and widths as the model's attention has, for a pair with dense attention (theirs has keys of 0.75 and values
of 1.5 times d_model); alpha's rates and steps start evenly spaced over the ranges that they are drawn from there.

Legend: B batch, T time, D model or head width, H heads, C tokens of a chunk, W width of the convolution.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dsabench.attention import (
    Attention,
    AttentionContext,
    AttentionOutput,
    AttentionSpec,
    RunSpec,
    Stage,
    register,
)


class GatedDeltaSpec(AttentionSpec):
    """Settings of Gated DeltaNet."""

    kind: Literal["gated_delta"] = "gated_delta"
    """The variant's name."""

    conv_width: Annotated[int, Field(ge=1, le=16)] = 4
    """Tokens that the short convolutions of queries, keys and values see, their own the last; 1 is none."""

    chunk: Annotated[int, Field(ge=1, le=1024)] = 64
    """Tokens that are computed at once; results differ by rounding alone."""


@register
class GatedDelta(Attention):
    """Gated DeltaNet's layer on the projections that all variants share."""

    spec_class = GatedDeltaSpec

    def __init__(self, spec: RunSpec, layer: int) -> None:
        super().__init__(spec, layer)
        assert isinstance(spec.attention, GatedDeltaSpec)
        model, self.chunk, self.conv_width = spec.model, spec.attention.chunk, spec.attention.conv_width
        n_heads = model.n_heads
        widths = [model.heads_width, *[model.kv_heads * model.head_dim] * 2]
        self.taps = nn.ParameterList(nn.Parameter(torch.ones(width, self.conv_width)) for width in widths)
        self.forget = nn.Linear(model.d_model, n_heads)
        self.write = nn.Linear(model.d_model, n_heads)
        self.gate = nn.Linear(model.d_model, model.heads_width, bias=False)
        self.norm = nn.RMSNorm(model.head_dim, eps=model.norm_eps)
        spread_H = (torch.arange(n_heads) + 0.5) / n_heads
        step_H = torch.exp(math.log(1e-3) + spread_H * math.log(100.0))  # 1e-3 to 0.1, as a Mamba's
        self.rate = nn.Parameter(torch.ones(n_heads))  # it multiplies the buffer
        self.register_buffer("rate_H", 1.0 + 15.0 * spread_H.flip(0), persistent=False)
        self.register_buffer("step_H", torch.log(torch.expm1(step_H)), persistent=False)
        self.rate_H: Tensor
        self.step_H: Tensor

    def prepare(self, context: AttentionContext) -> None:
        """Nothing is shared between layers: there is no rotation."""

    def forward(self, x_BTD: Tensor, context: AttentionContext) -> AttentionOutput:
        """(B, T, D) -> (B, T, D); no loss of its own, and the same in both stages."""
        ids_BT = context.document_ids_BT
        layers, width = (self.projections.query, self.projections.key, self.projections.value), self.norm.weight.numel()
        q_BTHD, k_BTHD, v_BTHD = (
            F.silu(_convolved(layer(x_BTD), taps_DW, ids_BT)).unflatten(-1, (-1, width))
            for layer, taps_DW in zip(layers, self.taps, strict=True)
        )
        groups = q_BTHD.shape[2] // k_BTHD.shape[2]
        k_BTHD, v_BTHD = (z.repeat_interleave(groups, dim=2) for z in (k_BTHD, v_BTHD))
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        with torch.autocast(x_BTD.device.type, enabled=False):  # a state that is summed over the whole text
            q_BTHD, k_BTHD = (F.normalize(z.to(wide), dim=-1, eps=1e-6) for z in (q_BTHD, k_BTHD))
            x_wide = x_BTD.to(wide)
            forget_BTH = F.linear(x_wide, self.forget.weight.to(wide), self.forget.bias.to(wide)) + self.step_H
            log_alpha_BTH = -self.rate * self.rate_H * F.softplus(forget_BTH)
            beta_BTH = torch.sigmoid(F.linear(x_wide, self.write.weight.to(wide), self.write.bias.to(wide)))
            mixed_BTHD = chunked(
                q_BTHD * width**-0.5, k_BTHD, v_BTHD.to(wide), log_alpha_BTH, beta_BTH, ids_BT, self.chunk
            )
        gated_BTHD = self.norm(mixed_BTHD.to(x_BTD.dtype)) * F.silu(self.gate(x_BTD)).unflatten(-1, (-1, width))
        return AttentionOutput(self.projections.merge(gated_BTHD))

    def flops(self, stage: Stage) -> dict[str, float]:
        """Projections and gates; of the recurrent form, which the method allows, 4 products of D x D a head and token:
        reading by k, correcting, forgetting, reading by q. The chunks above spend more."""
        model, length = self.spec.model, self.spec.length
        gates = model.heads_width + 2 * model.n_heads
        taps = 6.0 * length * sum(taps_DW.numel() for taps_DW in self.taps)
        return {
            "attention projections": self.projections.flops(self.spec) + 6.0 * length * model.d_model * gates + taps,
            "attention": 24.0 * length * model.heads_width * model.head_dim,
        }


def chunked(
    q_BTHD: Tensor,
    k_BTHD: Tensor,
    v_BTHD: Tensor,
    log_alpha_BTH: Tensor,
    beta_BTH: Tensor,
    ids_BT: Tensor | None,
    size: int,
) -> Tensor:
    """out[t] = S[t] q[t] of the gated delta rule, (B, T, H, D), in chunks of `size` tokens. k of length 1; q scaled.

    Inside a chunk, with G the running sum of log alpha and d(i, j) = exp(G[i] - G[j]): the values that the rule writes
    solve (I + A) u = beta (v - exp(G) S k), A[i, j] = beta[i] d(i, j) k[i] . k[j] for j < i. ids: no state passes from
    one document to the next.
    """
    n_batch, length, n_heads, width = q_BTHD.shape
    pad = -length % size

    def cut(z: Tensor) -> Tensor:
        """(B, T, H, ...) to (B, chunks, H, C, ...)."""
        return F.pad(z, (*[0, 0] * (z.dim() - 2), 0, pad)).unflatten(1, (-1, size)).transpose(2, 3)

    q, k, v, log_alpha, beta = map(cut, (q_BTHD, k_BTHD, v_BTHD, log_alpha_BTH, beta_BTH))
    if ids_BT is None:
        ids_BT = torch.zeros(n_batch, length, dtype=torch.int32, device=q.device)
    ids = torch.cat([ids_BT, ids_BT[:, -1:].expand(-1, pad)], 1).unflatten(1, (-1, size))
    below = torch.ones(size, size, dtype=torch.bool, device=q.device).tril()
    eye = torch.eye(size, dtype=q.dtype, device=q.device)
    state_BHDE = q.new_zeros(n_batch, n_heads, width, width)
    outs, before_B = [], ids[:, 0, 0]
    for n in range(q.shape[1]):
        q_BHCD, k_BHCD, v_BHCD, beta_BHC = q[:, n], k[:, n], v[:, n], beta[:, n]
        sum_BHC, ids_BC = log_alpha[:, n].cumsum(-1), ids[:, n]
        seen_BCC = below & (ids_BC[:, :, None] == ids_BC[:, None, :])
        gap_BHCC = (sum_BHC[..., :, None] - sum_BHC[..., None, :]).masked_fill(~seen_BCC[:, None], -torch.inf)
        decay_BHCC = gap_BHCC.exp()
        from_before_BHC = sum_BHC.exp() * (ids_BC == before_B[:, None])[:, None]
        a_BHCC = (beta_BHC[..., None] * decay_BHCC * (k_BHCD @ k_BHCD.transpose(-1, -2))).tril(-1)
        known_BHCD = v_BHCD - from_before_BHC[..., None] * (k_BHCD @ state_BHDE)
        written_BHCD = torch.linalg.solve_triangular(
            eye + a_BHCC, beta_BHC[..., None] * known_BHCD, upper=False, unitriangular=True
        )
        inside_BHCD = (decay_BHCC * (q_BHCD @ k_BHCD.transpose(-1, -2))) @ written_BHCD
        outs.append(from_before_BHC[..., None] * (q_BHCD @ state_BHDE) + inside_BHCD)
        kept_BHC = decay_BHCC[..., -1, :]
        state_BHDE = from_before_BHC[..., -1, None, None] * state_BHDE
        state_BHDE = state_BHDE + (kept_BHC[..., None] * k_BHCD).transpose(-1, -2) @ written_BHCD
        before_B = ids_BC[:, -1]
    return torch.cat(outs, dim=2)[:, :, :length].transpose(1, 2)


def _convolved(x_BTD: Tensor, taps_DW: Tensor, ids_BT: Tensor | None) -> Tensor:
    """sum over w of taps[w] x[t - (W - 1 - w)], within one document."""
    length, width = x_BTD.shape[1], taps_DW.shape[1]
    out_BTD = x_BTD * taps_DW[:, -1]
    for back in range(1, min(width, length)):
        earlier_BTD = F.pad(x_BTD[:, :-back], (0, 0, back, 0))
        if ids_BT is not None:
            same_BT = F.pad(ids_BT[:, back:] == ids_BT[:, :-back], (back, 0))
            earlier_BTD = earlier_BTD * same_BT[..., None]
        out_BTD = out_BTD + earlier_BTD * taps_DW[:, -1 - back]
    return out_BTD
