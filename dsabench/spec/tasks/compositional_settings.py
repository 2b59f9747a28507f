"""The settings of `compositional`: recall by keys of two parts."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dsabench.spec import task_floors
from dsabench.spec.task_floors import Floor
from dsabench.spec.task_settings import FILLER, PAD, Count, TaskSettings


class Compositional(TaskSettings):
    """Recall by keys of two parts (zoology's compositional_mqar): `a3 b1 v7 a3 b4 v2 a9 b1 v7 a9 b4 v5 .. a3 b4 .`.

    Every first part stands with every second part, so that neither alone says the value. The queries are all keys
    again in another order; the answer stands after the second part.
    """

    size_field: ClassVar[str] = "n_side"
    least: ClassVar[int] = 2

    name: Literal["compositional"] = Field("compositional", exclude=True)
    """What `data.source` says after `task:`; not to be given."""

    n_side: Annotated[int, Field(ge=2, le=128)] = 3
    """First parts, and second parts: the square of it is the number of keys. Also the task's size."""

    n_parts: Count = 64
    """Different first parts, and different second parts."""

    n_values: Annotated[int, Field(ge=2, le=16_384)] = 128
    """Different values; two keys may have the same one."""

    n_fillers: Count = 1
    """Different tokens between pairs and queries: 1 is a blank, more are noise."""

    @property
    def alphabet(self) -> tuple[tuple[str, int], ...]:
        """Padding, fillers, first parts, second parts, values."""
        return (PAD, 1), (FILLER, self.n_fillers), ("a", self.n_parts), ("b", self.n_parts), ("v", self.n_values)

    @property
    def floor(self) -> Floor:
        """Of a solver that sees values, and not which keys are asked for."""
        return task_floors.one_of(self.n_side**2, self.n_values)

    @property
    def answer_cover(self) -> int:
        """A filler, of several the first."""
        return self.first_id(FILLER)

    def tokens_needed(self, size: int) -> int:
        """Three tokens a key, and a query."""
        return 6 * size**2

    def _check(self) -> None:
        if self.n_side > self.n_parts:
            raise ValueError(
                f"n_side = {self.n_side} is more than n_parts = {self.n_parts}, and each part is used once on its "
                f"side; at most {self.n_parts} fits"
            )
