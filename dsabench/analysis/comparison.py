"""The result of a comparison, as data: what `dsabench compare --json` prints and every table and plot shows.

`dsabench schema compare` prints this as a JSON Schema; a number that is not known is null.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from dsabench.analysis.statistics import Verdict, paired

Judgement = Verdict | Literal["LEAK"]


def _null_if_unknown(value: float) -> float | None:
    return value if math.isfinite(value) else None


Number = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value, json_schema_input_type=float | None),
    PlainSerializer(_null_if_unknown, return_type=float | None, when_used="json"),
]
"""NaN is unknown, and null in JSON."""


class Result(BaseModel):
    """Base of what a comparison consists of."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Estimate(Result):
    """The mean of paired differences over seeds, variant minus baseline."""

    n: int
    """Pairs."""

    mean: Number
    """Mean difference."""

    sd: Number
    """Standard deviation of the differences (n - 1)."""

    low: Number
    """Lower end of the 95 % t interval of the mean."""

    high: Number
    """Upper end."""

    @classmethod
    def of(cls, differences: np.ndarray) -> Self:
        """The estimate of these differences, one a seed; those that are not finite are no pairs."""
        found = paired(differences[np.isfinite(differences)])
        return cls(n=found.n, mean=found.mean, sd=found.sd, low=found.low, high=found.high)


class Row(Result):
    """One variant against the baseline at one length."""

    length: int
    """Tokens in a window."""

    variant: str
    """Attention and the fields that tell it from others of the table."""

    attention: str
    """Attention kind."""

    k: int | None
    """Keys that a query keeps; null when the variant does not select, or its runs do not say."""

    seeds: list[int]
    """Training seeds of the pairs."""

    baseline_mean: Number
    """Mean of the metric over the pairs' baseline runs."""

    variant_mean: Number
    """Mean of the metric over the pairs' variant runs."""

    difference: Estimate
    """Of the metric, after all steps."""

    p: Number
    """Two-sided paired t test of no difference, before correction."""

    p_adjusted: Number
    """The same after Holm's correction over the lengths of this variant in this table."""

    p_not_worse: Number
    """One-sided test against the margin; null without a margin."""

    p_equivalent: Number
    """Two one-sided tests against the margin; null without a margin."""

    verdict: Judgement
    """What may be said; a LEAK is never judged."""

    seeds_needed: int | None
    """Seeds that would give a verdict with 80 % power if mean and spread stay; null when judged or out of reach."""

    time_ratio: Number
    """Step time, variant over baseline, geometric mean of the pairs timed on one kind of machine."""

    flops_ratio: Number
    """Model FLOPs of the whole run, variant over baseline."""

    memory_ratio: Number
    """Peak memory, variant over baseline, of the pairs of one kind of machine."""

    memory_spread: Number = math.nan
    """Peak memory of one attention over seeds, largest over smallest, of the variant or the baseline, whichever is
    more; above 1.1 `memory_ratio` says nothing of the attention."""

    equal_flops: Estimate
    """Difference of validation loss, in nats per token, at the FLOPs of the cheaper run of each pair; of the pairs
    whose evaluations say it."""

    equal_flops_share: Number
    """How much of the variant's run is within those FLOPs; the rest of it is not looked at."""

    equal_seconds: Estimate
    """The same at the training seconds of the faster run, for pairs timed on one kind of machine."""

    equal_seconds_share: Number
    """How much of the variant's run is within those seconds."""

    gap: Estimate
    """Generalisation gap (validation minus training loss, nats per token), difference; negative: a smaller gap."""

    mass_recall: Number
    """Attention mass inside the selection, mean of the variant's runs."""

    mass_recall_chance: Number
    """The same for a random selection of the same size."""

    target_recall_best: Number = math.nan
    """Share of a task's targets that the layer which selects most of them selects, mean of the variant's runs; null
    with a text."""

    target_recall_chance: Number = math.nan
    """The same for a random selection of the same size."""

    task_accuracy: Number = math.nan
    """Share of a task's answers that are right, mean of the variant's runs; null with a text."""

    baseline_task_accuracy: Number = math.nan
    """The same of the baseline's runs."""

    chance_accuracy: Number = math.nan
    """The same for the best guess without the targets."""


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


class BestRate(Result):
    """Best learning rate against best learning rate, at one length."""

    setting: str
    """The other fields in which it differs from others; empty when there are none."""

    length: int
    """Tokens in a window."""

    variant: str
    """The variant, its learning rate apart."""

    variant_rate: Number
    """The learning rate with the variant's lowest mean validation loss."""

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

    rungs: list[str] = []
    """The settings, first to last, when they are the rungs of a ladder."""

    best_rates: list[BestRate]
    """Where runs have several learning rates; chosen by the same validation loss that is compared."""

    left_out: list[LeftOut]
    """Runs that are in no pair."""

    warnings: list[str]
    """What must be read before the tables: a win that is too large to believe."""

    notes: list[str]
    """What a reader must know of the runs and of what was done with them."""

    @property
    def rows(self) -> list[Row]:
        """The rows of all tables."""
        return [row for table in self.tables for row in table.rows]
