"""The settings of `multi_needle`: several values of a key, scattered in a haystack."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dsabench.spec.task_floors import Floor
from dsabench.spec.task_settings import PAD, Count, TaskSettings
from dsabench.spec.tasks.queries import asked, used_once


class MultiNeedle(TaskSettings):
    """Needles of several values (RULER's multi-key, multi-value and multi-query retrieval, arXiv 2404.06654).

    `w4 k2 v9 w7 k5 v3 .. k2 v6 .. ? k2 ? ?`: in a haystack of words each key stands `values_per_key` times, each time
    with another value. At the end of the window some keys are asked for, and the answers are all of the key's values,
    in the order in which they stand. A window's values are all different.
    """

    size_field: ClassVar[str] = "n_needles"

    name: Literal["multi_needle"] = Field("multi_needle", exclude=True)
    """What `data.source` says after `task:`; not to be given."""

    n_needles: Count = 4
    """Keys in the haystack; also the task's size."""

    values_per_key: Annotated[int, Field(ge=1, le=64)] = 2
    """Places at which a key stands, with a value each."""

    n_queries: Count | None = None
    """Keys that are asked for, each once; null is all of them."""

    n_keys: Count = 64
    """Different keys."""

    n_values: Count = 128
    """Different values, at least n_needles * values_per_key."""

    n_words: Count = 128
    """Different words of the haystack."""

    @property
    def alphabet(self) -> tuple[tuple[str, int], ...]:
        """Padding, question mark, keys, values, words."""
        return (PAD, 1), ("?", 1), ("k", self.n_keys), ("v", self.n_values), ("w", self.n_words)

    @property
    def floor(self) -> Floor:
        """Of a solver that sees keys and values in the haystack, and not which keys are asked for: the values are
        different, so one of n_needles."""
        return Floor(1 / self.n_needles, math.log(self.n_needles))

    @property
    def answer_cover(self) -> int:
        """The question mark."""
        return self.first_id("?")

    def tokens_needed(self, size: int) -> int:
        """A key and a value at each place; question mark, key and values of a query."""
        return size * self.values_per_key * 2 + asked(size, self.n_needles, self.n_queries) * (2 + self.values_per_key)

    def _beside(self, size: int) -> str:
        queries = asked(size, self.n_needles, self.n_queries)
        return f", n_queries = {queries} and values_per_key = {self.values_per_key}"

    def _check(self) -> None:
        used_once("n_queries", self.n_queries, "n_needles", self.n_needles)
        used_once("n_needles", self.n_needles, "n_keys", self.n_keys)
        used_once("n_needles * values_per_key", self.n_needles * self.values_per_key, "n_values", self.n_values)
