"""One metric: the fields of its entry in the list, and the texts made from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

ROUNDING = 0.01
"""How far rounding may take a value that a model computes beyond its range: bf16 has 8 bits."""

LARGEST = 3.5e38
"""Just above the largest fp32 number: what is larger and finite was not measured, and its square is infinite soon."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric. Its texts count tokens; `per` makes those of a task, whose answers alone are scored."""

    name: str
    """Its key in records and summaries, and its column in every table."""

    words: str
    """What sentences, axes and legends call it."""

    meaning: str
    """What it is: a noun phrase without its unit, unless it is a share of something."""

    task_words: str = ""
    task_meaning: str = ""
    """Of a task, where that is more than answers in place of tokens."""

    remark: str = ""
    """What a reader should know beside the meaning, as sentences."""

    unit: str = ""
    """Empty where it is a plain number."""

    better: Literal["lower", "higher", ""] = ""
    """Empty where neither is."""

    heading: str = ""
    """Its short name above a column of a table; empty: its words."""

    digits: int | None = 3
    """Digits after the point of a mean over seeds; None: six significant ones."""

    dtype: Literal["float64", "Int64", ""] = "float64"
    """Of its column in the index. Empty: no column that is always there; a run that records it brings one."""

    source: Literal["evaluation", "run", "steps", "analysis"]
    """evaluation: every evaluation records it, and the last one's is the run's. run: known at the run's end. steps: of
    the records of training alone. analysis: made of other metrics, stored nowhere."""

    least: float = 0.0
    most: float = math.inf
    """The smallest and largest value that it can have, rounding aside (`has`)."""

    finite: bool = False
    """Whether it is finite in every run that records it. Else training that diverges makes it NaN or infinite."""

    runs: Literal["all", "text", "task"] = "all"
    """The runs that have it."""

    selecting: bool = False
    """Whether only attentions that select have it."""

    chance: str = ""
    """The metric that says what knowing nothing would give; shown beside it."""

    compared: bool = False
    """Whether `compare --metric` takes it."""

    margin_in_nats: bool = False
    """Whether the margin, in nats per token, applies to it."""

    needs_one_machine: bool = False
    """Whether values that were measured on different machines cannot be compared."""

    over_seeds: Literal["", "mean", "spread", "beside"] = ""
    """What tables over seeds have of it. beside: the mean, there and beside every comparison; of both sides where
    dense attention has it too."""

    figure: str = ""
    """The figure over training (learning, indexer or task) that has a row of it."""

    def has(self, value: float) -> bool:
        """Whether a run can record this value."""
        if not math.isfinite(value):
            return not self.finite and (math.isnan(value) or value in (self.least, self.most))
        rounding = 0.0 if self.finite else ROUNDING
        return self.least - rounding <= value <= min(self.most + rounding, LARGEST)

    @property
    def range(self) -> str:
        """Its range in words: `a number from 0 to 1`."""
        kind = "a whole number" if self.dtype == "Int64" else "a finite number" if self.finite else "a number"
        if self.most < math.inf:
            return f"{kind} from {self.least:g} to {self.most:g}"
        return kind if self.least == -math.inf else f"{kind} at least {self.least:g}"

    @property
    def lower_is_better(self) -> bool:
        """The direction of a metric that has one."""
        return self.better == "lower"

    @property
    def title(self) -> str:
        """What stands above its column."""
        return self.heading or self.words

    @property
    def axis(self) -> str:
        """The label of an axis."""
        return f"{self.words} ({self.unit})" if self.unit else self.words

    @property
    def caption(self) -> str:
        """Its name, meaning and remark."""
        return f"{self.words[0].upper()}{self.words[1:]}: {self.meaning}.{' ' * bool(self.remark)}{self.remark}"

    @property
    def quantity(self) -> str:
        """Its meaning and unit; a share says in its meaning what it is of."""
        return f"{self.meaning}, in {self.unit}" if self.unit and not self.unit.startswith("share of") else self.meaning

    @property
    def sentences(self) -> str:
        """Its meaning, unit, direction and remark."""
        better = f"; {self.better} is better" if self.better else ""
        return f"{self.quantity[0].upper()}{self.quantity[1:]}{better}.{' ' * bool(self.remark)}{self.remark}"

    def per(self, scored: str) -> Metric:
        """The same of runs whose losses are per `scored`: `token`, `answer`, or `token or answer`."""
        if scored == "token":
            return self
        unit = self.unit.replace("per token", f"per {scored}").replace("of tokens", f"of {plural(scored)}")
        words, meaning = self.task_words or self.words, self.task_meaning or self.meaning
        if scored != "answer" and self.task_meaning:
            words, meaning = self.words, f"{self.meaning}; of a task, {self.task_meaning}"
        return replace(self, unit=unit, words=words, meaning=meaning)

    def text(self, value: float, more: int = 0) -> str:
        """A value as tables write it, with `more` digits than a mean over seeds has."""
        return f"{value:.6g}" if self.digits is None else f"{value:.{self.digits + more}f}"


def plural(scored: str) -> str:
    """`tokens`, `answers`, `tokens or answers`."""
    return " or ".join(f"{word}s" for word in scored.split(" or "))
