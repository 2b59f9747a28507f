"""The settings of `induction`: copying a row of symbols."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dsabench.spec import task_floors
from dsabench.spec.task_floors import Floor
from dsabench.spec.task_settings import FILLER, PAD, Count, TaskSettings


class Induction(TaskSettings):
    """Induction, copying (Olsson et al., arXiv 2209.11895): `s5 s1 s8 .. s5 s1 s8`.

    A row of different symbols, and later the same row: each symbol after its first is what followed the one before it.
    """

    size_field: ClassVar[str] = "n_copied"
    least: ClassVar[int] = 2

    name: Literal["induction"] = Field("induction", exclude=True)
    """What `data.source` says after `task:`; not to be given."""

    n_copied: Annotated[int, Field(ge=2, le=16_384)] = 32
    """Symbols in the row, all different; also the task's size. All but the first are answers."""

    n_symbols: Annotated[int, Field(ge=3, le=16_384)] = 128
    """Different symbols, more than n_copied."""

    n_fillers: Count = 1
    """Different tokens around the two rows: 1 is a blank, more are noise."""

    @property
    def alphabet(self) -> tuple[tuple[str, int], ...]:
        """Padding, fillers, symbols."""
        return (PAD, 1), (FILLER, self.n_fillers), ("s", self.n_symbols)

    @property
    def floor(self) -> Floor:
        """Of a solver that sees which symbols the first row has, and not their order."""
        return task_floors.different_ones(self.n_copied - 1)

    def tokens_needed(self, size: int) -> int:
        """Two rows."""
        return 2 * size

    def _check(self) -> None:
        if self.n_symbols <= self.n_copied:
            raise ValueError(
                f"n_symbols = {self.n_symbols} leaves nothing to guess in a row of n_copied = {self.n_copied} "
                f"different ones; at least {self.n_copied + 1} would, and twice as many is a good choice"
            )
