"""Batches, baselines and the interface of windows, the same for text and for tasks.

Legend: B windows, L inputs of a window, M listed positions of an answer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

SplitName = Literal["train", "val"]

FULL_NAME: dict[SplitName, str] = {"train": "training", "val": "validation"}


@dataclass(frozen=True, eq=False)
class Batch:
    """Windows of L + 1 tokens.

    Every window of a batch has the same number of scored inputs, so that the mean of the windows' means is the mean
    over all inputs. Packed documents are an exception: of them a few inputs in thousands are not scored.
    """

    tokens: NDArray[np.int32]
    """(B, L + 1) ids: inputs are [:, :-1] but for `answer_cover`, targets [:, 1:]."""

    scored: NDArray[np.bool_] | None = None
    """(B, L): True where the loss counts the token after input t; None where it counts all of them."""

    targets: NDArray[np.int32] | None = None
    """(B, L, M): positions that must be attended to for the answer at t, -1 where unused; None for a text."""

    documents: NDArray[np.int32] | None = None
    """(B, L): which document of the window each input belongs to, ascending; None where a window is one document."""

    most_documents: int | None = None
    """Documents of which a window has a part, at most, in any batch of the same data; None without `documents`."""

    answer_cover: int | None = None
    """The id that the model reads in the place of every scored target; None where it reads the target itself."""

    @property
    def inputs(self) -> NDArray[np.int32]:
        """(B, L) ids that the model reads."""
        inputs_BL = self.tokens[:, :-1]
        if self.answer_cover is None or self.scored is None:
            return inputs_BL
        covered: NDArray[np.int32] = inputs_BL.copy()
        covered[:, 1:][self.scored[:, :-1]] = self.answer_cover
        return covered

    def rows(self, first: int, end: int) -> Batch:
        """Windows first..end-1."""
        parts: dict[str, Any] = {name: x[first:end] for name, x in vars(self).items() if isinstance(x, np.ndarray)}
        return replace(self, **parts)

    @property
    def scored_targets(self) -> NDArray[np.int32]:
        """The tokens that the loss counts, of all windows, flat."""
        targets = self.tokens[:, 1:]
        return targets.ravel() if self.scored is None else targets[self.scored]

    @property
    def n_scored(self) -> int:
        """Scored inputs of all windows."""
        return self.tokens[:, 1:].size if self.scored is None else int(self.scored.sum())


@dataclass(frozen=True)
class Baseline:
    """The result on some windows that a model has to beat."""

    loss: float
    """Nats per scored token: of a text by token frequencies alone, of a task its floor."""

    accuracy: float | None
    """Share of right answers at that floor; None for a text."""

    bytes_per_token: float | None
    """UTF-8 bytes of text for each target; None for a task."""


def evenly_spaced(count: int, wanted: int) -> NDArray[np.int64]:
    """(min(count, wanted),) places in 0..count-1, ascending: the middles of `wanted` equal parts, or all places."""
    wanted = min(count, wanted)
    places: NDArray[np.int64] = (2 * np.arange(wanted) + 1) * count // (2 * wanted) if wanted else np.arange(0)
    return places


class WindowSource(Protocol):
    """The windows of one length, of a text or a task."""

    length: int
    notes: list[str]

    def batch(self, seed: int, step: int, batch_size: int, steps: int) -> Batch:
        """The windows of training step 0..steps-1: keyed by seed and step alone, so the same for every attention."""

    def evaluation(self, split: SplitName, max_tokens: int | None = None) -> Batch:
        """Fixed windows, at most ceil(max_tokens / length) of them; the same for every seed and attention."""

    def baseline(self, batch: Batch) -> Baseline:
        """The baseline of these windows."""


def what_fits(most: int) -> str:
    """The advice of an error about a length that is too long: the longest that both sides of the split have room for.
    A spec takes none below 2."""
    return f"a length of at most {most} fits" if most >= 2 else "no length fits"
