"""The result of a comparison, as data: what `dsabench compare --json` prints and every table and plot shows.

`dsabench schema compare` prints this as a JSON Schema; a number that is not known is null.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from dsabench.analysis.comparison_row import Estimate, Number, Result, Row
from dsabench.analysis.size_results import SizeLadder

Outcome = Literal["ok", "warn", "fail", "not recorded"]


class Check(Result):
    """One thing that was checked in the records of the runs."""

    name: str
    """The check."""

    outcome: Outcome
    """fail: a verdict would rest on a mistake. warn: something to know before reading on."""

    text: str
    """What was found, with its numbers."""

    run_ids: tuple[str, ...] = ()
    """The runs that it concerns, when not all."""

    withholds: bool = False
    """Whether verdicts are withheld for it: those of the pairs that it concerns."""


class Trend(Result):
    """How a variant's difference changes with length."""

    variant: str
    """The variant."""

    lengths: list[int]
    """Lengths that every seed of the trend has."""

    slope: Estimate
    """Change of the difference when the length doubles: least-squares slope over log2(length), one for each seed."""

    p: Number
    """Two-sided t test of no slope."""

    confounded: str
    """Why the trend is not one over length alone; empty when nothing speaks against it."""


class SearchCost(Result):
    """What the search for a variant's settings cost, at one length."""

    trials: int
    """Trials."""

    failed: int
    """Those that failed, which count as tried."""

    tokens: int
    """Tokens that they were trained on."""

    flops: Number
    """Their training FLOPs."""

    seconds: Number
    """Their seconds of training."""


class BestSettings(Result):
    """Best settings against best settings, at one length."""

    setting: str
    """The other fields in which it differs from others; empty when there are none."""

    length: int
    """Tokens in a window."""

    variant: str
    """The variant, its learning rate apart."""

    variant_rate: Number
    """The learning rate with the variant's lowest mean validation loss; null where a search did not vary it."""

    variant_rates: list[float]
    """All that were tried for it."""

    baseline_rate: Number
    """The same for the baseline."""

    baseline_rates: list[float]
    """All that were tried for the baseline."""

    difference: Estimate
    """Of the metric, over the seeds that both have."""

    p: Number
    """Two-sided paired t test, uncorrected."""

    variant_settings: dict[str, Any] = Field(default={})
    """What a search chose for the variant, by field path; empty without a search."""

    baseline_settings: dict[str, Any] = Field(default={})
    """The same for the baseline."""

    variant_search: SearchCost | None = None
    """What the variant's search cost."""

    baseline_search: SearchCost | None = None
    """What the baseline's search cost."""


class Table(Result):
    """The comparisons of one combination of all other fields."""

    setting: str
    """The fields in which this table differs from the others; empty when there is one."""

    rows: list[Row]
    """By length, then variant."""

    trends: list[Trend]
    """One a variant that has at least two lengths."""

    sentences: list[str]
    """The table in words, a sentence a variant."""


class LeftOut(Result):
    """A run that is in no pair."""

    run_id: str
    """The run."""

    reason: str
    """Why."""

    error: str = ""
    """What its record says went wrong."""


class Comparison(Result):
    """Every variant against the baseline: the answer of one store to the question whether sparse is as good."""

    schema_version: Literal[1] = 1
    """Version of this document."""

    scope: str
    """Which runs were looked at."""

    sweep: str | None
    """Id of the sweep, when they are those of one."""

    metric: str
    """What is compared: a column of the store's table."""

    unit: str
    """Its unit."""

    lower_is_better: bool
    """Direction of the metric."""

    baseline: str
    """The attention, or the variant, that others are compared with."""

    margin: Annotated[float, Field(gt=0)] | None
    """A loss by less than this counts as not worse; in `margin_unit`. Null: there is no such verdict."""

    margin_unit: str
    """`nats per token` for losses (converted for bits per byte), of tasks `nats per answer`; else the metric's unit."""

    margin_source: str
    """Who fixed the margin, and so whether it was fixed before the runs were seen."""

    alpha: float
    """Level of every test; intervals cover 1 - alpha."""

    tables: list[Table]
    """One for each combination of fields outside attention, length and seed."""

    rungs: list[str] = Field(default=[])
    """The settings, first to last, when they are the rungs of a ladder."""

    sizes: list[SizeLadder] = Field(default=[])
    """Where the settings are models of several sizes: one a length and variant."""

    best_rates: list[BestSettings]
    """Where a search chose the settings, or runs have several learning rates; chosen by validation loss."""

    left_out: list[LeftOut]
    """Runs that are in no pair."""

    answer: str = ""
    """The comparison in plain words, with what it costs: a line a variant and setting."""

    checks: list[Check] = Field(default=[])
    """What was checked in the records of the runs."""

    warnings: list[str]
    """What must be read before the tables: the checks that failed, then those that warn."""

    notes: list[str]
    """What a reader must know of the runs and of what was done with them."""

    @property
    def rows(self) -> list[Row]:
        """The rows of all tables."""
        return [row for table in self.tables for row in table.rows]
