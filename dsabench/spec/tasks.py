"""The tasks with known answers: each one's settings, alphabet and floor."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from dsabench.spec import task_floors
from dsabench.spec.task_floors import Floor
from dsabench.spec.task_settings import FILLER, PAD, Answers, Count, TaskSettings


def asked(size: int, full: int, n_queries: int | None) -> int:
    """Queries at a size: all, or the share n_queries / full of them, at least one. Never more than the size, because
    n_queries <= full."""
    return size if n_queries is None else max(1, size * n_queries // full)


def _more(one: str, more: int | None, other: str, most: int) -> None:
    if more is not None and more > most:
        raise ValueError(f"{one} = {more} is more than {other} = {most}, and each is used once; at most {most} fits")


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
        _more("n_queries", self.n_queries, "n_pairs", self.n_pairs)
        _more("n_pairs", self.n_pairs, "n_keys", self.n_keys)


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
        _more("n_queries", self.n_queries, "n_needles", self.n_needles)
        _more("n_needles", self.n_needles, "n_keys", self.n_keys)


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


class Arithmetic(TaskSettings):
    """Multi-digit addition: `21+93=150;` is 12 + 39 = 051, every number written from its ones on.

    Problems end to end. A digit of a sum needs the two digits above it, and those one place lower for the carry, so the
    lowest place comes first: from the highest on, the first digit would need nearly all of them.
    """

    size_field: ClassVar[str] = "n_digits"
    width: ClassVar[int] = 4

    name: Literal["arithmetic"] = Field("arithmetic", exclude=True)
    """What `data.source` says after `task:`; not to be given."""

    n_digits: Annotated[int, Field(ge=2, le=64)] = 4
    """Digits of each operand, leading zeros included; a sum has one more. Also the task's size."""

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


Task = Annotated[Recall | Induction | Needle | SelectiveCopy | Arithmetic, Field(discriminator="name")]
"""The settings of any task."""

TASKS: dict[str, type[TaskSettings]] = {task.model_fields["name"].default: task for task in get_args(get_args(Task)[0])}
"""Every task's settings by its name."""

TASK_PREFIX = "task:"
"""What `data.source` begins with when it names a task."""


def task_name(source: str) -> str | None:
    """The task that a `data.source` names; None for a text. Raises ValueError naming what there is."""
    if not source.startswith(TASK_PREFIX):
        return None
    name = source.removeprefix(TASK_PREFIX)
    if name not in TASKS:
        raise ValueError(f"there is no task {name!r}; known: {', '.join(TASKS)}")
    return name
