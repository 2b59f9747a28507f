"""One row of a comparison: a variant against the baseline at one length, with the means of metrics beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetJsonSchemaHandler,
    PlainSerializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue

from dsabench.analysis.statistics import Verdict, paired
from dsabench.metrics import Metric, beside, partners

Judgement = Verdict | Literal["LEAK", "no verdict"]

Withheld = Literal["selects everything", "learnt nothing", "overfitted", "noisy times", "unlike memory"]
"""Reasons for which there is no verdict, whatever the numbers say."""


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


class MeanField(NamedTuple):
    """A field of a row that is the mean of a metric over runs."""

    metric: Metric
    side: Literal["a", "b"]
    """As in the columns of pairs: a is the variant, b the baseline."""

    @property
    def description(self) -> str:
        """What the field is."""
        return f"{self.metric.sentences} Mean of the {'variant' if self.side == 'a' else 'baseline'}'s runs."


def mean_fields() -> dict[str, MeanField]:
    """The fields of a row that are means, by their names; of both sides where dense attention has the metric too."""
    found = {}
    for metric in beside():
        found[metric.name] = MeanField(metric, "a")
        if not metric.selecting and metric.name not in partners():
            found[f"baseline_{metric.name}"] = MeanField(metric, "b")
    return found


class Row(Result):
    """One variant against the baseline at one length, and at the end means of metrics beside the comparison."""

    model_config = ConfigDict(extra="allow")

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
    """What may be said; a LEAK is never judged, and `no verdict` is what is `withheld`."""

    withheld: Withheld | None = None
    """Why there is no verdict: the variant or the baseline keeps as many keys as the window has tokens; models that
    learnt nothing; models that overfitted, so that losses say who memorises less; for a metric of time or memory,
    values that differ too much between seeds. Null where there is one, and of a LEAK."""

    learnt_nothing: int = 0
    """How many of the pairs' models, two a pair, are no better than the unigram baseline (of a task: than a solver that
    does not see what the task is about)."""

    rise: Number = math.nan
    """Nats per token by which the variant's validation loss ends above its lowest evaluation while the training loss
    fell, else 0; mean over the pairs. Above the margin the models overfitted. Null on tasks, and where evaluations do
    not say it."""

    baseline_rise: Number = math.nan
    """The same of the baseline."""

    overfitted: int = 0
    """How many of the pairs' models, two a pair, rose by more than the margin."""

    seeds_needed: int | None
    """Seeds that would give a verdict with 80 % power if mean and spread stay; null when judged or out of reach."""

    time_ratio: Number
    """Step time, variant over baseline, geometric mean of the pairs timed on one kind of machine."""

    time_spread: Number = math.nan
    """Step time of one attention over seeds, largest over smallest, of the variant or the baseline, whichever is
    more."""

    time_doubt: str = ""
    """Why `time_ratio` and the difference at equal seconds say little; empty when nothing speaks against them."""

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

    __pydantic_extra__: dict[str, Number]
    """The means of `mean_fields`; a number that no run has is null."""

    @model_validator(mode="after")
    def _means_are_of_metrics(self) -> Self:
        if unknown := set(self.__pydantic_extra__) - mean_fields().keys():
            raise ValueError(f"{', '.join(sorted(unknown))}: no field of a row")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        number = schema["properties"]["p"]["anyOf"]
        means = {
            name: {
                "anyOf": number,
                "default": None,
                "description": field.description,
                "title": name.replace("_", " ").title(),
            }
            for name, field in mean_fields().items()
        }
        schema["properties"] |= means
        return schema | {"additionalProperties": False}

    def mean(self, name: str) -> float:
        """The mean of the metric `name` over the variant's runs, with `baseline_` before it over the baseline's; NaN
        where no run has it."""
        return self.__pydantic_extra__.get(name, math.nan)


def reads_other_than_k(rows: Iterable[Row]) -> bool:
    """Whether the keys that a query reads say more than k: a variant reads more than a selection of k keys."""
    return any(math.isfinite(read := row.mean("k_effective")) and read != row.k for row in rows)
