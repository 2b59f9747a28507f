"""The settings of `needle`: a needle in a haystack."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dsabench.spec import task_floors
from dsabench.spec.task_floors import Floor
from dsabench.spec.task_settings import PAD, Answers, Count, TaskSettings
from dsabench.spec.tasks.queries import asked, used_once


class Needle(TaskSettings):
    """Needle in a haystack: `w4 w9 k2 w7 w1 w3 .. w6 ? k2 ? ?`.

    A haystack of words. Somewhere in it keys, each followed by its value, a few words like any others; at the end of
    the window some keys are asked for, and the answer is the value, word by word. Question marks stand in its place.
    """

    size_field: ClassVar[str] = "n_needles"

    name: Literal["needle"] = Field("needle", exclude=True)
    """What `data.source` says after `task:`; not to be given."""

    n_needles: Count = 4
    """Keys in the haystack; also the task's size."""

    n_queries: Count | None = None
    """Keys that are asked for, each once; null is all of them."""

    value_length: Annotated[int, Field(ge=1, le=64)] = 2
    """Words in a value."""

    n_keys: Count = 64
    """Different keys."""

    n_words: Annotated[int, Field(ge=2, le=16_384)] = 128
    """Different words, of the haystack and of values."""

    answers: Answers = "hidden"
    """`hidden`: an answer is a label, and question marks stand in its place. `shown`: it is written behind its query,
    as in versions up to 0.1; then its second word follows from the first without the key."""

    @property
    def alphabet(self) -> tuple[tuple[str, int], ...]:
        """Padding, question mark, keys, words."""
        return (PAD, 1), ("?", 1), ("k", self.n_keys), ("w", self.n_words)

    @property
    def floor(self) -> Floor:
        """Of a solver that sees keys and values in the haystack, and not which keys are asked for."""
        n_queries = asked(self.size, self.n_needles, self.n_queries)
        if self.answers == "hidden":
            return task_floors.one_of(self.n_needles, self.n_words)
        return task_floors.word_of_the_rest(self.n_needles, self.n_words, n_queries, self.value_length)

    @property
    def answer_cover(self) -> int | None:
        """The question mark."""
        return self.first_id("?") if self.answers == "hidden" else None

    def tokens_needed(self, size: int) -> int:
        """Key and value of a needle; question mark, key and value of a query."""
        return size * (1 + self.value_length) + asked(size, self.n_needles, self.n_queries) * (2 + self.value_length)

    def _beside(self, size: int) -> str:
        queries = asked(size, self.n_needles, self.n_queries)
        return f", n_queries = {queries} and value_length = {self.value_length}"

    def _check(self) -> None:
        used_once("n_queries", self.n_queries, "n_needles", self.n_needles)
        used_once("n_needles", self.n_needles, "n_keys", self.n_keys)
