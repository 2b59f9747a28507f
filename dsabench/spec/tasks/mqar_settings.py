"""The settings of `mqar`: multi-query associative recall in the shape in which it is published."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dsabench.spec.task_floors import Floor
from dsabench.spec.task_settings import FILLER, PAD, Count, TaskSettings
from dsabench.spec.tasks.queries import used_once


class Mqar(TaskSettings):
    """Multi-query associative recall as zoology's repository makes it (arXiv 2312.04927): `k7 v3 k2 v9 . . k2 . k7 .`.

    Pairs stand at the start without gaps, keys and values differ, and every key is asked once. A query's place is 2 g
    behind the pairs, where the gap g is drawn with probability proportional to (g + 1)^(power - 1), each once: few gaps
    are long, as between repeated words of a text. Two things are not as there, so that the floor is exact: which key
    has which gap is a matter of chance alone, and what lies between is noise of its own (`n_fillers`), no key or value.
    """

    size_field: ClassVar[str] = "n_pairs"

    name: Literal["mqar"] = Field("mqar", exclude=True)
    """What `data.source` says after `task:`; not to be given."""

    n_pairs: Count = 8
    """Pairs in a window, of different keys and values; also the task's size. A window takes 4 tokens a pair."""

    power: Annotated[float, Field(ge=0, le=1)] = 0.01
    """How gaps are distributed: 1 is uniform, 0 most are short; published with 0.01."""

    n_keys: Count = 4095
    """Different keys."""

    n_values: Count = 4096
    """Different values."""

    n_fillers: Count = 1
    """Different tokens between queries: 1 is a blank, more are noise."""

    @property
    def alphabet(self) -> tuple[tuple[str, int], ...]:
        """Padding, fillers, keys, values."""
        return (PAD, 1), (FILLER, self.n_fillers), ("k", self.n_keys), ("v", self.n_values)

    @property
    def floor(self) -> Floor:
        """Of a solver that sees the different values, and not which keys are asked for."""
        return Floor(1 / self.n_pairs, math.log(self.n_pairs))

    @property
    def answer_cover(self) -> int:
        """A filler, of several the first."""
        return self.first_id(FILLER)

    def tokens_needed(self, size: int) -> int:
        """Two tokens a pair and a query, and the target of the last input."""
        return 4 * size + 1

    def _check(self) -> None:
        used_once("n_pairs", self.n_pairs, "n_keys", self.n_keys)
        used_once("n_pairs", self.n_pairs, "n_values", self.n_values)
