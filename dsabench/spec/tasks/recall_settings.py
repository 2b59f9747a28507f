"""The settings of `recall`: multi-query associative recall."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dsabench.spec import task_floors
from dsabench.spec.task_floors import Floor
from dsabench.spec.task_settings import FILLER, PAD, Answers, Count, TaskSettings
from dsabench.spec.tasks.queries import asked, used_once


class Recall(TaskSettings):
    """Multi-query associative recall (Arora et al., Zoology, arXiv 2312.04927): `k7 v3 .. k2 v9 .. k7 . .. k2 .`.

    Pairs of a key and a value, then some of the keys again, each once: the answer is the key's value. It is a label
    and no input, as published: a filler stands in its place. Other than there, two keys may have the same value.
    """

    size_field: ClassVar[str] = "n_pairs"

    name: Literal["recall"] = Field("recall", exclude=True)
    """What `data.source` says after `task:`; not to be given."""

    n_pairs: Count = 16
    """Pairs in a window, of different keys; also the task's size."""

    n_queries: Count | None = None
    """Keys that are asked for in a window, each once; null is all of them."""

    n_keys: Count = 128
    """Different keys."""

    n_values: Annotated[int, Field(ge=2, le=16_384)] = 128
    """Different values; two keys may have the same one."""

    n_fillers: Count = 1
    """Different tokens between pairs and queries: 1 is a blank, more are noise."""

    answers: Answers = "hidden"
    """`hidden`: an answer is a label, and a filler stands in its place. `shown`: it is written behind its query, as in
    versions up to 0.1; then the answers that are left can be guessed among, and the floor is high."""

    @property
    def alphabet(self) -> tuple[tuple[str, int], ...]:
        """Padding, fillers, keys, values."""
        return (PAD, 1), (FILLER, self.n_fillers), ("k", self.n_keys), ("v", self.n_values)

    @property
    def floor(self) -> Floor:
        """Of a solver that sees values, and not which keys are asked for."""
        n_queries = asked(self.size, self.n_pairs, self.n_queries)
        if self.answers == "hidden":
            return task_floors.one_of(self.n_pairs, self.n_values)
        return task_floors.one_of_the_rest(self.n_pairs, self.n_values, n_queries)

    @property
    def answer_cover(self) -> int | None:
        """A filler, of several the first."""
        return self.first_id(FILLER) if self.answers == "hidden" else None

    def tokens_needed(self, size: int) -> int:
        """Two tokens a pair and a query."""
        return 2 * size + 2 * asked(size, self.n_pairs, self.n_queries)

    def _beside(self, size: int) -> str:
        return f" and n_queries = {asked(size, self.n_pairs, self.n_queries)}"

    def _check(self) -> None:
        used_once("n_queries", self.n_queries, "n_pairs", self.n_pairs)
        used_once("n_pairs", self.n_pairs, "n_keys", self.n_keys)
