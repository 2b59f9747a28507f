"""The settings of `selective_copy`: symbols among blanks."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dsabench.spec import task_floors
from dsabench.spec.task_floors import Floor
from dsabench.spec.task_settings import FILLER, PAD, Answers, Count, TaskSettings


class SelectiveCopy(TaskSettings):
    """Selective copying (Gu and Dao, Mamba, arXiv 2312.00752): `. s4 . . s9 s4 . | | |`.

    Symbols scattered among blanks, and bars, of which the i-th asks for the i-th symbol. The answers are labels and no
    inputs, as published.
    """

    size_field: ClassVar[str] = "n_copied"

    name: Literal["selective_copy"] = Field("selective_copy", exclude=True)
    """What `data.source` says after `task:`; not to be given."""

    n_copied: Count = 16
    """Symbols to copy; also the task's size."""

    n_symbols: Annotated[int, Field(ge=2, le=16_384)] = 16
    """Different symbols; the same one may stand several times."""

    n_fillers: Count = 1
    """Different tokens between the symbols: 1 is a blank, more are noise."""

    answers: Answers = "hidden"
    """`hidden`: an answer is a label, and a bar stands in its place. `shown`: the symbols are written behind the bar,
    as in versions up to 0.1; then those that are left can be guessed among, and the floor is higher."""

    @property
    def alphabet(self) -> tuple[tuple[str, int], ...]:
        """Padding, fillers, bar, symbols."""
        return (PAD, 1), (FILLER, self.n_fillers), ("|", 1), ("s", self.n_symbols)

    @property
    def floor(self) -> Floor:
        """Of a solver that sees which symbols are to be copied, and not their order."""
        if self.answers == "hidden":
            return task_floors.one_of(self.n_copied, self.n_symbols)
        return task_floors.one_of_the_rest(self.n_copied, self.n_symbols, self.n_copied)

    @property
    def answer_cover(self) -> int | None:
        """The bar."""
        return self.first_id("|") if self.answers == "hidden" else None

    def tokens_needed(self, size: int) -> int:
        """The symbols twice, and the bar."""
        return 2 * size + 1
