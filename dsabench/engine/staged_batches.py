"""Batches of a segment on their way to the device.

Legend: S steps, B batch, T time.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsabench.data import Batch

_REFUSED = ("invalid argument", "out of memory")
"""What CUDA says where the system gives a process no more page-locked memory: a container's limit, say."""


class Staged(NamedTuple):
    """A segment's batches: the arguments of TrainStep.run."""

    tokens_SBT: Tensor
    """(S, B, T + 1), inputs and targets."""

    scored_SBT: Tensor | None
    """Which targets count."""

    documents_SBT: Tensor | None
    """Which of its window's documents each input belongs to."""

    most_documents: int | None
    """As Batch has it."""


def staged(batches: Sequence[Batch], device: torch.device) -> Staged:
    """A segment's batches as tensors; for a GPU `pinned`."""

    def stacked(arrays: Sequence[NDArray[Any]]) -> Tensor:
        tensor = torch.from_numpy(np.stack(arrays))
        return pinned(tensor) if device.type == "cuda" else tensor

    scored = [batch.scored for batch in batches if batch.scored is not None]
    documents = [batch.documents for batch in batches if batch.documents is not None]
    return Staged(
        tokens_SBT=stacked([batch.tokens.astype(np.int64) for batch in batches]),
        scored_SBT=stacked(scored) if scored else None,
        documents_SBT=stacked(documents) if documents else None,
        most_documents=batches[0].most_documents,
    )


def pinned(tensor: Tensor) -> Tensor:
    """The tensor in page-locked memory, from which a GPU copies while the host goes on.

    Where the system gives no more of it, the tensor as it is: the same numbers, and the host waits for each copy. A
    warning says so.
    """
    try:
        return tensor.pin_memory()
    except RuntimeError as error:
        if not any(words in str(error) for words in _REFUSED):
            raise
        warnings.warn(
            "the system gives no more page-locked memory (a limit of this container or user), so copies to the GPU are "
            "slower; numbers are the same",
            stacklevel=2,
        )
        return tensor
