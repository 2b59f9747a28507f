"""Specs to audit, and attentions that look ahead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dsabench.attention import registry
from dsabench.attention.base import AttentionContext, AttentionOutput
from dsabench.attention.dsa.layer import DSA
from dsabench.audit import gate
from dsabench.audit.findings import Audit
from dsabench.engine.device import resolve
from dsabench.spec.run import RunSpec, validate

INDEXER = {"n_heads": 2, "head_dim": 8}


CPU = torch.device("cpu")


def spec_of(length: int = 80, seed: int = 42, allow_leak: bool = False, model: Any = None, **attention: Any) -> RunSpec:
    sizes = {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 16, **(model or {})}
    kind = attention or {"kind": "dsa", "top_k_ratio": 0.5, "indexer": INDEXER}
    values = {"length": length, "seed": seed, "attention": kind, "model": sizes, "engine": {"device": "cpu"}}
    return validate({**values, "allow_leak": allow_leak})


def audit(spec: RunSpec) -> Audit:
    found = gate.audit(spec, 101, resolve(spec.engine))
    if found.crash is not None:
        raise found.crash
    return found


class Leaky(DSA):
    """DSA plus a small defect: `defect(self, x, context)` is added to its output."""

    defect: Callable[[Any, Tensor, AttentionContext], Tensor]

    def __init__(self, spec: RunSpec, layer: int) -> None:
        super().__init__(spec, layer)
        self.calls = 0
        self.batch_norm = nn.BatchNorm1d(spec.model.d_model, affine=False)

    def forward(self, x_BTD: Tensor, context: AttentionContext) -> AttentionOutput:
        output = super().forward(x_BTD, context)
        self.calls += 1
        added = type(self).defect(self, x_BTD, context)
        return AttentionOutput(output.out_BTD + added, output.aux_loss)


def plant(monkeypatch: pytest.MonkeyPatch, defect: Callable[[Any, Tensor, AttentionContext], Tensor]) -> None:
    monkeypatch.setattr(Leaky, "defect", staticmethod(defect), raising=False)
    monkeypatch.setitem(registry._variants, "dsa", Leaky)


def peek(x_BTD: Tensor) -> Tensor:
    """The next position's input, nothing at the last position."""
    return torch.cat([x_BTD[:, 1:], torch.zeros_like(x_BTD[:, :1])], dim=1)


def every_seventh(x_BTD: Tensor) -> Tensor:
    at_T = torch.arange(x_BTD.shape[1], device=x_BTD.device) % 7 == 3
    return peek(x_BTD) * at_T[:, None]


def normed(self: Any, x_BTD: Tensor, context: AttentionContext) -> Tensor:
    y: Tensor = self.batch_norm.to(x_BTD.dtype)(x_BTD.flatten(0, 1)).view_as(x_BTD)
    return y
