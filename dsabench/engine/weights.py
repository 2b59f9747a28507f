"""fp32 master weights and their bf16 copies, which the matrix products use.

Legend: B batch, T time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsabench.engine.device import Execution
from dsabench.model.transformer import Features, Transformer


class Weights:
    """The matrices in bf16 beside their fp32 masters: cast together once a step, and their gradients back.

    Autocast gives the same values, by a kernel for each use of each matrix, forward and backward.
    """

    def __init__(self, model: Transformer, execution: Execution) -> None:
        self.model = _Losses(model)
        self.masters: dict[str, nn.Parameter] = {}
        if execution.precision == "bf16" and execution.device.type == "cuda":
            # Vectors stay in fp32, and so does what computes in fp32: the router, and the embedding on its way in.
            self.masters = {
                f"model.{name}": parameter
                for name, parameter in model.named_parameters()
                if parameter.ndim > 1 and not name.endswith("router.weight") and name != "embedding.weight"
            }
        self.narrow = {
            name: torch.empty_like(parameter, dtype=torch.bfloat16).requires_grad_()
            for name, parameter in self.masters.items()
        }

    def cast(self) -> None:
        """Bring the bf16 copies up to date."""
        if self.masters:
            with torch.no_grad():
                torch._foreach_copy_(list(self.narrow.values()), list(self.masters.values()))

    def call(self, tokens_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Features]:
        """Transformer.training_losses with the bf16 copies."""
        result: tuple[Tensor, Features] = torch.func.functional_call(self.model, self.narrow, (tokens_BT, targets_BT))
        return result

    def collect(self) -> None:
        """Give the masters their gradients, in fp32."""
        wide: list[Tensor] = []
        grads: list[Tensor] = []
        for name, master in self.masters.items():
            grad = self.narrow[name].grad
            if grad is not None:
                master.grad = torch.empty_like(master)
                wide.append(master.grad)
                grads.append(grad)
                self.narrow[name].grad = None
        if grads:
            torch._foreach_copy_(wide, grads)


class _Losses(nn.Module):
    """Transformer.training_losses as a forward: what functional_call can call."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Features]:
        return self.model.training_losses(tokens_BT, targets_BT)
