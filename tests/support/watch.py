"""A watch over the size of the tensors that a computation makes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Watch(TorchDispatchMode):
    """Fails at the first operation that gives a tensor of `limit` elements or more."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit, self.seen = limit, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().nbytes() > 0:  # expanded ones take no memory
                own = min(tensor.numel(), tensor.untyped_storage().nbytes() // tensor.element_size())
                self.seen = max(self.seen, own)
                if own >= self.limit:
                    raise AssertionError(f"{func} gives {tuple(tensor.shape)}")
        return out
