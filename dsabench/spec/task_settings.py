"""The base of all synthetic tasks' settings, which decide their windows. Nothing here draws a number.

A task's difficulty is one number, its `size` (pairs, needles, symbols, digits), and the span of the window over which
it is spread. With L inputs a window has L + 1 tokens, and size n takes tokens_needed(n) of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dsabench.spec.strict_model import Formerly, Positive, Spec
from dsabench.spec.task_floors import Floor

Count = Annotated[int, Field(ge=1, le=16_384)]
"""A number of things in a window, or of ids that have one role."""

Answers = Annotated[Literal["hidden", "shown"], Formerly("shown")]
"""Whether answers are labels alone, or inputs too."""

PAD, FILLER = "_", "."


class Curriculum(Spec):
    """The growth of difficulty over the first steps. The window length stays; places that are not used are padding."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the steps over which difficulty grows; the rest, and always the last step, are at full difficulty."""

    start: Positive | None = None
    """The task's size at the first step; null is an eighth of the full one, or the least there is."""

    start_span: Positive | None = None
    """Tokens over which the first step's task is spread; null is the share of the window that `start` is of the full
    size, or what it takes."""

    growth: Literal["doubling", "linear"] = "doubling"
    """`doubling` doubles size and span at equal distances, `linear` adds a little each step."""


class TaskSettings(Spec, ABC):
    """Base of every task's settings."""

    name: str
    """What `data.source` says after `task:`; not to be given."""

    size_field: ClassVar[str]
    """The field that is the task's size."""

    least: ClassVar[int] = 1
    """The smallest size that asks anything."""

    curriculum: Curriculum | None = Curriculum()
    """How difficulty grows in training; null is full difficulty from the first step. Evaluation is always at full."""

    @property
    def size(self) -> int:
        """The full size."""
        return int(getattr(self, self.size_field))

    @property
    def width(self) -> int:
        """M: the most positions that one answer needs."""
        return 1

    @property
    def start(self) -> int:
        """The size at the first step."""
        if self.curriculum is None:
            return self.size
        return self.curriculum.start or max(self.least, self.size // 8)

    @property
    def vocab_size(self) -> int:
        """Ids that the model must embed."""
        return sum(count for _, count in self.alphabet)

    @property
    @abstractmethod
    def alphabet(self) -> tuple[tuple[str, int], ...]:
        """(name, how many) of each kind of id, from id 0 on; the first is the padding."""

    @property
    @abstractmethod
    def floor(self) -> Floor:
        """Accuracy and loss of the best solver that does not see what the task is about, at full difficulty."""

    @property
    def answer_cover(self) -> int | None:
        """The id that the model reads in the place of each answer; None where it reads the answer itself."""
        return None

    def first_id(self, kind: str) -> int:
        """The first id of a kind of the alphabet."""
        first = 0
        for name, count in self.alphabet:
            if name == kind:
                return first
            first += count
        raise AssertionError(f"{self.name} has no ids called {kind!r}")

    @abstractmethod
    def tokens_needed(self, size: int) -> int:
        """Tokens that the task takes at `size`, with nothing between its parts."""

    def check_length(self, length: int) -> None:
        """Raises ValueError, saying what would fit, unless a window of `length` inputs holds the task."""
        needed = self.tokens_needed(self.size)
        if needed > length + 1:
            fits = [size for size in range(self.least, self.size) if self.tokens_needed(size) <= length + 1]
            smaller = f"{self.size_field} = {fits[-1]}{self._beside(fits[-1])} would fit, or " if fits else ""
            raise ValueError(
                f"task {self.name} with {self.size_field} = {self.size}{self._beside(self.size)} takes {needed} "
                f"tokens, and a window of length {length} has {length + 1}; {smaller}a length of at least {needed - 1}"
            )
        span = None if self.curriculum is None else self.curriculum.start_span
        if span is not None and span > length:
            raise ValueError(f"curriculum.start_span = {span} is more than the length {length}; at most {length} fits")

    def _beside(self, size: int) -> str:
        """Words for error messages: what else stands in the window at this size."""
        return ""

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        self._check()
        if self.curriculum is None:
            return self
        if not self.least <= self.start <= self.size:
            raise ValueError(
                f"curriculum.start = {self.start} is not a size from {self.least} to {self.size_field} = {self.size}"
            )
        span, needed = self.curriculum.start_span, self.tokens_needed(self.start) - 1
        if span is not None and span < needed:
            raise ValueError(
                f"curriculum.start_span = {span} does not hold {self.size_field} = {self.start}"
                f"{self._beside(self.start)}; at least {needed} does"
            )
        return self

    def _check(self) -> None:
        """Raises ValueError where fields contradict each other."""
