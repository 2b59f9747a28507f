"""The weights that a run starts from: those of a trained model, wherever both models have a parameter."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dsabench.engine.checkpoint import tensor_shapes, tensors
from dsabench.model.foreign import read_checkpoint
from dsabench.model.transformer import Transformer
from dsabench.spec.foreign_folder import is_foreign

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
    """The folder of its weights, a checkpoint of dsabench or a model that others trained; None for a run that resumes
    from a checkpoint of its own."""

    def load_into(self, model: Transformer) -> None:
        """Give the model the values of all parameters that both have, in fp32; `mismatch` must have found none.

        Raises StoreError or CheckpointError when a file cannot be read.
        """
        assert self.folder is not None, "the run resumes"
        if is_foreign(self.folder):
            read_checkpoint(self.folder).copy_into(model)
            return
        values = tensors(self.folder / "model.safetensors")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in values:
                    parameter.copy_(values[name])


def shapes_of(model: Transformer) -> Shapes:
    """The shapes of a model's parameters; the model may be an `outline`."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def stored_shapes(folder: Path) -> Shapes:
    """The shapes of the parameters in a folder of weights. Raises StoreError, or CheckpointError."""
    return read_checkpoint(folder).shapes if is_foreign(folder) else tensor_shapes(folder / "model.safetensors")


def mismatch(trained: Shapes, wanted: Shapes, own: Collection[str] | None = None) -> str:
    """Why a model of the shapes `wanted` cannot start from a trained one, parameter by parameter; "" if it can.

    A parameter of an attention may be in one of them alone (an indexer), any other must be in both, and so must its
    projections, which all attentions of one layout have. own: the only ones
    that the trained model need not have; it then has none that is not wanted.
    """
    found = []
    for name in dict.fromkeys([*wanted, *trained]):
        ours, theirs = wanted.get(name), trained.get(name)
        if own is None:
            alone = ".attention." in name and ".attention.projections." not in name
        else:
            alone = name in own and theirs is None
        if ours != theirs and not (None in (ours, theirs) and alone):
            found.append(f"{name} is {_words(theirs)}, and here {_words(ours)}")
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more


def _words(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else " x ".join(map(str, shape))
