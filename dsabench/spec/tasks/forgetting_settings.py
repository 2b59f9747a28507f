"""The settings of `forgetting`: recall of keys whose values are replaced."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dsabench.spec import task_floors
from dsabench.spec.task_floors import Floor
from dsabench.spec.task_settings import FILLER, PAD, Count, TaskSettings
from dsabench.spec.tasks.queries import asked, used_once


class Forgetting(TaskSettings):
    """Recall with values that are replaced (zoology's forgetting_mqar): `k7 v3 . k2 v9 .. k7 v5 .. k2 . .. k7 .`.

    Pairs of a key and a value, then some of the keys again with another value, then queries: the answer is the last
    value of the key. Both pairs of such a key look alike; only their order says which holds.
    """

    size_field: ClassVar[str] = "n_pairs"

    name: Literal["forgetting"] = Field("forgetting", exclude=True)
    """What `data.source` says after `task:`; not to be given."""

    n_pairs: Count = 16
    """Different keys in a window; also the task's size."""

    n_updates: Count = 8
    """Keys that stand a second time with another value; at most n_pairs, and at a smaller size as large a share."""

    n_queries: Count | None = None
    """Keys that are asked for in a window, each once; null is all of them."""

    n_keys: Count = 128
    """Different keys."""

    n_values: Annotated[int, Field(ge=2, le=16_384)] = 128
    """Different values; two keys may have the same one."""

    n_fillers: Count = 1
    """Different tokens between pairs and queries: 1 is a blank, more are noise."""

    @property
    def alphabet(self) -> tuple[tuple[str, int], ...]:
        """Padding, fillers, keys, values."""
        return (PAD, 1), (FILLER, self.n_fillers), ("k", self.n_keys), ("v", self.n_values)

    @property
    def floor(self) -> Floor:
        """Of a solver that sees which values hold at the end, and not which keys are asked for."""
        return task_floors.one_of(self.n_pairs, self.n_values)

    @property
    def answer_cover(self) -> int:
        """A filler, of several the first."""
        return self.first_id(FILLER)

    def updates(self, size: int) -> int:
        """Keys that stand twice at a size."""
        return asked(size, self.n_pairs, self.n_updates)

    def tokens_needed(self, size: int) -> int:
        """Two tokens a pair, old or new, and a query."""
        return 2 * (size + self.updates(size) + asked(size, self.n_pairs, self.n_queries))

    def _beside(self, size: int) -> str:
        return f", n_updates = {self.updates(size)} and n_queries = {asked(size, self.n_pairs, self.n_queries)}"

    def _check(self) -> None:
        used_once("n_updates", self.n_updates, "n_pairs", self.n_pairs)
        used_once("n_queries", self.n_queries, "n_pairs", self.n_pairs)
        used_once("n_pairs", self.n_pairs, "n_keys", self.n_keys)
