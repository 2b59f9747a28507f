"""The backend that an attention computes with on this machine; decided before a run, which records it."""

from __future__ import annotations

from dsabench import ops
from dsabench.attention.registry import variant
from dsabench.engine.device import Execution
from dsabench.spec.attention import AttentionSpec
from dsabench.spec.run import RunSpec


def resolved(spec: RunSpec, execution: Execution) -> RunSpec:
    """The spec with the attention's `auto` decided for the execution's device. Run ids are made of the unresolved spec.

    Raises SpecError when the attention asks for what does not run there.
    """
    no_kernels = why_no_kernels(execution)

    def of_layer(one: AttentionSpec) -> AttentionSpec:
        return variant(one.kind).resolve(spec.model_copy(update={"attention": one}), no_kernels)

    attention = spec.attention.each(of_layer)
    return spec if attention == spec.attention else spec.model_copy(update={"attention": attention})


def backend(spec: RunSpec, execution: Execution) -> str | None:
    """The backend by name, several where layers differ; None for an attention that has no choice of them."""
    layers = resolved(spec, execution).attention.distinct()
    names = [getattr(one, "backend", getattr(one, "selection_backend", None)) for one in layers]
    return " and ".join(dict.fromkeys(name for name in names if isinstance(name, str))) or None


def why_no_kernels(execution: Execution) -> str | None:
    """Why our Triton kernels do not run in this execution; None when they do."""
    device = execution.device
    if execution.fused:
        return None
    if device.type != "cuda":
        return f"it needs a CUDA GPU, and the device is {device}"
    return ops.why_not(device) or "engine.kernels = off"
