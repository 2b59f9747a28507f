"""The weights that a run starts from: those of a trained model, wherever both models have a parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dsabench.engine.checkpoint import tensor_shapes, tensors
from dsabench.model.transformer import Transformer

_SHOWN = 6
"""Parameters that a message names."""

Shapes = Mapping[str, tuple[int, ...]]
"""{name of a parameter: its shape}."""


@dataclass(frozen=True)
class StartingPoint:
    """What a training loop is told of the trained model that its run starts from."""

    steps: int
    """Steps behind that model, those of its own parents included: step s takes the batch of step `steps` + s."""

    folder: Path | None = None
    """The checkpoint's folder; None for a run that resumes from a checkpoint of its own."""

    def load_into(self, model: Transformer) -> None:
        """Give the model the checkpoint's values of all parameters that both have; `mismatch` must have found none.

        Raises StoreError when the file cannot be read.
        """
        assert self.folder is not None, "the run resumes"
        values = tensors(self.folder / "model.safetensors")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in values:
                    parameter.copy_(values[name])


def shapes_of(model: Transformer) -> Shapes:
    """The shapes of a model's parameters; the model may be an `outline`."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def stored_shapes(folder: Path) -> Shapes:
    """The shapes of a checkpoint's parameters. Raises StoreError."""
    return tensor_shapes(folder / "model.safetensors")


def mismatch(trained: Shapes, wanted: Shapes) -> str:
    """Why a model of the shapes `wanted` cannot start from a trained one, parameter by parameter; "" if it can.

    A parameter of an attention may be in one of them alone (an indexer), any other must be in both.
    """
    found = []
    for name in dict.fromkeys([*wanted, *trained]):
        ours, theirs = wanted.get(name), trained.get(name)
        if ours != theirs and not (None in (ours, theirs) and ".attention." in name):
            found.append(f"{name} is {_words(theirs)}, and here {_words(ours)}")
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more


def _words(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else " x ".join(map(str, shape))
