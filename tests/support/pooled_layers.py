"""Layers of DSA over pools, and what they learn from, for its tests with and without kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsabench.attention.base import AttentionContext
from dsabench.attention.pooled_dsa.layer import PooledDSA
from dsabench.attention.registry import variant
from dsabench.spec.run import RunSpec, validate

INDEXER = {"n_heads": 2, "head_dim": 8}


def spec_of(length: int = 20, **attention: Any) -> RunSpec:
    model = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 24}
    attention = {"kind": "pooled_dsa", "top_k": 6, "pool_size": 3, "indexer": INDEXER, **attention}
    return validate({"length": length, "attention": attention, "model": model})


def layer_of(spec: RunSpec) -> PooledDSA:
    module = variant(spec.attention.kind)(spec, 0)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    return module  # type: ignore[return-value]


def ids_of(length: int, seed: int, rows: int = 2, chance: float = 0.2) -> Tensor:
    return (torch.rand(rows, length, generator=torch.Generator().manual_seed(seed)) < chance).cumsum(1)


def x_of(length: int, rows: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(rows, length, 32, generator=torch.Generator().manual_seed(seed))


def learnt(spec: RunSpec, stage: Any, ids: Tensor | None, dtype: torch.dtype, rows: int = 2) -> dict[str, Tensor]:
    """Output and loss of one layer, and the gradients of parameters and input by both."""
    module = layer_of(spec).to(dtype)
    x = x_of(spec.length, rows).to(dtype).requires_grad_()
    context = AttentionContext(torch.arange(spec.length), stage, ids)
    module.prepare(context)
    output = module(x, context)
    assert output.aux_loss is not None
    ((output.out_BTD * x_of(spec.length, rows, seed=2)).sum() + 3 * output.aux_loss).backward()
    assert x.grad is not None
    grads = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    return {"out": output.out_BTD.detach(), "loss": output.aux_loss.detach(), "x": x.grad, **grads}


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1e-2))
