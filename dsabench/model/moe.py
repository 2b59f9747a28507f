"""Mixture of experts: top-k routing, dropless, all experts in a few batched products, no loop and no host sync.

Legend: N tokens (batch and time together), D model width, F expert width, E experts, K experts a token, R = N K routes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsabench.kernels import swiglu
from dsabench.spec.fields import ModelSpec


@dataclass(frozen=True)
class RouterStatistics:
    """How one layer's router spread its tokens; all on the device, detached."""

    balance_loss: Tensor
    """Switch Transformer's load-balancing loss E sum_e f_e P_e (arXiv 2101.03961, eq. 4), not detached: 1 when even."""

    load_E: Tensor
    """f_e, the share of routes that each expert got; sums to 1."""

    entropy: Tensor
    """Mean entropy of the router's softmax in nats; ln E when it has no preference."""


class MixtureOfExperts(nn.Module):
    """y = sum over the K chosen experts of g_e * down_e(silu(gate_e x) * up_e x); g = softmax over the chosen logits.

    SwiGLU experts without biases; renormalised gates as in Mixtral (arXiv 2401.04088), for K = 1 the chosen expert's
    probability as in Switch Transformer (arXiv 2101.03961). Routing is per token, so a
    token's experts never depend on other positions: expert-choice routing would leak the future.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.n_experts, self.per_token = spec.n_experts, spec.experts_per_token
        self.router = nn.Linear(spec.d_model, spec.n_experts, bias=False)
        self.gate_EDF = nn.Parameter(torch.empty(spec.n_experts, spec.d_model, spec.d_ff))
        self.up_EDF = nn.Parameter(torch.empty(spec.n_experts, spec.d_model, spec.d_ff))
        self.down_EFD = nn.Parameter(torch.empty(spec.n_experts, spec.d_ff, spec.d_model))

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, RouterStatistics]:
        """(B, T, D) -> (B, T, D) and the router's statistics over all B T tokens."""
        x_ND = x_BTD.flatten(0, 1)
        with torch.autocast(x_BTD.device.type, enabled=False):  # routing decisions in full precision
            logits_NE = F.linear(x_ND.float(), self.router.weight.float()).to(
                torch.promote_types(x_ND.dtype, torch.float32)
            )
        top_NK, expert_NK = logits_NE.topk(self.per_token, dim=-1)
        if self.per_token > 1:
            weight_NK = top_NK.softmax(dim=-1)
        else:  # a softmax over one logit is 1 and teaches the router nothing: Switch's gate, p of the chosen expert
            weight_NK = logits_NE.softmax(dim=-1).gather(-1, expert_NK)
        # On a GPU, sorting the routes and grouped products cost more than they save unless most experts are idle.
        saves = x_ND.device.type == "cpu" or self.n_experts >= 4 * self.per_token
        route = self._grouped if saves and grouped_products_work(x_ND, self.gate_EDF.shape[-1]) else self._all_experts
        y_ND = route(x_ND, expert_NK, weight_NK)
        return y_ND.view_as(x_BTD), self._statistics(logits_NE, expert_NK)

    def _grouped(self, x_ND: Tensor, expert_NK: Tensor, weight_NK: Tensor) -> Tensor:
        """Sort the routes by expert and multiply each group by its own expert: K/E of the arithmetic."""
        dtype = x_ND.dtype
        # A radix sort passes over the key byte by byte: narrow keys are sorted several times faster than int64.
        narrow = torch.uint8 if self.n_experts <= 256 else torch.int16
        order_R = expert_NK.flatten().to(narrow).argsort(stable=True)
        ends_E = self._counts(expert_NK).cumsum(0, dtype=torch.int32)
        token_R = order_R // self.per_token
        x_RD = x_ND.index_select(0, token_R)
        gate_RF = F.grouped_mm(x_RD, self.gate_EDF.to(dtype), offs=ends_E)
        up_RF = F.grouped_mm(x_RD, self.up_EDF.to(dtype), offs=ends_E)
        y_RD = F.grouped_mm(F.silu(gate_RF) * up_RF, self.down_EFD.to(dtype), offs=ends_E)
        y_RD = y_RD * weight_NK.flatten()[order_R].to(dtype)[:, None]
        return torch.zeros_like(x_ND).index_add(0, token_R, y_RD)

    def _all_experts(self, x_ND: Tensor, expert_NK: Tensor, weight_NK: Tensor) -> Tensor:
        """Every expert on every token, weighted by 0 where not chosen: E/K times the arithmetic, in three products."""
        weight_NE = torch.zeros(len(x_ND), self.n_experts, dtype=weight_NK.dtype, device=x_ND.device)
        weight_NE = weight_NE.scatter(1, expert_NK, weight_NK)
        # Experts side by side as one wide layer: one product each way, and none to sum over experts.
        gate_NEF, up_NEF = (
            (x_ND @ weight_EDF.transpose(0, 1).flatten(1)).unflatten(1, (self.n_experts, -1))
            for weight_EDF in (self.gate_EDF, self.up_EDF)
        )
        return swiglu(gate_NEF, up_NEF, weight_NE).flatten(1) @ self.down_EFD.flatten(0, 1)

    def _counts(self, expert_NK: Tensor) -> Tensor:
        """Routes of each expert, (E,) int64; a comparison instead of bincount, whose output size needs the host."""
        return (expert_NK.flatten()[:, None] == torch.arange(self.n_experts, device=expert_NK.device)).sum(0)

    def _statistics(self, logits_NE: Tensor, expert_NK: Tensor) -> RouterStatistics:
        probability_NE = logits_NE.softmax(dim=-1)
        load_E = self._counts(expert_NK).to(probability_NE.dtype) / expert_NK.numel()
        balance_loss = self.n_experts * (load_E * probability_NE.mean(0)).sum()
        entropy = -torch.xlogy(probability_NE.detach(), probability_NE.detach()).sum(-1).mean()
        return RouterStatistics(balance_loss, load_E, entropy)

    @staticmethod
    def flops(spec: ModelSpec, length: int) -> dict[str, float]:
        """Forward and backward FLOPs of one window: router 6 L D E, and 18 L D F for each of the K active experts."""
        return {
            "router": 6.0 * length * spec.d_model * spec.n_experts,
            "experts": 18.0 * length * spec.d_model * spec.d_ff * spec.experts_per_token,
        }


def grouped_products_work(x_ND: Tensor, d_ff: int) -> bool:
    """Whether F.grouped_mm has a kernel here without a host sync: fp32 on the CPU, bf16 on Hopper, and rows of a
    multiple of 16 bytes on both sides."""
    if x_ND.shape[-1] * x_ND.element_size() % 16 or d_ff * x_ND.element_size() % 16:
        return False
    if x_ND.device.type == "cpu":
        return x_ND.dtype == torch.float32
    if x_ND.device.type != "cuda" or x_ND.dtype != torch.bfloat16:
        return False
    return torch.cuda.get_device_capability(x_ND.device) == (9, 0)
