"""Attention variants: all that a plugin imports.

    from dsabench.attention import Attention, AttentionContext, AttentionOutput, AttentionSpec, RunSpec, Stage, register

    class MySpec(AttentionSpec):
        kind: Literal["my_attention"] = "my_attention"

    @register
    class MyAttention(Attention):
        spec_class = MySpec

`base` holds the contract, `dsabench.spec.attention` the settings of the built-in variants, `dsabench.testing` the
contract as checks. Names are imported on first use: importing this package loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsabench.attention.ablations.selecting import SelectingAttention as SelectingAttention
    from dsabench.attention.base import Attention as Attention
    from dsabench.attention.base import AttentionContext as AttentionContext
    from dsabench.attention.base import AttentionOutput as AttentionOutput
    from dsabench.attention.base import Selection as Selection
    from dsabench.attention.base import Stage as Stage
    from dsabench.attention.base import capture as capture
    from dsabench.attention.base import pairs as pairs
    from dsabench.attention.dense import Dense as Dense
    from dsabench.attention.dsa.layer import DSA as DSA
    from dsabench.attention.registry import register as register
    from dsabench.spec.attention import AblationSpec as AblationSpec
    from dsabench.spec.attention import AttentionSpec as AttentionSpec
    from dsabench.spec.attention import DSASpec as DSASpec
    from dsabench.spec.attention import IndexerSpec as IndexerSpec
    from dsabench.spec.attention import SelectingSpec as SelectingSpec
    from dsabench.spec.run import RunSpec as RunSpec

_HOME = {
    "AblationSpec": "spec.attention",
    "Attention": "attention.base",
    "AttentionContext": "attention.base",
    "AttentionOutput": "attention.base",
    "AttentionSpec": "spec.attention",
    "DSA": "attention.dsa.layer",
    "DSASpec": "spec.attention",
    "Dense": "attention.dense",
    "IndexerSpec": "spec.attention",
    "RunSpec": "spec.run",
    "SelectingAttention": "attention.ablations.selecting",
    "SelectingSpec": "spec.attention",
    "Selection": "attention.base",
    "Stage": "attention.base",
    "capture": "attention.base",
    "pairs": "attention.base",
    "register": "attention.registry",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dsabench.attention' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dsabench.{_HOME[name]}"), name)
