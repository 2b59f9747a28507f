"""The search for each variant's best settings: the fields that trials vary, with ranges or choices, and the budget."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from dsabench.spec.strict_model import Positive, Spec

_FIXED = {
    *("train.steps", "train.tokens_per_step", "train.batch_size", "train.eval_every", "train.eval_tokens"),
    *("train.eval_multiples", "attention.kind", "attention.layers", "attention.first_layers"),
    *("attention.top_k", "attention.top_k_ratio", "attention.top_k_schedule"),
}
"""Fields under `train` and `attention` that say what is compared, or how long and on what it is judged."""


class RangeSpec(Spec):
    """A range of real numbers from which trials take values of one field."""

    low: float
    """The smallest value."""

    high: float
    """The largest value."""

    scale: Literal["log", "linear"] = "log"
    """`log`: even in the logarithm, for rates; `linear`: even in the value, for shares."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low = {self.low:g} is not below high = {self.high:g}")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"low = {self.low:g} with scale = log; accepted: a number above 0, or scale = linear")
        return self

    def at(self, share: float) -> float:
        """The value at this share of the way from low to high, on the scale."""
        if self.scale == "log":
            return math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        return self.low + share * (self.high - self.low)

    def share(self, value: Any) -> float:
        """The share of the way at which `value` lies; a half of one that lies outside, or is no number."""
        if not isinstance(value, int | float) or not self.low <= value <= self.high:
            return 0.5
        if self.scale == "log":
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


Choices = Annotated[list[Any], Field(min_length=1)]
Over = dict[str, RangeSpec | Choices]
"""{field path: the range or the choices}."""

DEFAULT_OVER: Over = {
    "train.learning_rate": RangeSpec(low=3e-4, high=1e-2),
    "attention.indexer.learning_rate": RangeSpec(low=3e-4, high=1e-2),
    "attention.indexer.warmup_share": RangeSpec(low=0.05, high=0.5, scale="linear"),
}


class TuneSpec(Spec):
    """The search for each variant's best settings, before the seeds are trained with them. It belongs to the sweep and
    not to a run."""

    trials: Positive | None = None
    """Trials of each variant at each length, the same number for all; `--tune N` sets it. null: no search."""

    steps: Positive | None = None
    """train.steps of a trial; null: as many as the runs have."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1000
    """The training seed of all trials, and of the sampler. It must be none of the sweep's seeds, so that no run is
    judged that chose its own settings."""

    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """`tpe` (tree-structured Parzen estimator) and `random` are Optuna's: pip install 'dsabench[tune]'. `grid` tries
    evenly spaced settings and needs no Optuna; it must come to exactly `trials` settings for each variant."""

    over: Over = Field(default_factory=lambda: dict(DEFAULT_OVER))
    """What trials vary: field paths under `train` and `attention`, each with a range {low, high, scale} or a list of
    choices. A field that a variant does not have is not tuned for it."""

    @model_validator(mode="after")
    def _may_be_tuned(self) -> Self:
        if not self.over:
            raise ValueError("over = {}; accepted: one field or more, each with a range or a list of choices")
        for path, values in self.over.items():
            section = path.partition(".")[0]
            if section not in ("train", "attention") or path in _FIXED or path == section:
                raise ValueError(
                    f"over.{path}: trials must not change what is compared; accepted: fields under train and "
                    "attention, without steps, batch, evaluation, kind and the number of keys"
                )
            if isinstance(values, list) and any(value in values[:i] for i, value in enumerate(values)):
                raise ValueError(f"over.{path} has a value twice")
        return self


def described(values: RangeSpec | list[Any]) -> str:
    """A range or choices in words."""
    if isinstance(values, RangeSpec):
        return f"{values.low:g} to {values.high:g} ({values.scale})"
    return ", ".join(map(str, values))
