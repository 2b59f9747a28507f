"""Making one layer's attention, and holding what it says of itself against what it is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from dsabench.attention.base import Attention, Stage
from dsabench.attention.faults import fault, said
from dsabench.attention.registry import variant
from dsabench.errors import DsabenchError

if TYPE_CHECKING:
    from dsabench.spec.run import RunSpec

DEBUG = "(`dsabench --debug` shows the traceback)"


def construct(spec: RunSpec, layer: int) -> Attention:
    """The attention that the spec names for one layer. Its weights are yet to be drawn.

    Raises SpecError naming its file when its constructor raises, or when what it says of its FLOPs, parameters or
    memory cannot be used.
    """
    spec = spec.of_layer(layer)
    kind = spec.attention.kind
    cls = variant(kind)
    try:
        attention = cls(spec, layer)
    except DsabenchError:
        raise
    except Exception as error:
        what = f"its constructor raised {said(error)}"
        if _builds_elsewhere(cls, spec, layer):
            what += (
                ". It also runs on PyTorch's meta device, where parameters are counted and tensors have no values: "
                "compute with Python numbers there, or where they are used"
            )
        raise fault(cls, kind, f"{what} {DEBUG}", error) from error
    wrong = _unsaid(attention) or _miscounted(attention)
    if wrong:
        raise fault(cls, kind, wrong)
    return attention


def _builds_elsewhere(cls: type[Attention], spec: RunSpec, layer: int) -> bool:
    """Whether the constructor fails on the meta device and works on the CPU."""
    if torch.get_default_device().type != "meta":
        return False
    try:
        with torch.device("cpu"):
            cls(spec, layer)
    except Exception:  # the same again
        return False
    return True


def _unsaid(attention: Attention) -> str | None:
    missing = [name for name in ("spec", "layer", "projections") if not hasattr(attention, name)]
    if not missing:
        return None
    return f"it has no attribute {', '.join(missing)}; its constructor must call super().__init__(spec, layer)"


def _miscounted(attention: Attention) -> str | None:
    """What is wrong with the result of flops, own_parameters or kept_per_pair; None when nothing is."""
    stages: tuple[Stage, ...] = ("dense", "sparse")
    asking = ""
    try:
        for stage in stages:
            asking = f"flops({stage!r})"
            items = attention.flops(stage)
            sound = isinstance(items, dict) and items and all(isinstance(name, str) for name in items)
            if not (sound and all(_is_size(value) and value > 0 for value in items.values())):
                return f"{asking} returned {items!r}; expected is a dict of FLOPs above zero by the name of the item"
        asking = "kept_per_pair(4)"
        kept = attention.kept_per_pair(4)
        if not _is_size(kept):
            return f"{asking} returned {kept!r}; expected is a number of bytes, 0 or more"
        asking = "own_parameters()"
        own, names = attention.own_parameters(), {name for name, _ in attention.named_parameters()}
    except Exception as error:
        raise fault(
            type(attention), attention.spec.attention.kind, f"{asking} raised {said(error)} {DEBUG}", error
        ) from error
    if not isinstance(own, set | frozenset) or own - names:
        strange = ", ".join(sorted(map(str, own - names))) if isinstance(own, set | frozenset) else repr(own)
        return f"{asking} names {strange}; expected is a set of names among its parameters {', '.join(sorted(names))}"
    return None


def _is_size(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0
