"""The settings of `variable_tracking`: values that are passed on from variable to variable."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dsabench.spec import task_floors
from dsabench.spec.task_floors import Floor
from dsabench.spec.task_settings import FILLER, PAD, Count, TaskSettings
from dsabench.spec.tasks.queries import asked, used_once


class VariableTracking(TaskSettings):
    """Chains of assignments (after RULER's variable tracking, arXiv 2404.06654): `x4 = v7 . x9 = x4 .. ? x9 ?`.

    A chain begins with a value, and each of its `n_hops` further statements gives it to a new variable. The chains are
    mixed, each in its order. Asked for is the value of a chain's last variable, which stands n_hops statements away
    from it. RULER asks for all variables that hold a value; here an answer is one token.
    """

    size_field: ClassVar[str] = "n_chains"

    name: Literal["variable_tracking"] = Field("variable_tracking", exclude=True)
    """What `data.source` says after `task:`; not to be given."""

    n_chains: Count = 4
    """Chains in a window; also the task's size."""

    n_hops: Annotated[int, Field(ge=0, le=63)] = 2
    """Statements of a chain that pass its value on; 0 asks for a value that was given."""

    n_queries: Count | None = None
    """Chains that are asked for, each once; null is all of them."""

    n_variables: Count = 64
    """Different variables, at least n_chains * (n_hops + 1)."""

    n_values: Annotated[int, Field(ge=2, le=16_384)] = 64
    """Different values; two chains may have the same one."""

    n_fillers: Count = 1
    """Different tokens between statements: 1 is a blank, more are noise."""

    @property
    def width(self) -> int:
        """The value, and the variable on the right of each statement that passes it on."""
        return self.n_hops + 1

    @property
    def alphabet(self) -> tuple[tuple[str, int], ...]:
        """Padding, fillers, signs, variables, values."""
        return (
            (PAD, 1),
            (FILLER, self.n_fillers),
            ("=", 1),
            ("?", 1),
            ("x", self.n_variables),
            ("v", self.n_values),
        )

    @property
    def floor(self) -> Floor:
        """Of a solver that sees the chains, and not which is asked for."""
        return task_floors.one_of(self.n_chains, self.n_values)

    @property
    def answer_cover(self) -> int:
        """The question mark."""
        return self.first_id("?")

    def tokens_needed(self, size: int) -> int:
        """Three tokens a statement, and a query."""
        return 3 * size * (self.n_hops + 1) + 3 * asked(size, self.n_chains, self.n_queries)

    def _beside(self, size: int) -> str:
        return f", n_queries = {asked(size, self.n_chains, self.n_queries)} and n_hops = {self.n_hops}"

    def _check(self) -> None:
        used_once("n_queries", self.n_queries, "n_chains", self.n_chains)
        used_once("n_chains * (n_hops + 1)", self.n_chains * (self.n_hops + 1), "n_variables", self.n_variables)
