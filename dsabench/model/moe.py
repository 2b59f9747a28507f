"""Mixture of experts: top-k routing, dropless, all experts in a few batched products, no loop and no host sync.

Legend: N tokens (batch and time together), D model width, F expert width, E experts, K experts a token, R = N K routes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsabench import ops
from dsabench.spec.run import ModelSpec


@dataclass(frozen=True)
class RouterStatistics:
    """How one layer's router spread its tokens over experts; on the device, detached but for the balance loss."""

    balance_loss: Tensor
    """Switch Transformer's load-balancing loss E sum_e f_e P_e (arXiv 2101.03961, eq. 4), 1 when even. Not detached.
    That of Mixtral in `transformers` counts each of a token's K routes as a whole one, and so is K times larger."""

    load_E: Tensor
    """f_e, each expert's share of the routes; sums to 1."""

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

    def forward(
        self, x_BTD: Tensor, mean_load: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, RouterStatistics]:
        """(B, T, D) -> (B, T, D) and the router's statistics over all B T tokens; mean_load as ForwardPass has it."""
        x_ND = x_BTD.flatten(0, 1)
        grouped = self._grouping_saves(x_ND.device) and grouped_products_work(x_ND, self.gate_EDF.shape[-1])
        routes = ops.route(x_ND, self.router.weight, self.per_token, not grouped, mean_load)
        if grouped:
            y_ND = self._grouped(x_ND, routes.expert_NK, routes.weight)
        else:
            y_ND = self._side_by_side(x_ND, routes.weight)
        return y_ND.view_as(x_BTD), RouterStatistics(routes.balance_loss, routes.load_E, routes.entropy)

    def _grouping_saves(self, device: torch.device) -> bool:
        """Whether sorting the routes costs less than it saves. On a GPU: when most experts are idle, or half
        are and the products are large (on an H100 with 4 experts, 2 a token: grouped products are faster at
        D x F = 1024 x 2048, slower at 256 x 512)."""
        if (device.type == "cpu" and not ops.on_gpu(device)) or self.n_experts >= 4 * self.per_token:
            return True
        _, width, d_ff = self.gate_EDF.shape
        return self.n_experts >= 2 * self.per_token and width * d_ff >= 2**21

    def computed(self, device: torch.device) -> int:
        """Number of experts that are computed for each token on that device."""
        return self.per_token if self._grouping_saves(device) else self.n_experts

    def lay_out_for_products(self) -> None:
        """Where all experts are computed side by side, store gate and up in memory in the order (D, E, F).

        Shapes and values stay. The wide (D, E F) matrix of the product is then a view, not a copy each time, and its
        gradient has the parameter's own layout. To be called before an optimizer or copies exist.
        """
        if self._grouping_saves(self.gate_EDF.device):
            return
        for parameter in (self.gate_EDF, self.up_EDF):
            parameter.data = _side_by_side_layout(parameter.data)

    def _grouped(self, x_ND: Tensor, expert_NK: Tensor, weight_NK: Tensor) -> Tensor:
        """Sort the routes by expert and multiply each group by its expert: K/E of the arithmetic of all experts."""
        dtype = x_ND.dtype
        # A radix sort takes one pass for each byte of a key: narrow keys are sorted several times faster than int64.
        narrow = torch.uint8 if self.n_experts <= 256 else torch.int16
        order_R = expert_NK.flatten().to(narrow).argsort(stable=True)
        inverse_R = torch.empty_like(order_R).scatter_(0, order_R, torch.arange(len(order_R), device=order_R.device))
        ends_E = ops.count_routes(expert_NK, self.n_experts).cumsum(0, dtype=torch.int32)
        token_R, inverse_NK = order_R // self.per_token, inverse_R.view_as(expert_NK)
        x_RD = ops.to_routes(x_ND, token_R, inverse_NK)
        weight_R1 = ops.to_routes(weight_NK.reshape(-1, 1), order_R, inverse_R[:, None])
        gate_RF = F.grouped_mm(x_RD, self.gate_EDF.to(dtype), offs=ends_E)
        up_RF = F.grouped_mm(x_RD, self.up_EDF.to(dtype), offs=ends_E)
        hidden_RF = ops.swiglu(gate_RF[:, None], up_RF[:, None], weight_R1)[:, 0]
        y_RD = F.grouped_mm(hidden_RF, self.down_EFD.to(dtype), offs=ends_E)
        return ops.from_routes(y_RD, token_R, inverse_NK)

    def _all_experts(self, x_ND: Tensor, expert_NK: Tensor, weight_NK: Tensor) -> Tensor:
        """What `_grouped` computes, by `_side_by_side`."""
        weight_NE = torch.zeros(len(x_ND), self.n_experts, dtype=weight_NK.dtype, device=x_ND.device)
        return self._side_by_side(x_ND, weight_NE.scatter(1, expert_NK, weight_NK))

    def _side_by_side(self, x_ND: Tensor, weight_NE: Tensor) -> Tensor:
        """Every expert on every token, weighted by 0 where not chosen: E/K times the arithmetic, in three products."""
        # Experts side by side are one wide layer, whose last product also sums over experts.
        gate_NEF, up_NEF = (
            (x_ND @ weight_EDF.transpose(0, 1).flatten(1)).unflatten(1, (self.n_experts, -1))
            for weight_EDF in (self.gate_EDF, self.up_EDF)
        )
        return ops.swiglu(gate_NEF, up_NEF, weight_NE).flatten(1) @ self.down_EFD.flatten(0, 1)

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
    if ops.on_gpu(x_ND.device):
        return x_ND.dtype == torch.bfloat16 and ops.gpu_of(x_ND.device).capability == (9, 0)
    return x_ND.device.type == "cpu" and x_ND.dtype == torch.float32


def _side_by_side_layout(weight_EDF: Tensor) -> Tensor:
    """The same values with memory in the order (D, E, F)."""
    return weight_EDF.transpose(0, 1).contiguous().transpose(0, 1)
