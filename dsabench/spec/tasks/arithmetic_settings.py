"""The settings of `arithmetic`: sums of many digits."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dsabench.spec import task_floors
from dsabench.spec.task_floors import Floor
from dsabench.spec.task_settings import PAD, TaskSettings


class Arithmetic(TaskSettings):
    """Multi-digit addition: `21+93=150;` is 12 + 39 = 051, every number written from its ones on.

    Problems end to end. A digit of a sum needs the two digits above it, and those one place lower for the carry, so the
    lowest place comes first: from the highest on, the first digit would need nearly all of them.
    """

    size_field: ClassVar[str] = "n_digits"

    name: Literal["arithmetic"] = Field("arithmetic", exclude=True)
    """What `data.source` says after `task:`; not to be given."""

    n_digits: Annotated[int, Field(ge=2, le=64)] = 4
    """Digits of each operand, leading zeros included; a sum has one more. Also the task's size."""

    @property
    def width(self) -> int:
        """The two digits above, and those one place lower."""
        return 4

    @property
    def alphabet(self) -> tuple[tuple[str, int], ...]:
        """Padding, signs, digits."""
        return (PAD, 1), ("+", 1), ("=", 1), (";", 1), ("", 10)

    @property
    def floor(self) -> Floor:
        """Of a solver that does not see the operands."""
        return task_floors.digits_of_a_sum(self.n_digits)

    def tokens_needed(self, size: int) -> int:
        """Two operands, their sum, and three signs."""
        return 3 * size + 4
