"""fp32 master weights and their bf16 copies, which the matrix products use.

Legend: B batch, T time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dsabench import ops
from dsabench.engine.device import Execution
from dsabench.model.transformer import Transformer

_IN_FP32 = ("router.weight", "short_convolution.weight")


class Weights:
    """bf16 copies of the fp32 matrices, cast together once a step, and the way of their gradients back.

    Autocast gives the same values, but casts at each use of a matrix, forward and backward.
    """

    def __init__(self, model: Transformer, execution: Execution) -> None:
        self.call = _Call(model)
        self.masters: dict[str, nn.Parameter] = {}
        if execution.precision == "bf16" and ops.on_gpu(execution.device):
            # Not of vectors, nor of what computes in fp32: the router, the short convolution, and the embedding of the
            # input tokens.
            self.masters = {
                f"model.{name}": parameter
                for name, parameter in model.named_parameters()
                if parameter.ndim > 1 and not name.endswith(_IN_FP32) and name != "embedding.weight"
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

    def within(self, compute: Callable[[], Tensor]) -> Tensor:
        """compute() with the bf16 copies in the model's place of the masters. Its backward pass belongs inside, because
        recomputed blocks must see the same weights."""
        result: Tensor = torch.func.functional_call(self.call, self.narrow, (compute,))
        return result

    def collect(self) -> None:
        """Add the copies' gradients to the masters', in fp32."""
        fresh: tuple[list[Tensor], list[Tensor]] = ([], [])
        more: tuple[list[Tensor], list[Tensor]] = ([], [])
        for name, master in self.masters.items():
            grad, self.narrow[name].grad = self.narrow[name].grad, None
            if grad is None:
                continue
            to, of = fresh if master.grad is None else more
            if master.grad is None:
                master.grad = torch.empty_like(master)
            to.append(master.grad)
            of.append(grad)
        if fresh[0]:
            torch._foreach_copy_(*fresh)
        if more[0]:
            torch._foreach_add_(*more)


class _Call(nn.Module):
    """A module for functional_call, which replaces the model's weights while `compute` runs."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], Tensor]) -> Tensor:
        return compute()
