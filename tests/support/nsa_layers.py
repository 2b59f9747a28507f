"""Layers of NSA, and what they learn from, for its tests with and without kernels."""

from __future__ import annotations

from typing import Any

import torch
from pooled_layers import x_of
from torch import Tensor

from dsabench.attention.base import AttentionContext
from dsabench.attention.nsa.layer import NSA
from dsabench.attention.registry import variant
from dsabench.spec.run import RunSpec, validate

SIZES = {"compression_block": 4, "compression_stride": 2, "selection_block": 4, "selected_blocks": 4, "window": 3}


def spec_of(length: int = 20, n_kv_heads: int = 2, **attention: Any) -> RunSpec:
    model = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": n_kv_heads, "d_ff": 24}
    return validate({"length": length, "attention": {"kind": "nsa", **SIZES, **attention}, "model": model})


def layer_of(spec: RunSpec) -> NSA:
    module = variant("nsa")(spec, 0)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    assert isinstance(module, NSA)
    return module


def learnt(spec: RunSpec, ids: Tensor | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """Output of one layer, and the gradients of parameters and input."""
    module = layer_of(spec).to(dtype)
    x = x_of(spec.length).to(dtype).requires_grad_()
    context = AttentionContext(torch.arange(spec.length), "sparse", ids)
    module.prepare(context)
    out = module(x, context).out_BTD
    (out * x_of(spec.length, seed=2)).sum().backward()
    assert x.grad is not None
    grads = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert grads.keys() == dict(module.named_parameters()).keys()
    return {"out": out.detach(), "x": x.grad, **grads}
