"""The backend that an attention computes with on this machine; decided before a run, which records it."""

from __future__ import annotations

from dsabench import ops
from dsabench.attention.registry import variant
from dsabench.engine.device import Execution
from dsabench.spec.run import RunSpec


def resolved(spec: RunSpec, execution: Execution) -> RunSpec:
    """The spec with the attention's `auto` decided for the execution's device. Run ids are made of the unresolved spec.

    Raises SpecError when the attention asks for what does not run there.
    """
    attention = variant(spec.attention.kind).resolve(spec, why_no_kernels(execution))
    return spec if attention == spec.attention else spec.model_copy(update={"attention": attention})


def backend(spec: RunSpec, execution: Execution) -> str | None:
    """The backend by name; None for an attention that has no choice of them."""
    attention = resolved(spec, execution).attention
    name = getattr(attention, "backend", getattr(attention, "selection_backend", None))
    return name if isinstance(name, str) else None


def why_no_kernels(execution: Execution) -> str | None:
    """Why our Triton kernels do not run in this execution; None when they do."""
    device = execution.device
    if execution.fused:
        return None
    if device.type != "cuda":
        return f"it needs a CUDA GPU, and the device is {device}"
    return ops.why_not(device) or "engine.kernels = off"
