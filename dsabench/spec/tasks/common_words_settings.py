"""The settings of `common_words`: the most frequent words of a list."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dsabench.spec.task_floors import Floor
from dsabench.spec.task_settings import FILLER, PAD, Count, TaskSettings
from dsabench.spec.tasks.queries import used_once


class CommonWords(TaskSettings):
    """The most frequent words of a list (after RULER's common and frequent words, arXiv 2404.06654): `w3 w8 w3 w5 | |`.

    Rare words stand once each, common ones several times: the last of them `common_count` times, the one before it once
    more, and so on. Bars at the end ask for the common words, the most frequent first. To attend to one place is never
    enough: what counts is at how many places a word stands.
    """

    size_field: ClassVar[str] = "n_rare"

    name: Literal["common_words"] = Field("common_words", exclude=True)
    """What `data.source` says after `task:`; not to be given."""

    n_rare: Count = 16
    """Words that stand once; also the task's size."""

    n_common: Annotated[int, Field(ge=1, le=64)] = 3
    """Words that stand several times; each is an answer."""

    common_count: Annotated[int, Field(ge=2, le=1024)] = 6
    """Places at which the least frequent of the common words stands."""

    n_words: Count = 128
    """Different words, at least n_rare + n_common."""

    n_fillers: Count = 1
    """Different tokens between the words: 1 is a blank, more are noise."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Places of each common word, the most frequent first."""
        return tuple(self.common_count + i for i in reversed(range(self.n_common)))

    @property
    def width(self) -> int:
        """All places of the most frequent word."""
        return self.counts[0]

    @property
    def alphabet(self) -> tuple[tuple[str, int], ...]:
        """Padding, fillers, bar, words."""
        return (PAD, 1), (FILLER, self.n_fillers), ("|", 1), ("w", self.n_words)

    @property
    def floor(self) -> Floor:
        """Of a solver that sees which words stand in the list, and not how often: one of them all, which are different.
        With hidden answers it may guess the same word at every bar."""
        different = self.n_rare + self.n_common
        return Floor(1 / different, math.log(different))

    @property
    def answer_cover(self) -> int:
        """The bar."""
        return self.first_id("|")

    def tokens_needed(self, size: int) -> int:
        """The list, a bar, and a place for each answer."""
        return size + sum(self.counts) + 1 + self.n_common

    def _beside(self, size: int) -> str:
        return f", n_common = {self.n_common} and common_count = {self.common_count}"

    def _check(self) -> None:
        used_once("n_rare + n_common", self.n_rare + self.n_common, "n_words", self.n_words)
