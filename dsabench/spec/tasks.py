"""The tasks with known answers: each one's settings, alphabet and chance. Pure pydantic, as task.py."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from dsabench.spec.task_settings import FILLER, PAD, Count, TaskSettings


def asked(size: int, full: int, n_queries: int | None) -> int:
    """Queries at a size: all, or the share n_queries / full of them, at least one. Never more than the size, because
    n_queries <= full."""
    return size if n_queries is None else max(1, size * n_queries // full)


def _more(one: str, more: int | None, other: str, most: int) -> None:
    if more is not None and more > most:
        raise ValueError(f"{one} = {more} is more than {other} = {most}, and each is used once; at most {most} fits")


class Recall(TaskSettings):
    """Multi-query associative recall (Arora et al., Zoology, arXiv 2312.04927): `k7 v3 .. k2 v9 .. k7 v3`.

    Pairs of a key and a value, then some of the keys again, each once: the answer is the key's value.
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

    @property
    def alphabet(self) -> tuple[tuple[str, int], ...]:
        """Padding, fillers, keys, values."""
        return (PAD, 1), (FILLER, self.n_fillers), ("k", self.n_keys), ("v", self.n_values)

    @property
    def chance_accuracy(self) -> float:
        """1 / n_values."""
        return 1 / self.n_values

    @property
    def chance_loss(self) -> float:
        """ln n_values."""
        return math.log(self.n_values)

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
    def chance_accuracy(self) -> float:
        """1 / (n_symbols - n_copied + 1): symbols of a row differ, so those that are seen are ruled out."""
        return 1 / (self.n_symbols - self.n_copied + 1)

    @property
    def chance_loss(self) -> float:
        """ln(n_symbols - n_copied + 1)."""
        return math.log(self.n_symbols - self.n_copied + 1)

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
    """Needle in a haystack: `w4 w9 k2 w7 w1 w3 .. w6 ? k2 w7 w1`.

    A haystack of words. Somewhere in it keys, each followed by its value, a few words like any others; at the end of
    the window some keys are asked for, and the answer is the value, word by word.
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

    @property
    def alphabet(self) -> tuple[tuple[str, int], ...]:
        """Padding, question mark, keys, words."""
        return (PAD, 1), ("?", 1), ("k", self.n_keys), ("w", self.n_words)

    @property
    def chance_accuracy(self) -> float:
        """1 / n_words."""
        return 1 / self.n_words

    @property
    def chance_loss(self) -> float:
        """ln n_words."""
        return math.log(self.n_words)

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
    """Selective copying (Gu and Dao, Mamba, arXiv 2312.00752): `. s4 . . s9 s4 . | s4 s9 s4`.

    Symbols scattered among blanks, and after a bar the symbols alone, in their order.
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

    @property
    def alphabet(self) -> tuple[tuple[str, int], ...]:
        """Padding, fillers, bar, symbols."""
        return (PAD, 1), (FILLER, self.n_fillers), ("|", 1), ("s", self.n_symbols)

    @property
    def chance_accuracy(self) -> float:
        """1 / n_symbols."""
        return 1 / self.n_symbols

    @property
    def chance_loss(self) -> float:
        """ln n_symbols."""
        return math.log(self.n_symbols)

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
    def chance_accuracy(self) -> float:
        """(n * 0.1 + 0.75) / (n + 1) with n = n_digits.

        Each digit but the last is uniform. The last is the carry out of a place whose digit c is seen, as is the carry
        into it: with none, c + 1 of the ten equally likely pairs do not carry, and max(c + 1, 9 - c) averages 7.5.
        """
        return (self.n_digits * 0.1 + 0.75) / (self.n_digits + 1)

    @property
    def chance_loss(self) -> float:
        """(n ln 10 + h) / (n + 1), h the mean entropy of the carry: (c + 1) / 10 against the rest, over c."""
        entropies = [-sum(p * math.log(p) for p in (i / 10, 1 - i / 10) if p) for i in range(1, 11)]
        return (self.n_digits * math.log(10) + sum(entropies) / 10) / (self.n_digits + 1)

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
